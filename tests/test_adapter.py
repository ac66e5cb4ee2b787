"""The adapter's edges: pixels as the stock processor makes them, loading and its errors, decoding, identities, contexts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_qwen3_vl
from PIL import Image
from test_exactness import stock_inputs
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from data.errors import AdapterError
from data.frames import Chunk, Frame
from data.world import make_world
from model_adapters.cache import BufferContext, cache_name
from model_adapters.fingerprint import fingerprint
from model_adapters.preprocess import PixelSpec, fitted_size, patchify, resize
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.session import StreamSession

QUESTION = "when did the red circle appear ?"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPECS = [
    PixelSpec(16, 2, 2, 128 * 128, 256 * 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    PixelSpec(14, 2, 2, 56 * 56, 28 * 28 * 64, MEAN, STD),
    PixelSpec(8, 3, 2, 48 * 48, 48 * 48 * 16, MEAN, STD),
]
IDS = ["p16", "p14", "p8-merge3"]


def processor(spec: PixelSpec) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def still(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges, ramps and noise, uint8 [3, height, width]; far enough from black and white for no overshoot."""
    rng = np.random.default_rng(seed)
    side = max(height, width, 16)
    picture = make_world(seed, 8, side=side).frame(3.0)[:, :height, :width].astype(int)
    picture[:, : height // 2] += np.arange(width)[None, None] * 120 // width
    return (np.clip(picture + rng.integers(-20, 21, picture.shape), 0, 255) // 2 + 64).astype(np.uint8)


# Pixels


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_sizes_are_the_stock_ones(spec: PixelSpec) -> None:
    rng = np.random.default_rng(0)
    sizes = [tuple(int(v) for v in np.exp(rng.uniform(np.log(spec.cell), np.log(3000), 2))) for _ in range(400)]
    for height, width in [*sizes, (spec.cell, spec.cell), (1080, 1920), (1920, 1080), (97, 131)]:
        expected = smart_resize(height, width, spec.cell, spec.min_pixels, spec.max_pixels)
        assert fitted_size(height, width, spec) == expected, (height, width)
        assert expected[0] % spec.cell == 0 == expected[1] % spec.cell


def test_a_picture_that_is_too_narrow_is_refused_like_stock() -> None:
    spec = SPECS[0]
    for height, width in ((10, 2010), (2010, 10)):
        with pytest.raises(ValueError, match=f"{width}x{height}"):
            fitted_size(height, width, spec)
        with pytest.raises(ValueError):
            smart_resize(height, width, spec.cell)
    assert fitted_size(10, 1999, spec)[0] >= spec.cell


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@pytest.mark.parametrize("size", [(96, 96), (128, 128), (168, 224), (240, 135), (100, 300), (480, 640), (50, 61)], ids=str)
def test_pixels_are_those_of_the_stock_image_processor(spec: PixelSpec, size: tuple[int, int]) -> None:
    # PIL clips the overshoot at edges between its two passes and we do not: unlike it, pictures here have none.
    picture = still(*size)
    stock = processor(spec)(Image.fromarray(picture.transpose(1, 2, 0)), return_tensors="pt")
    resized = resize(torch.from_numpy(picture)[None], spec)
    found, grid = patchify(resized.repeat(spec.temporal_patch_size, 1, 1, 1), spec)
    assert torch.equal(grid, stock["image_grid_thw"]) and found.shape == stock["pixel_values"].shape
    level = 1 / 255 / min(spec.std)
    off = (found - stock["pixel_values"]).abs()
    if resized.shape[-2:] == size:
        assert float(off.max()) < 1e-5, "nothing is resized: only the layout could differ"
    assert float(off.max()) <= 1.001 * level
    # And that for few: PIL rounds after each of its two passes.
    assert float((off > 0.1 * level).float().mean()) < 0.3


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_overshoot_at_hard_edges_stays_rare(spec: PixelSpec) -> None:
    picture = np.where(still(96, 131) > 128, 255, 0).astype(np.uint8)
    found = resize(torch.from_numpy(picture)[None], spec)[0].int().numpy()
    image = Image.fromarray(picture.transpose(1, 2, 0)).resize(found.shape[:0:-1], Image.Resampling.BICUBIC)
    off = np.abs(np.asarray(image).transpose(2, 0, 1).astype(int) - found)
    assert off.mean() < 0.6 and (off > 16).mean() < 0.01


def test_a_slot_is_one_patch_in_time_and_a_short_one_repeats_its_last_frame() -> None:
    spec = SPECS[0]
    a, b, c = (torch.from_numpy(still(128, 128, seed)) for seed in (1, 2, 3))
    both, grid = patchify(torch.stack([a, b, c]), spec)
    assert grid.tolist() == [[2, 8, 8]] and torch.equal(both[64:], patchify(torch.stack([c, c]), spec)[0])
    # Within a patch: channel, then time, then rows and columns.
    first = both.view(2, 4, 4, 2, 2, 3, 2, 16, 16)
    want = (b[1].float() / 255 - 0.5) / 0.5
    assert torch.allclose(first[0, 1, 2, 0, 1, 1, 1], want[32:48, 80:96])


def test_the_adapter_pads_a_short_slot_before_it_resizes(random_adapter) -> None:
    frames = np.stack([still(100, 140, seed) for seed in range(3)])
    picture = random_adapter.picture(Chunk(0, frames, (0.0, 0.5, 1.0), 0.0, 2.0))
    assert picture.shape[0] == 4 and torch.equal(picture[2], picture[3]) and picture.dtype == torch.uint8
    assert picture.shape[2] % random_adapter.cell == 0 == picture.shape[3] % random_adapter.cell
    visual = random_adapter.embed(picture)
    assert visual.grid == (2, picture.shape[2] // 32, picture.shape[3] // 32)
    assert len(visual.embeds) == int(np.prod(visual.grid)) == visual.deepstack.shape[1]


def test_the_spec_is_read_from_the_checkpoint(random_folder, tmp_path) -> None:
    spec = PixelSpec.from_folder(random_folder)
    assert (spec.patch_size, spec.merge_size, spec.cell, spec.min_pixels) == (16, 2, 32, 128 * 128)
    config = json.loads((random_folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"min_pixels": 99, "max_pixels": 9999}))
    assert (PixelSpec.from_folder(tmp_path).min_pixels, PixelSpec.from_folder(tmp_path).max_pixels) == (99, 9999)


# Loading


def rewritten(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def with_family(folder: Path, family: str) -> None:
    rewritten(folder / "config.json", lambda text: json.dumps(json.loads(text) | {"model_type": family}))


def torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_shape(folder: Path) -> None:
    rewritten(folder / "config.json", lambda text: text.replace('"intermediate_size": 96', '"intermediate_size": 128'))


DAMAGES = [
    pytest.param(lambda f: (f / "config.json").unlink(), "no config.json", id="no config"),
    pytest.param(lambda f: (f / "config.json").write_text('{"model_type": '), "cannot be read", id="broken config"),
    pytest.param(lambda f: (f / "config.json").write_text("[1]"), "cannot be read", id="config is a list"),
    pytest.param(lambda f: with_family(f, "mamba"), "'mamba'.*known: .*qwen3_vl", id="unknown family"),
    pytest.param(lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors", id="no weights"),
    pytest.param(pickled, r"no \*\.safetensors", id="pickled weights"),
    pytest.param(torn, "cannot be loaded", id="torn weights"),
    pytest.param(more_layers, "weights", id="missing weights"),
    pytest.param(other_shape, "weights of another shape", id="weights of another shape"),
    pytest.param(
        lambda f: rewritten(f / "tokenizer.json", lambda text: text.replace("<|video_pad|>", "<|other|>")),
        r"lacks the special token <\|video_pad\|>",
        id="no video token",
    ),
    pytest.param(lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.*cannot be read", id="broken tokenizer"),
    pytest.param(
        lambda f: (f / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}"),
        "no place for a video",
        id="template without video",
    ),
    pytest.param(lambda f: (f / "chat_template.jinja").unlink(), "template", id="no template"),
    pytest.param(lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config", id="no preprocessor"),
    pytest.param(lambda f: (f / "preprocessor_config.json").write_text("{}"), "patch_size", id="empty preprocessor"),
]


@pytest.mark.parametrize("damage,words", DAMAGES)
def test_a_damaged_checkpoint_is_told_in_one_line(random_folder, tmp_path, damage, words: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_folder, folder)
    load_adapter(str(folder), device="cpu")
    damage(folder)
    with pytest.raises(AdapterError, match=words) as caught:
        load_adapter(str(folder), device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_folder_is_told_so(tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for name in (str(file), str(tmp_path / "missing"), "./nowhere", "notamodel", "too/many/parts"):
        with pytest.raises(AdapterError) as caught:
            load_adapter(name, device="cpu")
        assert name in str(caught.value) and "embedded" in str(caught.value) and "\n" not in str(caught.value)


def test_the_fingerprint_is_that_of_weights_and_configs(random_folder, tmp_path) -> None:
    same = shutil.copytree(random_folder, tmp_path / "same")
    first = fingerprint(random_folder)
    assert fingerprint(same) == first == load_adapter(str(same), device="cpu").info.fingerprint
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        other = shutil.copytree(random_folder, tmp_path / name)
        data = bytearray((other / name).read_bytes())
        data[-2] ^= 1
        (other / name).write_bytes(bytes(data))
        assert fingerprint(other) != first, name
    assert fingerprint(save_qwen3_vl(tmp_path / "seed", seed=1)) != first


def test_info_counts_what_is_stored(random_adapter, frames) -> None:
    info = random_adapter.info
    assert (info.family, info.num_layers, info.num_kv_heads, info.head_dim) == ("qwen3_vl", 3, 2, 24)
    with StreamSession(random_adapter, SessionConfig(drop="off")) as session:
        list(session.feed(frames[:2]))
        (kv,) = session.bank.get([0])
    assert kv.keys.shape == kv.values.shape == (3, 2, kv.num_tokens, 24)
    assert kv.num_bytes == kv.num_tokens * (info.kv_bytes_per_token + 8 * info.num_position_axes)


# Decoding


@torch.inference_mode()
def test_greedy_decoding_is_stock_generate(random_adapter, random_folder, frames) -> None:
    stock = Qwen3VLForConditionalGeneration.from_pretrained(
        random_folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    for end in (2, 12, 24):
        with StreamSession(random_adapter, SessionConfig(drop="off", window_seconds=100, max_new_tokens=10)) as session:
            for frame in frames[:end]:
                session.push(frame)
            found = [answer.text for answer in session.ask(QUESTION)][-1]
        inputs = stock_inputs(stock, random_adapter.tokenizer, random_adapter, frames[:end])
        out = stock.generate(**inputs, max_new_tokens=10, do_sample=False)
        expected = random_adapter.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert found == expected and found


def test_decoding_stops_at_its_stop_token_and_its_length(random_adapter, frames) -> None:
    with StreamSession(random_adapter, SessionConfig(window_seconds=100)) as session:
        list(session.feed(frames[:6]))

        def texts(num: int) -> list[str]:
            context = random_adapter.new_context(4)
            random_adapter.append(context, [session.ingest.sink, *session.ingest.window])
            return list(random_adapter.generate(context, random_adapter.question_run(QUESTION), num))

        long = texts(8)
        assert len(long) == 8 and texts(3) == long[:3]
        third = random_adapter.tokenizer(long[2]).input_ids[-1]
        stops = random_adapter.stop_ids
        random_adapter.stop_ids = {*stops, third}
        try:
            stopped = texts(8)
        finally:
            random_adapter.stop_ids = stops
        assert stopped == long[: len(stopped)] and len(stopped) <= 2


# Contexts


def filled(lengths: list[int], capacity: int = 4) -> tuple[BufferContext, list[torch.Tensor]]:
    """A context whose layers hold random keys and values of these lengths; and the keys."""
    context = BufferContext((2, capacity, 6), torch.float32, [torch.device("cpu")] * len(lengths))
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(2, length, 6, generator=generator) for length in lengths]
    context.reserve(max(lengths))
    for index, key in enumerate(keys):
        context.write_layer(index, key, -key)
    context.cursor.next_position = 40
    return context, keys


def test_a_context_grows_and_keeps_what_it_holds() -> None:
    context, _ = filled([3, 3])
    parts = [context.read()[0]]
    generator = torch.Generator().manual_seed(1)
    for size in (1, 1, 7, 30, 2):
        parts.append(torch.randn(2, 2, size, 6, generator=generator))
        context.write(parts[-1], -parts[-1])
        whole = torch.cat(parts, 2)
        assert context.num_tokens == whole.shape[2] <= context.capacity
        assert torch.equal(context.read()[0], whole) and torch.equal(context.read()[1], -whole)
    # What a model writes through the cache lands behind it, and it is handed all there is.
    step = torch.randn(1, 2, 1, 6)
    context.reserve(1)
    keys, values = context.cache.layers[1].update(step, -step)
    assert torch.equal(keys[0], torch.cat([whole[1], step[0]], 1)) and torch.equal(values, -keys)
    assert context.layers[1].get_seq_length() == whole.shape[2] + 1


def test_the_cache_goes_by_the_name_that_the_model_has_for_it() -> None:
    class Older:
        def forward(self, inputs_embeds, past_key_values=None, **kwargs) -> None: ...

    class Newer:
        def forward(self, inputs_embeds, cache=None, **kwargs) -> None: ...

    class Split(Newer):
        def __init__(self) -> None:
            self.forward = lambda *args, **kwargs: None  # as hooks of a model over several devices stand before it

    assert [cache_name(model()) for model in (Older, Newer, Split)] == ["past_key_values", "cache", "cache"]


def test_growing_is_seldom() -> None:
    context, _ = filled([1])
    capacities = set()
    for _ in range(1000):
        context.write(torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 6))
        capacities.add(context.capacity)
    assert len(capacities) < 12


def test_a_fork_is_independent() -> None:
    context, keys = filled([3, 3])
    twin = context.fork()
    assert twin.next_position == 40 and twin.num_tokens == 3
    twin.write(torch.ones(2, 2, 9, 6), torch.ones(2, 2, 9, 6))
    twin.shelves[0].keys[:, :, :3] = 0
    twin.cursor.next_position = 50
    assert context.num_tokens == 3 and context.next_position == 40
    assert torch.equal(context.read()[0], torch.stack(keys))
    other = context.fork()
    context.write(torch.ones(2, 2, 1, 6), torch.ones(2, 2, 1, 6))
    assert other.num_tokens == 3 and torch.equal(other.read()[0], torch.stack(keys))


def test_a_fork_keeps_the_length_of_every_layer() -> None:
    context, keys = filled([5, 2])
    twin = context.fork()
    assert [layer.length for layer in twin.layers] == [5, 2]
    assert torch.equal(twin.layers[1].held()[0], keys[1])


def test_frames_are_what_a_chunk_run_stamps(random_adapter) -> None:
    """Three frames: one slot of two and one of a repeated frame, each with the mean of its times."""
    frames = [Frame(still(128, 128, k), pts) for k, pts in enumerate((7.0, 7.5, 8.25))]
    chunk = Chunk(0, np.stack([f.data for f in frames]), tuple(f.pts_seconds for f in frames), 7.0, 9.0)
    keep = torch.ones(32, dtype=torch.bool)
    visual = random_adapter.embed(random_adapter.picture(chunk))
    run = random_adapter.chunk_run(chunk, visual.grid, keep, visual)
    text = "".join(f"<{t} seconds><|vision_start|>{'<|video_pad|>' * 16}<|vision_end|>" for t in ("7.2", "8.2"))
    tokens = torch.tensor(random_adapter.tokenizer(text).input_ids)
    words = random_adapter.model.get_input_embeddings()(tokens)
    assert run.num_tokens == len(tokens) and torch.equal(run.embeds[~run.visual_mask], words[~run.visual_mask])
    assert torch.equal(run.embeds[run.visual_mask], visual.embeds)
