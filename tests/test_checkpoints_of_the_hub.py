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
from transformers import InternVLForConditionalGeneration

from data.errors import AdapterError
from model_adapters.check import main as check
from model_adapters.registry import load_adapter


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
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_of_different_checkpoints_are_told(damage, words: str, tmp_path: Path, said) -> None:
    folder = BUILDERS["qwen2_5_vl"](tmp_path / "model")
    damage(folder)
    with pytest.raises(AdapterError) as caught:
        load_adapter(str(folder), device="cpu")
    assert words in str(caught.value) and "\n" not in str(caught.value) and "LOAD REPORT" not in said.text


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
