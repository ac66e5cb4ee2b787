"""What checkpoints on the hub have and small random ones lack: configs as older and newer releases write them, settings of
generation, processors in one joint file. Each is held against the same weights saved plainly, or against stock transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CLIP, NORMAL, save_smolvlm
from families import BUILDERS
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from data.errors import AdapterError
from model_adapters.budget import estimate
from model_adapters.check import main as check
from model_adapters.loading import find_checkpoint
from model_adapters.registry import FAMILIES, load_adapter, memory_needed
from model_adapters.weights import SINGLE


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_dynamic_angles_are_the_plain_ones_up_to_the_trained_length(tmp_path: Path, caplog) -> None:
    """InternVL3 has them; stock transformers, which changes its angles beyond that length, says the same within it."""
    folder = BUILDERS["internvl"](tmp_path / "model")

    def as_published(config: dict[str, Any]) -> None:
        text = config["text_config"]
        del text["rope_parameters"]
        text |= {"rope_theta": 1e4, "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}}
        text |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 70}

    changed(folder / "config.json", as_published)
    stock = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    assert stock.model.language_model.rotary_emb.rope_type == "dynamic"
    with caplog.at_level(logging.WARNING):
        adapter: Any = load_adapter(str(folder), device="cpu")
    assert "rope_type dynamic: beyond 32,768 positions" in caplog.text
    ids = adapter.ids("Frame at 0.5s: when did the red circle appear ? " * 40)
    with torch.inference_mode():
        expected = stock(input_ids=torch.tensor([ids])).logits[0]
    found = adapter.logits(adapter.new_context(8), adapter.plain_run("Frame at 0.5s: when did the red circle appear ? " * 40))
    assert len(ids) > 400 and float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert check([str(folder)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_an_older_release_of_a_qwen_checkpoint_conforms(family: str, tmp_path: Path) -> None:
    """A flat config, bounds of area without a size, a template in two places, several ends, and a penalty of repetition."""
    folder = BUILDERS[family](tmp_path / "model")

    def flat(config: dict[str, Any]) -> None:
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text = {name: value for name, value in text.items() if name not in ("layer_types", "model_type", "dtype")}
        text |= {"rope_theta": rope["rope_theta"], "torch_dtype": "float32"}
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        text |= {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
        whole = {**text, **{name: value for name, value in config.items() if name != "dtype"}}
        config.clear()
        config.update(whole)

    def bounds(pixels: dict[str, Any]) -> None:
        size = pixels.pop("size")
        pixels |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

    def sampling(generation: dict[str, Any]) -> None:
        generation |= {"do_sample": True, "repetition_penalty": 1.5, "temperature": 1e-6, "top_p": 0.8}
        generation["eos_token_id"] = [generation["eos_token_id"], 0]

    changed(folder / "config.json", flat)
    changed(folder / "preprocessor_config.json", bounds)
    changed(folder / "generation_config.json", sampling)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    changed(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert check([str(folder)]) == 0


def test_a_thinking_checkpoint_answers_at_once(tmp_path: Path) -> None:
    """Its template opens a thought, in which neither a short answer nor a yes or no would be found."""
    folder = BUILDERS["qwen3_vl"](tmp_path / "model")
    template = folder / "chat_template.jinja"
    opened = template.read_text().replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    assert opened != template.read_text()
    template.write_text(opened)
    adapter: Any = load_adapter(str(folder), device="cpu")
    assert adapter.tail.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "think" not in adapter.middle + adapter.between, "an earlier answer comes without one"
    assert check([str(folder)]) == 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_processors_in_one_joint_file_are_read(family: str, tmp_path: Path) -> None:
    """As transformers 5 saves them; what lies beside it from before is not looked at, as transformers does not either."""
    folder = BUILDERS[family](tmp_path / "model")
    alone = folder / "preprocessor_config.json"
    own = json.loads(alone.read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": own}))
    expected = load_adapter(str(folder), device="cpu").spec  # type: ignore[attr-defined]
    alone.write_text(json.dumps(own | {"image_mean": [0.0, 0.0, 0.0]}))
    assert load_adapter(str(folder), device="cpu").spec == expected  # type: ignore[attr-defined]
    alone.unlink()
    assert load_adapter(str(folder), device="cpu").spec == expected  # type: ignore[attr-defined]


def test_a_window_that_no_layer_has_is_no_hindrance(tmp_path: Path) -> None:
    """Switched on from a layer on that the model does not reach."""
    folder = BUILDERS["qwen2_5_vl"](tmp_path / "model")

    def beyond(config: dict[str, Any]) -> None:
        del config["text_config"]["layer_types"]
        config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}

    changed(folder / "config.json", beyond)
    assert load_adapter(str(folder), device="cpu").info.num_layers == 3


# What does not belong together is one line, and transformers' own table of weights stays unsaid


def fewer_layers(folder: Path) -> None:
    changed(folder / "config.json", lambda config: config["text_config"].update(num_hidden_layers=2, layer_types=None))


def other_shape(folder: Path) -> None:
    changed(folder / "config.json", lambda config: config["text_config"].update(intermediate_size=100))


def other_patches(folder: Path) -> None:
    changed(folder / "preprocessor_config.json", lambda pixels: pixels.update(patch_size=16))


def no_settings(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("[]")


def no_heads(folder: Path) -> None:
    changed(folder / "config.json", lambda config: config["text_config"].update(num_attention_heads=0))


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def torn_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def fewer_tokens(folder: Path) -> None:
    """An embedding that ends at the tokenizer's last token."""
    last = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|video_pad|>")
    weights = load_file(folder / SINGLE)
    changed(folder / "config.json", lambda config: config["text_config"].update(vocab_size=last))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:last].clone()
    save_file(weights, folder / SINGLE, {"format": "pt"})


def a_field_less(folder: Path) -> None:
    changed(folder / "preprocessor_config.json", lambda pixels: pixels.pop("merge_size"))


def adapter_alone(folder: Path) -> None:
    """As PEFT saves it, with or without the config of the whole model beside it."""
    (folder / SINGLE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/model"}))
    (folder / "config.json").unlink()


def adapter_with_config(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    adapter_alone(folder)
    (folder / "config.json").write_text(config)


def gguf(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-Q4_K_M.gguf")


def index_of_pickles(folder: Path) -> None:
    """What the hub gives of a sharded checkpoint of old, whose shards are not fetched."""
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")


@pytest.fixture
def said(caplog) -> Iterator[Any]:
    """What transformers says, too, which keeps its own log."""
    own = logging.getLogger("transformers")
    own.addHandler(caplog.handler)
    yield caplog
    own.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    "damage,words",
    [
        (
            other_shape,
            "9 weights of another shape than its config.json says, model.language_model.layers.0.mlp.down_proj.weight",
        ),
        (other_patches, "has patch_size 16, and its config.json 14"),
        (no_settings, "the settings of its image_processor are no JSON object"),
        (no_heads, "describes no model that can be loaded"),
        (no_template, "has no chat template"),
        (torn_tokenizer, "the tokenizer or the chat template of"),
        (fewer_tokens, "gives <|video_pad|> a number beyond the 262 tokens of its model"),
        (a_field_less, "its files lack 'merge_size'"),
        (adapter_alone, "merge it into its base model"),
        (adapter_with_config, "merge it into its base model"),
        (gguf, "model-Q4_K_M.gguf: GGUF files are not read"),
        (index_of_pickles, "can run code"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_of_different_checkpoints_are_told(damage, words: str, tmp_path: Path, said) -> None:
    folder = BUILDERS["qwen2_5_vl"](tmp_path / "model")
    damage(folder)
    with pytest.raises(AdapterError) as caught:
        load_adapter(str(folder), device="cpu")
    assert words in str(caught.value) and "\n" not in str(caught.value) and "LOAD REPORT" not in said.text


@pytest.mark.parametrize(
    "family,file,path,value,words",
    [
        ("qwen3_vl", "preprocessor_config.json", "image_std", [], "are not those of three colours"),
        ("qwen2_vl", "preprocessor_config.json", "image_mean", [0.5, 0.5], "are not those of three colours"),
        ("llava_onevision", "video_preprocessor_config.json", "image_std", [0.5, 0.5, 0.0], "are not those of three colours"),
        ("video_llama_3", "video_preprocessor_config.json", "image_mean", [0.5], "are not those of three colours"),
        ("video_llama_3", "video_preprocessor_config.json", "merge_size", -1, "none can be less than 1"),
        ("smolvlm", "preprocessor_config.json", "video_sampling.video_size.longest_edge", 10**12, "at most 8,192 are known"),
        ("internvl", "config.json", "vision_feature_select_strategy", "some", "known: default, full"),
        ("qwen2_vl", "config.json", "text_config.rope_parameters", None, "does not share out the 8 angles of a head"),
        (
            "qwen3_omni_moe_thinker",
            "config.json",
            "text_config.num_hidden_layers",
            -1,
            "no model that can be loaded: -1 layers",
        ),
        ("qwen2_5_vl", "config.json", "vision_config.depth", 10**12, "1,000,000,000,000 layers"),
        ("llava_onevision", "config.json", "vision_config.num_hidden_layers", 0, "no model that can be loaded: 0 layers"),
        ("smolvlm", "config.json", "model_type", [], "is of the family '[]', which is not known here"),
        ("qwen3_vl", "tokenizer_config.json", "model_max_length", "x", "the tokenizer or the chat template of"),
    ],
)
def test_settings_without_sense_are_told(family: str, file: str, path: str, value: Any, words: str, tmp_path: Path) -> None:
    folder = BUILDERS[family](tmp_path / "model")
    *parts, last = path.split(".")

    def change(config: dict[str, Any]) -> None:
        for part in parts:
            config = config[part]
        assert last in config
        config[last] = value

    changed(folder / file, change)
    with pytest.raises(AdapterError) as caught:
        load_adapter(str(folder), device="cpu")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_frames_that_the_tower_cannot_cut_are_told(tmp_path: Path) -> None:
    for family, side in (("internvl", 72), ("llava_onevision", 60)):
        folder = BUILDERS[family](tmp_path / family)
        for name in ("video_preprocessor_config.json", "processor_config.json"):
            if (folder / name).is_file():
                text = (folder / name).read_text()
                (folder / name).write_text(text.replace("64}", f"{side}}}").replace("64,", f"{side},").replace("50", str(side)))
        with pytest.raises(AdapterError, match=f"frames of {side} pixels a side"):
            load_adapter(str(folder), device="cpu")


def test_weights_without_a_place_are_told(tmp_path: Path, said) -> None:
    """A config with fewer layers than the weights have; not the parts of an Omni checkpoint that are left out on purpose."""
    folder = BUILDERS["qwen2_5_vl"](tmp_path / "model")
    fewer_layers(folder)
    with said.at_level(logging.WARNING):
        assert load_adapter(str(folder), device="cpu").info.num_layers == 2
    assert "holds 12 weights that its config.json has no place for" in said.text and "LOAD REPORT" not in said.text
    said.clear()
    load_adapter(str(BUILDERS["qwen2_5_omni"](tmp_path / "omni")), device="cpu")
    assert "no place for" not in said.text


# Frames as published checkpoints have them


@pytest.mark.slow
def test_frames_that_are_no_whole_number_of_patches_lose_their_rim(tmp_path: Path) -> None:
    """SmolVLM2-2.2B: 384 pixels are 27 patches of 14 and six pixels more; 27 are 9 tokens of 3."""
    assert check([str(save_smolvlm(tmp_path / "model", image_size=56, patch_size=9, scale_factor=3))]) == 0


@pytest.mark.slow
def test_a_video_processor_that_does_not_fit_its_tower_gives_way_to_the_image_processor(tmp_path: Path, caplog) -> None:
    """InternVL3.5: 384 pixels and CLIP's mean for a tower of 448, 27 patches that cannot be put together two by two."""
    folder = BUILDERS["internvl"](tmp_path / "model")
    (folder / "processor_config.json").unlink()
    pictures = {"image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 64, "width": 64}, **NORMAL}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    video = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": 56, "width": 56}, **CLIP}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    spec = load_adapter(str(folder), device="cpu").spec  # type: ignore[attr-defined]
    assert (spec.side, spec.cells, spec.mean) == (64, 4, (0.5, 0.5, 0.5)) and "frames of 56 pixels" in caplog.text
    assert check([str(folder)]) == 0
    # One that fits goes first, whatever pictures are like.
    video["size"] = {"height": 48, "width": 48}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    spec = load_adapter(str(folder), device="cpu").spec  # type: ignore[attr-defined]
    assert (spec.side, spec.cells) == (48, 3)


# Quantised weights


def test_quantised_weights_take_what_they_take_on_disk(tmp_path: Path) -> None:
    """Eight numbers of four bits in each whole number, as AWQ packs them, whatever else is loaded in."""
    folder = BUILDERS["qwen2_5_vl"](tmp_path / "model")
    plain = memory_needed(str(folder), dtype="float32")
    weights = load_file(folder / SINGLE)
    for name in [name for name in weights if name.startswith("model.layers") and name.endswith("proj.weight")]:
        packed = weights.pop(name)
        weights[name.replace("weight", "qweight")] = torch.zeros(packed.shape[1], packed.shape[0] // 8, dtype=torch.int32)
    save_file(weights, folder / SINGLE, {"format": "pt"})
    quantised = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    changed(folder / "config.json", lambda config: config.update(quantization_config=quantised))
    for dtype in ("auto", "float32"):
        needed = memory_needed(str(folder), dtype=dtype)
        assert needed.weight_bytes == sum(weight.nbytes for weight in weights.values())
        assert needed.num_parameters == plain.num_parameters, "not of packed numbers"
    before_it_is_fetched = estimate(find_checkpoint(str(folder), FAMILIES), torch.float32, "cpu")
    assert before_it_is_fetched.weight_bytes < needed.weight_bytes, "what may fit is fetched"
    assert before_it_is_fetched.kv_bytes_per_token == plain.kv_bytes_per_token


@pytest.mark.skipif(torch.cuda.is_available(), reason="FP8 stays as it is on a GPU")
def test_weights_in_fp8_are_widened_on_the_cpu(tmp_path: Path) -> None:
    folder = BUILDERS["qwen3_vl"](tmp_path / "model")
    plain: Any = load_adapter(str(folder), device="cpu")
    weights = load_file(folder / SINGLE)
    for name in [name for name in weights if "language_model.layers" in name and name.endswith("proj.weight")]:
        scale = weights[name].abs().max() / 448
        blocks = [-(-size // 128) for size in weights[name].shape]
        weights |= {name: (weights[name] / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.expand(blocks).clone()}
    save_file(weights, folder / SINGLE, {"format": "pt"})
    quantised = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    changed(folder / "config.json", lambda config: config.update(quantization_config=quantised))
    for dtype in ("auto", "float32"):
        adapter: Any = load_adapter(str(folder), device="cpu", dtype=dtype)
        assert memory_needed(str(folder), dtype=dtype).weight_bytes == adapter.weight_bytes
    for ours, theirs in zip(adapter.model.parameters(), plain.model.parameters(), strict=True):
        assert ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=0.07, atol=0.01)
