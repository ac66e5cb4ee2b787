"""What is known of chunks without loading their KV: their records, and where those of one session are kept."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SHAPE_BYTES = 2
"""A side of a keep mask as stored: uint16."""


class Moment(Protocol):
    """What the timeline draws of a chunk."""

    @property
    def chunk_id(self) -> int: ...
    @property
    def start_seconds(self) -> float: ...
    @property
    def end_seconds(self) -> float: ...
    @property
    def num_seen_tokens(self) -> int: ...
    @property
    def num_kept_tokens(self) -> int: ...


@dataclass(frozen=True)
class ChunkRecord:
    """What the timeline knows of a chunk without loading its KV.

    keep: bool [slots, rows, columns], the cells that were kept. thumbnail: a small JPEG of its first frame.
    """

    chunk_id: int
    start_seconds: float
    end_seconds: float
    last_pts_seconds: float
    num_tokens: int
    keep: np.ndarray
    thumbnail: bytes

    @property
    def num_seen_tokens(self) -> int:
        return self.keep.size

    @property
    def num_kept_tokens(self) -> int:
        return int(self.keep.sum())

    @property
    def drop_ratio(self) -> float:
        return 1 - self.num_kept_tokens / self.num_seen_tokens if self.num_seen_tokens else 0.0


class Records(Protocol):
    """The records of one session, in stream order. Safe to read while one thread adds."""

    def add(self, record: ChunkRecord) -> None: ...

    def get(self, chunk_id: int) -> ChunkRecord | None:
        """One record; None if it is not there (any more)."""

    def recent(self, until_pts_seconds: float, window_seconds: float) -> list[ChunkRecord]:
        """Chunks whose last frame came by `until_pts_seconds` and that may be in the window then, newest first."""

    def moments(self) -> Sequence[Moment]:
        """All of them, for the timeline."""

    def remove(self, chunk_ids: Collection[int]) -> None:
        """Forget records; unknown ids are ignored."""


class PlainRecords:
    """Every record in RAM: for sessions that write nothing to disk."""

    def __init__(self) -> None:
        self._records: dict[int, ChunkRecord] = {}

    def add(self, record: ChunkRecord) -> None:
        self._records[record.chunk_id] = record

    def get(self, chunk_id: int) -> ChunkRecord | None:
        return self._records.get(chunk_id)

    def recent(self, until_pts_seconds: float, window_seconds: float) -> list[ChunkRecord]:
        return in_window(reversed(self._records.values()), until_pts_seconds, window_seconds)

    def moments(self) -> list[ChunkRecord]:
        # No lock: a page that draws this must not wait for the chunk that is being encoded. Copying a dict's values is atomic.
        return list(self._records.values())

    def remove(self, chunk_ids: Collection[int]) -> None:
        for chunk_id in chunk_ids:
            self._records.pop(chunk_id, None)


def in_window(newest_first: Iterable[ChunkRecord], until_pts_seconds: float, window_seconds: float) -> list[ChunkRecord]:
    """The records that were complete at `until_pts_seconds` and reach into the window before it. Looks at no older ones."""
    recent: list[ChunkRecord] = []
    for record in newest_first:
        if record.last_pts_seconds > until_pts_seconds:
            continue
        if recent and record.start_seconds < recent[0].end_seconds - window_seconds - 1e-6:
            break
        recent.append(record)
    return recent


def mask_to_bytes(keep: np.ndarray) -> bytes:
    """A bool mask [slots, rows, columns] as its three sides and its packed bits."""
    return np.array(keep.shape, dtype="<u2").tobytes() + np.packbits(keep).tobytes()


def mask_from_bytes(stored: bytes) -> np.ndarray:
    """bool [slots, rows, columns]. ValueError if `stored` is no mask."""
    stream = io.BytesIO(stored)
    shape = tuple(np.frombuffer(stream.read(3 * SHAPE_BYTES), dtype="<u2").tolist())
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(np.frombuffer(stream.read(), dtype=np.uint8), count=size).astype(bool).reshape(shape)
