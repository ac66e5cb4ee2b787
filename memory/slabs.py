"""A pool of big byte slabs: a few long allocations that chunks share, instead of three small ones for every chunk.

Slabs are allocated when they are needed and held until `close`: page-locked memory is dear to get and stays put.
A block of bytes lies in one piece where a free piece is long enough, else in as few pieces as possible, so that space is
never out of reach because it is scattered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from memory.layout import ALIGNMENT, aligned

SLAB_BYTES = 16 * 2**20


@dataclass(frozen=True, order=True)
class Extent:
    """Bytes [start, end) of one slab."""

    slab: int
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


class SlabPool:
    """Hands out extents of slabs and takes them back. `capacity_bytes` bounds the slabs held, used or not."""

    def __init__(self, capacity_bytes: int, slab_bytes: int = SLAB_BYTES, pin: bool = False) -> None:
        self.capacity_bytes = capacity_bytes // ALIGNMENT * ALIGNMENT
        self.slab_bytes = max(ALIGNMENT, aligned(slab_bytes))
        self.pin = pin
        self._slabs: list[torch.Tensor] = []
        self._free: list[Extent] = []
        """Sorted; neighbours in one slab are always merged."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all slabs held."""
        return sum(slab.numel() for slab in self._slabs)

    @property
    def num_free_bytes(self) -> int:
        """Bytes that can be handed out: free pieces and slabs not allocated yet."""
        return self.capacity_bytes - self.num_bytes + sum(extent.num_bytes for extent in self._free)

    def allocate(self, num_bytes: int) -> list[Extent]:
        """Extents of `num_bytes` in all, a multiple of ALIGNMENT. The caller has looked at `num_free_bytes`."""
        if num_bytes % ALIGNMENT or num_bytes > self.num_free_bytes:
            raise ValueError(f"{num_bytes} bytes asked of a pool with {self.num_free_bytes} free, in steps of {ALIGNMENT}")
        while sum(extent.num_bytes for extent in self._free) < num_bytes:
            self._grow()
        taken: list[Extent] = []
        while num_bytes > 0:
            whole = next((extent for extent in self._free if extent.num_bytes >= num_bytes), None)
            piece = whole or max(self._free, key=lambda extent: extent.num_bytes)
            self._free.remove(piece)
            cut = min(piece.end, piece.start + num_bytes)
            if cut < piece.end:
                self._release(Extent(piece.slab, cut, piece.end))
            taken.append(Extent(piece.slab, piece.start, cut))
            num_bytes -= cut - piece.start
        return taken

    def free(self, extents: Iterable[Extent]) -> None:
        """Take extents back."""
        for extent in extents:
            self._release(extent)

    def view(self, extent: Extent) -> torch.Tensor:
        """uint8 [num_bytes]: the extent's memory itself."""
        return self._slabs[extent.slab][extent.start : extent.end]

    def close(self) -> None:
        self._slabs, self._free = [], []

    def check_integrity(self, used: Iterable[Extent]) -> None:
        """AssertionError if `used` and the free pieces do not tile the slabs exactly, or the budget is exceeded."""
        assert self.num_bytes <= self.capacity_bytes, f"slabs hold {self.num_bytes} of {self.capacity_bytes} bytes"
        tiles = sorted([*used, *self._free])
        for number, slab in enumerate(self._slabs):
            at = 0
            for tile in (tile for tile in tiles if tile.slab == number):
                assert tile.start == at, f"slab {number}: a piece starts at {tile.start}, the one before it ends at {at}"
                at = tile.end
            assert at == slab.numel(), f"slab {number}: pieces cover {at} of {slab.numel()} bytes"
        for left, right in zip(self._free, self._free[1:], strict=False):
            assert left.slab != right.slab or left.end < right.start, f"free pieces not merged: {left}, {right}"

    def _grow(self) -> None:
        num_bytes = min(self.slab_bytes, self.capacity_bytes - self.num_bytes)
        self._slabs.append(torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.pin))
        self._release(Extent(len(self._slabs) - 1, 0, num_bytes))

    def _release(self, extent: Extent) -> None:
        at = bisect_left(self._free, extent)
        if at < len(self._free) and (self._free[at].slab, self._free[at].start) == (extent.slab, extent.end):
            extent = Extent(extent.slab, extent.start, self._free.pop(at).end)
        if at > 0 and (self._free[at - 1].slab, self._free[at - 1].end) == (extent.slab, extent.start):
            at -= 1
            extent = Extent(extent.slab, self._free.pop(at).start, extent.end)
        self._free.insert(at, extent)
