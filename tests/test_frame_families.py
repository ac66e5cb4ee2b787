"""Families that see every frame alone, held against their own processors and stock forwards on small random checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_adapter import still
from test_exactness import QUESTION, chunks_of, fed, tolerance
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from data.frames import Chunk, Frame
from data.world import make_world
from model_adapters.base import TokenRun
from model_adapters.frame_by_frame import SquareFramesAdapter
from model_adapters.registry import load_adapter


@dataclass(frozen=True)
class Family:
    """What the family's own code says. video_text: its processor's text for a video of frames at these times, with our stamps
    put where its own say something that a stream cannot. pixels: its image processor. inputs: what its forward calls pixels."""

    video_text: Callable[[Sequence[float]], str]
    tail: str
    pixels: Callable[[np.ndarray], torch.Tensor]
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]]


def llava_text(times: Sequence[float]) -> str:
    """One run of placeholders and the newline behind it, for all frames; the family has no stamps."""
    own = SimpleNamespace(num_image_tokens=25, video_token="<video>")
    text = LlavaOnevisionProcessor.replace_video_token(own, {"pixel_values_videos": [torch.zeros(len(times), 3, 50, 50)]}, 0)
    assert text == "<video>" * (9 * len(times) + 1)
    stamped = "".join(f"Time {t:.1f}s:" + "<video>" * 9 for t in times)
    return f"<|im_start|>user\n{stamped}<video>"


def internvl_text(times: Sequence[float]) -> str:
    """Its frames are numbered; ours are named by their time."""
    own = SimpleNamespace(start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=16)
    text = InternVLProcessor.replace_video_token(own, {"pixel_values_videos": [torch.zeros(len(times), 3, 64, 64)]}, 0)
    for number, t in enumerate(times, 1):
        assert f"Frame{number}: " in text
        text = text.replace(f"Frame{number}: ", f"Frame at {t:.1f}s: ")
    return f"<|im_start|>user\n{text}"


def smolvlm_text(times: Sequence[float]) -> str:
    """Its introduction tells the number of frames and the length; ours leaves them out."""
    own = SimpleNamespace(
        image_seq_len=9,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    inputs = {
        "pixel_values": torch.zeros(1, len(times), 3, 48, 48),
        "video_metadata": [SimpleNamespace(fps=2.0, timestamps=list(times), duration=times[-1])],
    }
    text = processing_smolvlm.SmolVLMProcessor.replace_video_token(own, inputs, 0)
    start = f"You are provided the following series of N frames from a 0:00:0{int(times[-1])} [H:MM:SS] video.\n"
    assert text.startswith(start)
    return f"<|im_start|>User: You are provided the following series of frames from a video.\n{text[len(start) :]}"


def of_processor(make: Callable[[], Any], first: Callable[[Any], Any], **call: Any) -> Callable[[np.ndarray], torch.Tensor]:
    """Pixels [3, side, side] of one picture, uint8 [3, h, w], by a PIL image processor."""

    def pixels(picture: np.ndarray) -> torch.Tensor:
        image = Image.fromarray(picture.transpose(1, 2, 0))
        return torch.as_tensor(np.asarray(first(make()(image, return_tensors="pt", **call)["pixel_values"])))

    return pixels


FAMILIES = {
    "llava_onevision": Family(
        llava_text,
        f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        of_processor(
            lambda: LlavaOnevisionImageProcessorPil(
                size={"height": 50, "width": 50}, image_grid_pinpoints=[[50, 50]], **checkpoints.CLIP
            ),
            lambda values: values[0][0],  # the whole picture comes first, then its pieces
        ),
        lambda pixels: {"pixel_values_videos": pixels[None]},
    ),
    "internvl": Family(
        internvl_text,
        f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        of_processor(
            lambda: GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}, **checkpoints.CLIP),
            lambda values: values[0],
            crop_to_patches=False,
        ),
        lambda pixels: {"pixel_values": pixels},
    ),
    "smolvlm": Family(
        smolvlm_text,
        f"{QUESTION}<end_of_utterance>\nAssistant:",
        of_processor(
            lambda: SmolVLMImageProcessorPil(
                size={"longest_edge": 96},
                max_image_size={"longest_edge": 48},
                do_image_splitting=False,
                resample=Image.Resampling.BICUBIC,
                **checkpoints.NORMAL,
            ),
            lambda values: values[0][0],
        ),
        lambda pixels: {"pixel_values": pixels[None]},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(checkpoints, f"save_{name}")(tmp_path_factory.mktemp(name) / "model")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> SquareFramesAdapter:
    return load_adapter(str(folder), device="cpu")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(make_world(seed=3, seconds=6, side=96).frames(2.0))


def runs_of(adapter: SquareFramesAdapter, frames: Sequence[Frame]) -> list[TokenRun]:
    """Sink, chunks in which nothing is dropped, question."""
    runs = [adapter.sink_run()]
    for chunk in chunks_of(frames):
        visual = adapter.embed(adapter.picture(chunk))
        runs.append(adapter.chunk_run(chunk, visual.grid, torch.ones(len(visual.embeds), dtype=torch.bool), visual))
    return [*runs, adapter.question_run(QUESTION)]


def ids_of(adapter: SquareFramesAdapter, runs: Sequence[TokenRun]) -> torch.Tensor:
    """The token ids [S] of runs, read back from their embeddings."""
    table = adapter.model.get_input_embeddings().weight
    ids = []
    for run in runs:
        found = (run.embeds[:, None] == table).all(-1)
        ids.append(torch.where(run.visual_mask, adapter.video_id, found.int().argmax(1)))
        assert bool((found.any(1) | run.visual_mask).all())
    return torch.cat(ids)


@torch.inference_mode()
def test_ids_are_those_of_the_familys_processor(name, adapter, frames, monkeypatch) -> None:
    # The package that spells numbers out is not needed here.
    monkeypatch.setattr(processing_smolvlm, "num2words", lambda number: "N")
    family = FAMILIES[name]
    runs = runs_of(adapter, frames)
    text = family.video_text([frame.pts_seconds for frame in frames]) + family.tail
    assert ids_of(adapter, runs).tolist() == adapter.tokenizer(text, add_special_tokens=False)["input_ids"]
    positions = torch.cat([run.position_ids + start for run, start in zip(runs, starts(runs), strict=True)], dim=1)
    assert positions.tolist() == [list(range(positions.shape[1]))]


def starts(runs: Sequence[TokenRun]) -> list[int]:
    """The position at which each run begins."""
    return np.cumsum([0] + [run.span for run in runs[:-1]]).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@torch.inference_mode()
def test_logits_are_those_of_one_stock_forward(name, folder, frames, dtype: str) -> None:
    adapter = load_adapter(str(folder), dtype=dtype, device="cpu")
    assert isinstance(adapter, SquareFramesAdapter)
    stock = getattr(transformers, adapter.model_class).from_pretrained(
        folder, dtype=adapter.info.dtype, attn_implementation="eager"
    )
    whole = Chunk(0, np.stack([f.data for f in frames]), tuple(f.pts_seconds for f in frames), 0.0, 6.0)
    picture = adapter.picture(whole).double() / 255
    mean, std = (torch.tensor(getattr(adapter.spec, key)).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = ((picture - mean) / std).to(adapter.info.dtype)
    ids = ids_of(adapter, runs_of(adapter, frames))[None]
    expected = stock(input_ids=ids, **FAMILIES[name].inputs(pixels)).logits[0]
    blind = stock(input_ids=ids, **FAMILIES[name].inputs(torch.ones_like(pixels))).logits[0]
    session = fed(adapter, frames)
    context = adapter.new_context(8)
    adapter.append(context, [session.ingest.sink, *session.ingest.window])
    run = adapter.question_run(QUESTION)
    found = adapter.model.lm_head(adapter._forward(context, run))
    off = float((found - expected[-run.num_tokens :]).abs().max())
    assert off <= tolerance(adapter, expected)
    assert off < 1e-3 * float((blind - expected)[-run.num_tokens :].abs().max()), "pixels must matter"


@pytest.mark.parametrize("size", [(96, 96), (240, 135), (100, 300), (50, 61)], ids=str)
def test_pixels_are_those_of_the_familys_image_processor(name, adapter, size: tuple[int, int]) -> None:
    picture = still(*size)
    stock = FAMILIES[name].pixels(picture)
    spec = adapter.spec
    resized = adapter.picture(Chunk(0, picture[None], (0.0,), 0.0, 1.0))
    assert resized.dtype == torch.uint8 and resized.shape == (1, 3, spec.side, spec.side)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    off = ((resized[0] / 255 - mean) / std - stock).abs()
    level = 1 / 255 / min(spec.std)
    # Each of the passes, two or four, rounds to whole levels, and PIL's weights are fixed-point numbers.
    assert off.shape == stock.shape and float(off.max()) <= (2.001 if spec.longest else 1.001) * level
    assert float((off > 0.1 * level).float().mean()) < 0.3


@torch.inference_mode()
def test_a_cell_of_the_picture_is_the_token_in_its_place(adapter, frames) -> None:
    picture = adapter.picture(chunks_of(frames)[0])
    before = adapter.embed(picture)
    slots, rows, columns = before.grid
    for slot, row, column in ((0, 0, 0), (0, rows - 1, 0), (1, 0, columns - 1), (1, 1, 1)):
        changed = picture.clone()
        top, left = round(row * adapter.cell), round(column * adapter.cell)
        bottom, right = round((row + 1) * adapter.cell), round((column + 1) * adapter.cell)
        changed[slot, :, top:bottom, left:right] = 255 - changed[slot, :, top:bottom, left:right]
        moved = (adapter.embed(changed).embeds - before.embeds).norm(dim=1)
        assert int(moved.argmax()) == (slot * rows + row) * columns + column
        others = moved.view(slots, -1)[1 - slot]
        assert float(others.max()) <= 1e-5 * float(moved.max()), "frames do not see each other"


@torch.inference_mode()
def test_dropped_tokens_leave_their_positions(adapter, frames) -> None:
    chunk = chunks_of(frames)[3]
    visual = adapter.embed(adapter.picture(chunk))
    whole = adapter.chunk_run(chunk, visual.grid, torch.ones(len(visual.embeds), dtype=torch.bool), visual)
    keep = torch.rand(len(visual.embeds), generator=torch.Generator().manual_seed(0)) < 0.4
    part = adapter.chunk_run(chunk, visual.grid, keep, visual)
    stays = ~whole.visual_mask
    stays[whole.visual_mask] = keep
    assert torch.equal(part.position_ids, whole.position_ids[:, stays]) and part.span == whole.span
    assert torch.equal(part.embeds, whole.embeds[stays])
    none = adapter.chunk_run(chunk, visual.grid, torch.zeros_like(keep), None)
    assert not none.visual_mask.any() and none.span == whole.span
