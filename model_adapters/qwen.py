"""What the Qwen-VL families share: pixels, the call of the vision tower, and two of their three ways to tell the time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from data.frames import Chunk
from model_adapters.base import TokenRun, VisualTokens
from model_adapters.placement import Timed
from model_adapters.preprocess import merged, patched, patchify, resize
from model_adapters.stock import Layout, StockAdapter, joined, shared_out

MROPE_SECTION = (16, 24, 24)
"""Angles for time, rows and columns where a config does not say; Qwen3-VL has others then, of the same sum."""
TRAINED_LENGTH = 32768
"""Qwen2.5-VL and the Omni thinkers were trained on contexts up to this; what their configs allow beyond it is extrapolation."""


class QwenAdapter(StockAdapter):
    """Patches and a grid go in, merged tokens come out, and positions have three axes: time, rows, columns."""

    special_tokens = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    num_axes = 3

    def __init__(self, model: Any, *args: Any) -> None:
        super().__init__(model, *args)
        sections = (model.config.get_text_config().rope_parameters or {}).get("mrope_section", MROPE_SECTION)
        if 2 * sum(sections) != self.info.head_dim:
            raise ValueError(f"mrope_section {sections} does not share out the {self.info.head_dim // 2} angles of a head")

    def picture(self, chunk: Chunk) -> torch.Tensor:
        frames = torch.from_numpy(chunk.frames).to(self.device)
        short = -len(frames) % self.frames_per_slot
        if short:
            frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
        return resize(frames, self.spec)

    def pixels(self, picture: torch.Tensor) -> torch.Tensor:
        return patchify(picture, self.spec, self.model.dtype)[0]

    @torch.inference_mode()
    def embed_many(self, pictures: Sequence[torch.Tensor]) -> list[VisualTokens]:
        patches, grids = patched(pictures, self.spec, self.model.dtype)
        out = self.model.get_video_features(patches, grids)
        levels = getattr(out, "deepstack_features", None)
        deepstack = torch.stack([joined(level) for level in levels]) if levels else None
        return shared_out(joined(out.pooler_output), merged(grids, self.spec.merge_size), deepstack)


class StampedQwenAdapter(QwenAdapter):
    """Time in words: every slot is a video block of its own behind its time stamp."""

    video_part = "<|vision_start|><|video_pad|><|vision_end|>"

    @abstractmethod
    def stamp(self, chunk: Chunk, slot: int) -> str:
        """The words before a slot."""

    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        slots, rows, columns = grid
        start, end = (self.tokenizer.convert_tokens_to_ids(token) for token in self.special_tokens[1:])
        keep = keep.view(slots, rows * columns).cpu()
        layout = Layout(self.num_axes)
        for slot in range(slots):
            layout.text([*self.ids(self.stamp(chunk, slot)), start])
            cells = keep[slot].nonzero().flatten()
            positions = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns])
            layout.visual([self.video_id] * len(cells), positions, max(rows, columns))
            layout.text([end])
        return self.laid_out(layout, keep, visual)


class TimedQwenAdapter(QwenAdapter):
    """Time by position: all chunks are one video block, and axis 0 of their positions grows with the seconds of the stream."""

    video_part = "<|video_pad|>"

    def __init__(self, model: Any, *args: Any) -> None:
        super().__init__(model, *args)
        limit = min(TRAINED_LENGTH, model.config.get_text_config().max_position_embeddings) * 3 // 4
        self.placement = Timed(limit, self.parts)
        self.positions_per_second = self.time_scale(model.config)

    @staticmethod
    def time_scale(config: Any) -> float:
        """Positions per second on axis 0."""
        return config.position_id_per_seconds

    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        slots, rows, columns = grid
        keep = keep.flatten().cpu()
        if not keep.any():
            # A chunk without a token could not be stored, found or moved: its first cell stays.
            keep = torch.arange(len(keep)) == 0
            visual = visual or self.embed(self.picture(chunk))
        first = [chunk.pts_seconds[min(s * self.frames_per_slot, len(chunk.pts_seconds) - 1)] for s in range(slots)]
        times = torch.tensor([self.time_of(seconds) for seconds in first])
        cells = keep.nonzero().flatten()
        slot, cell = cells // (rows * columns), cells % (rows * columns)
        positions = torch.stack([torch.zeros_like(cell), cell // columns, cell % columns])
        layout = Layout(self.num_axes)
        layout.visual([self.video_id] * len(cells), positions, 1)
        run = self.laid_out(layout, keep, visual)
        run.position_ids[0] = times[slot].to(run.position_ids.device)
        return replace(run, span=max(self.parts, self.time_of(chunk.end_seconds) - int(times[0])))

    def time_of(self, seconds: float) -> int:
        """The place of a moment on axis 0, in parts of a position; what is less than a part is left out."""
        return int(seconds * self.positions_per_second * self.parts)
