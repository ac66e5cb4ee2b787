"""Pixels against the families' own video processors. They are written with torchvision, which is not everywhere: where it is
missing, the same is held against the image processors alone (tests/test_adapters.py)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from families import BUILDERS

from model_adapters.checks import TWO_LEVELS, far_off
from model_adapters.conformance import clip, fitting_clip
from model_adapters.preprocess import video_settings
from model_adapters.registry import load_adapter
from model_adapters.stock import StockAdapter

VIDEO_PROCESSORS = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen2_5_omni_thinker": ("qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_omni_moe_thinker": ("qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLVideoProcessor"),
    "qwen3_vl_moe": ("qwen3_vl", "Qwen3VLVideoProcessor"),
    "llava_onevision": ("llava_onevision", "LlavaOnevisionVideoProcessor"),
    "internvl": ("internvl", "InternVLVideoProcessor"),
    "smolvlm": ("smolvlm", "SmolVLMVideoProcessor"),
    "video_llama_3": ("video_llama_3", "VideoLlama3VideoProcessor"),
}
"""Module below transformers.models, and class. A whole Omni checkpoint is prepared as its thinker is."""
ANY_AREA = {"shortest_edge": 1, "longest_edge": 1 << 30}
"""Processors of patches share an area among a video's frames, a stream cannot: pictures that fit as they are stay so."""


def test_every_family_has_its_video_processor() -> None:
    assert {f for f in BUILDERS if f not in ("qwen2_5_omni", "qwen3_omni_moe")} == set(VIDEO_PROCESSORS)


@pytest.mark.parametrize("family", VIDEO_PROCESSORS)
def test_pixels_are_those_of_the_video_processor(family: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the families' video processors need torchvision", exc_type=ImportError)
    adapter = cast(StockAdapter, load_adapter(str(BUILDERS[family](tmp_path / "model")), device="cpu"))
    module, name = VIDEO_PROCESSORS[family]
    processor: Any = getattr(importlib.import_module(f"transformers.models.{module}.video_processing_{module}"), name)
    settings = {key: value for key, value in video_settings(tmp_path / "model").items() if not key.endswith("_type")}
    in_patches = "patch_size" in settings
    if in_patches:
        settings = {key: value for key, value in settings.items() if key not in ("min_pixels", "max_pixels")}
        settings["size"] = ANY_AREA
    # A picture that fits stays as it is; families of squares resize every picture, as torchvision does.
    for chunk in (fitting_clip(adapter)[0], *([] if in_patches else [clip(90, 130, 1)[0]])):
        made = processor(**settings)(videos=[torch.from_numpy(chunk.frames)], do_sample_frames=False, return_tensors="pt")
        values = made["pixel_values"] if "pixel_values" in made else made["pixel_values_videos"]
        found = adapter.pixels(adapter.picture(chunk)).flatten()
        as_it_was = torch.equal(adapter.picture(chunk), torch.from_numpy(chunk.frames))
        assert far_off(found, values.flatten().to(found)) <= (1e-5 if as_it_was else TWO_LEVELS)
