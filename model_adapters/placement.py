"""Which positions the tokens of a context get: chunks one behind the other, or at their own time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass
class Cursor:
    """How far a context has come. next_position: where text goes on, one beyond all that was placed.

    video_start: the position at which the video began, None before its first chunk. video_end: one beyond the last position
    in time of its last chunk, counted from there.
    """

    next_position: int = 0
    video_start: int | None = None
    video_end: int = 0

    def copy(self) -> Cursor:
        return Cursor(self.next_position, self.video_start, self.video_end)


class Placement(ABC):
    """Gives positions to runs and stored chunks as they join a context."""

    @abstractmethod
    def place(self, cursor: Cursor, position_ids: torch.Tensor, span: int, is_video: bool) -> torch.Tensor:
        """Final positions [P, S] of what joins next; moves the cursor. position_ids [P, S] and span are its own."""

    @abstractmethod
    def align(self, cursor: Cursor, ends: list[int], index: int) -> None:
        """Before row `index` is placed on a cursor of its own: rows of different lengths would end at `ends`."""


class Packed(Placement):
    """Everything one behind the other, without gaps. Times are told in words, so positions never grow with the stream."""

    def place(self, cursor: Cursor, position_ids: torch.Tensor, span: int, is_video: bool) -> torch.Tensor:
        placed = position_ids + cursor.next_position
        cursor.next_position += span
        return placed

    def align(self, cursor: Cursor, ends: list[int], index: int) -> None:
        """All rows end at the same position."""
        cursor.next_position += max(ends) - ends[index]


class Timed(Placement):
    """All chunks of a context are one video: axis 0 tells the time, rows and columns start where the video starts.

    position_ids of a chunk hold its time since the beginning of the stream on axis 0 and its rows and columns from 0 on the
    others. Times up to `limit` are kept as they are; a chunk beyond it follows the chunk before it without a gap, since
    positions that the model has not been trained on, and whose angles float32 cannot tell apart, would say less. Text
    follows behind the highest position of the video, as Qwen2.5-VL was trained (and transformers up to 5.2 did). parts: what
    position ids count in, see `DecoderAdapter.parts`; limit: in whole positions.
    """

    def __init__(self, limit: int, parts: int = 1) -> None:
        self.limit = limit * parts
        self.parts = parts

    def place(self, cursor: Cursor, position_ids: torch.Tensor, span: int, is_video: bool) -> torch.Tensor:
        if not is_video:
            placed = position_ids + cursor.next_position
            cursor.next_position += span
            return placed
        if cursor.video_start is None:
            cursor.video_start = cursor.next_position
        time = int(position_ids[0, 0])
        shift = 0 if time + span <= self.limit else min(0, cursor.video_end - time)
        placed = position_ids + cursor.video_start
        placed[0] += shift
        cursor.video_end = max(cursor.video_end, time + shift + span)
        cursor.next_position = max(cursor.next_position, int(placed.max()) + self.parts)
        return placed

    def align(self, cursor: Cursor, ends: list[int], index: int) -> None:
        """Nothing to do: chunks stand at their own time whatever stands before them."""
