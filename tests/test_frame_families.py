"""Families that see every frame alone: which token stands for which part of the picture, and what their processors count.

Ids, positions, pixels and logits against their processors and stock forwards: tests/test_adapters.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import pytest
import torch
from families import BUILDERS
from test_exactness import chunks_of
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from data.errors import AdapterError
from data.frames import Frame
from data.world import make_world
from model_adapters.frame_by_frame import FrameByFrameAdapter, within
from model_adapters.registry import load_adapter


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(make_world(seed=3, seconds=6, side=96).frames(2.0))


@pytest.fixture(scope="module", params=["llava_onevision", "internvl", "smolvlm", "video_llama_3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> FrameByFrameAdapter:
    return load_adapter(str(folder), device="cpu")  # type: ignore[return-value]


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


def test_only_the_first_frame_of_a_stream_has_nothing_before_it(adapter, frames) -> None:
    first, second = (adapter.stamp(7.0, first=first) for first in (True, False))
    said = [adapter.tokenizer.decode(adapter.ids(text)) for text in (first, second)]
    assert said == [first, second]
    if adapter.info.family != "llava_onevision":
        assert first != second and {first.strip(",\n"), second.strip(",\n")} == {first.strip(",\n")}


def test_llava_onevision_has_as_many_tokens_as_its_processor_counts() -> None:
    """The placeholders of a whole video: pooled frames, and one newline behind all of them."""
    for side, patch, cells in ((384, 14, 14), (50, 10, 3)):
        own: Any = SimpleNamespace(num_image_tokens=(side // patch) ** 2, video_token="<video>")
        given = {"pixel_values_videos": [torch.zeros(4, 3, side, side)]}
        assert LlavaOnevisionProcessor.replace_video_token(own, given, 0) == "<video>" * (4 * cells**2 + 1)


@pytest.mark.parametrize("size,expected", [((480, 640), (384, 512)), ((1080, 1920), (288, 512)), ((300, 100), (512, 170))])
def test_the_longer_side_is_given_and_the_shorter_one_even(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert within(*size, 512) == expected


def test_frames_of_one_size_take_no_other_area(tmp_path) -> None:
    folder = checkpoints.save_internvl(tmp_path / "model")
    with pytest.raises(AdapterError, match="one size"):
        load_adapter(str(folder), device="cpu", max_pixels=4096)
