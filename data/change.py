"""What changed between pictures, cell by cell: the pixel side of differential token dropping.

Idea: TimeChat-Online's pixel-level differential token drop (arXiv 2504.17343); the last-kept reference, which bounds
slow drift, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


def num_cells(picture: torch.Tensor, cell: float) -> tuple[int, int]:
    """(rows, columns) of cells of this side on a picture [..., h, w]. The side need not be a whole number of pixels."""
    return round(picture.shape[-2] / cell), round(picture.shape[-1] / cell)


def cell_change(picture: torch.Tensor, reference: torch.Tensor, cell: float) -> torch.Tensor:
    """Mean absolute difference per cell, in [0, 1].

    picture, reference: uint8 [T, 3, h, w]. Returns float32 [rows, columns]; pixels on a border count for both cells.
    """
    difference = (picture.float() - reference.float()).abs_().mean(dim=(0, 1)) / 255.0
    return F.adaptive_avg_pool2d(difference[None], num_cells(picture, cell))[0]


@dataclass
class ChangeDetector:
    """Compares every picture with a reference, cell by cell, and tells which cells changed.

    reference "last_kept": a cell is compared with the picture in which it was last kept, so slow drift adds up until it
    is kept. "previous": with the picture before, as published.
    """

    cell: float
    threshold: float
    reference: str = "last_kept"
    held: torch.Tensor | None = None
    """The reference, uint8 [T, 3, h, w]."""

    def change(self, picture: torch.Tensor) -> torch.Tensor:
        """float32 [rows, columns]: change against the reference; all ones where there is none to compare with."""
        if self.held is None or self.held.shape[1:] != picture.shape[1:]:
            return torch.ones(num_cells(picture, self.cell), device=picture.device)
        held, picture = _same_length(self.held, picture)
        return cell_change(picture, held, self.cell)

    def keep(self, picture: torch.Tensor, whole: bool = False) -> torch.Tensor:
        """bool [rows, columns]: the cells to keep. Updates the reference. `whole` keeps every cell."""
        change = self.change(picture)
        kept = torch.ones_like(change, dtype=torch.bool) if whole else change > self.threshold
        self.update(picture, kept)
        return kept

    def update(self, picture: torch.Tensor, kept: torch.Tensor) -> None:
        """Remember `picture` [T, 3, h, w]: everywhere ("previous"), or in the `kept` cells only ("last_kept")."""
        if self.reference == "previous" or self.held is None or self.held.shape[1:] != picture.shape[1:]:
            self.held = picture.clone()
            return
        held, picture = _same_length(self.held, picture)
        (rows, columns), (height, width) = kept.shape, picture.shape[-2:]
        down = torch.arange(height, device=kept.device) * rows // height
        across = torch.arange(width, device=kept.device) * columns // width
        pixels = kept[down][:, across]
        self.held = torch.where(pixels, picture, held)


def _same_length(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the shorter of two [T, ...] with repeats of its last picture."""
    length = max(len(a), len(b))
    return _stretch(a, length), _stretch(b, length)


def _stretch(a: torch.Tensor, length: int) -> torch.Tensor:
    return a if len(a) == length else torch.cat([a, a[-1:].expand(length - len(a), *a.shape[1:])])
