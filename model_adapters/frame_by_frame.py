"""Families that see every frame alone: one slot per frame, its time as text before it, one axis of positions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig

from data.frames import Chunk
from model_adapters.base import TokenRun, VisualTokens
from model_adapters.preprocess import colours, normalised, stretched, video_settings
from model_adapters.stock import Layout, StockAdapter, shared_out

MAX_SIDE = 8192
STRATEGIES = ("default", "full")
"""Which of a tower's tokens go on: all but the first, or all."""


@dataclass(frozen=True)
class SquareSpec:
    """Frames stretched to a square of `side` pixels, which the tower turns into `cells` x `cells` tokens.

    longest: where given, frames are first resized to this longer side with their own aspect ratio.
    """

    side: int
    cells: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    longest: int | None = None
    temporal_patch_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.longest is not None and not 1 <= self.longest <= MAX_SIDE:
            raise ValueError(f"its frames are resized to {self.longest:,} pixels; at most {MAX_SIDE:,} are known")

    @property
    def cell(self) -> float:
        """Side of one merged visual token in pixels."""
        return self.side / self.cells


class FrameByFrameAdapter(StockAdapter):
    """Lays out every frame as stamp, visual tokens, closing. Tokens that were dropped leave their positions empty."""

    closing: ClassVar[str] = ""
    """What follows the visual tokens of a frame."""

    @abstractmethod
    def stamp(self, seconds: float, first: bool) -> str:
        """What stands before the visual tokens of a frame. first: nothing of the stream stands before it."""

    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        slots, rows, columns = grid
        keep = keep.view(slots, rows * columns).cpu()
        closing = self.ids(self.closing) if self.closing else []
        layout = Layout(self.num_axes)
        for slot in range(slots):
            layout.text(self.ids(self.stamp(self.slot_seconds(chunk, slot), first=chunk.chunk_id == 0 and slot == 0)))
            cells = keep[slot].nonzero().flatten()
            layout.visual([self.video_id] * len(cells), cells[None], rows * columns)
            layout.text(closing)
        return self.laid_out(layout, keep, visual)


class SquareFramesAdapter(FrameByFrameAdapter):
    """Families whose tower takes square frames of one size."""

    @classmethod
    def read_pixels(cls, folder: Path) -> SquareSpec:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        strategy = getattr(config, "vision_feature_select_strategy", STRATEGIES[0])
        if strategy not in STRATEGIES:
            raise ValueError(f"its vision_feature_select_strategy is {strategy!r}; known: {', '.join(STRATEGIES)}")
        settings = cls.frame_settings(folder, config)
        side, longest = cls.sides(settings)
        return SquareSpec(side, cls.cells(config, side), *colours(settings), longest)

    @classmethod
    def frame_settings(cls, folder: Path, config: Any) -> dict[str, Any]:
        """How this checkpoint prepares frames. config: the model's."""
        return video_settings(folder)

    @classmethod
    def sides(cls, settings: dict[str, Any]) -> tuple[int, int | None]:
        """(side of the square, longer side that frames are resized to before) from the processor's settings."""
        height, width = settings["size"]["height"], settings["size"]["width"]
        if height != width:
            raise ValueError(f"its frames are {width}x{height}; only square frames are known for this family")
        return height, None

    @classmethod
    @abstractmethod
    def cells(cls, config: Any, side: int) -> int:
        """Visual tokens along one side of a frame."""

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised frames [T, 3, side, side] to visual tokens [T * cells * cells, D], by the model's own method."""

    def picture(self, chunk: Chunk) -> torch.Tensor:
        frames = torch.from_numpy(chunk.frames).to(self.device)
        spec = self.spec
        if spec.longest is not None:
            frames = stretched(frames, *within(frames.shape[-2], frames.shape[-1], spec.longest))
        return stretched(frames, spec.side, spec.side)

    def pixels(self, picture: torch.Tensor) -> torch.Tensor:
        return normalised(picture, self.spec.mean, self.spec.std).to(self.model.dtype)

    @torch.inference_mode()
    def embed_many(self, pictures: Sequence[torch.Tensor]) -> list[VisualTokens]:
        features = self.features(torch.cat([self.pixels(picture) for picture in pictures]))
        return shared_out(features, [(len(picture), self.spec.cells, self.spec.cells) for picture in pictures])


def within(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the longer side `longest` and the shorter one even, at the same aspect ratio."""
    if width >= height:
        short = int(longest / (width / height))
        return max(short + short % 2, 1), longest
    short = int(longest * (width / height))
    return longest, max(short + short % 2, 1)


def whole(cells: float, side: int) -> int:
    """Visual tokens along one side of a frame. Raises ValueError where the processor's frames do not fit the tower."""
    if cells < 1 or cells != int(cells):
        raise ValueError(f"its processor makes frames of {side} pixels a side, which are no whole number of tokens")
    return int(cells)
