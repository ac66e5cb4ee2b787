"""The rows of a manifest as values, each with a checksum over all of it: SQLite itself does not notice a flipped bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import NamedTuple, overload

import torch
from zlib_ng.zlib_ng import crc32

from data.errors import MemoryBankError
from memory.layout import PackedChunk
from memory.records import ChunkRecord, Moment, mask_from_bytes, mask_to_bytes
from memory.segment_file import Place


@dataclass(frozen=True)
class ChunkRow:
    """One chunk. segment None: its KV is gone, and only time, drop ratio, mask and thumbnail are left.

    keep: see `mask_to_bytes`. layout, crc32: see `memory.layout`; the layout names the codec. stored_unix: wall-clock time.
    """

    chunk_id: int
    start_seconds: float
    end_seconds: float
    last_pts_seconds: float
    num_tokens: int
    num_seen_tokens: int
    num_kept_tokens: int
    keep: bytes
    thumbnail: bytes
    segment: int | None
    offset: int
    num_bytes: int
    layout: str
    crc32: int
    stored_unix: float

    @classmethod
    def of(cls, record: ChunkRecord, segment: int, place: Place, packed: PackedChunk, stored_unix: float) -> ChunkRow:
        return cls(
            record.chunk_id,
            float(record.start_seconds),
            float(record.end_seconds),
            float(record.last_pts_seconds),
            record.num_tokens,
            record.num_seen_tokens,
            record.num_kept_tokens,
            mask_to_bytes(record.keep),
            record.thumbnail,
            segment,
            place.offset,
            place.num_bytes,
            packed.layout,
            packed.crc32,
            stored_unix,
        )

    @classmethod
    def without_kv(cls, record: ChunkRecord, stored_unix: float) -> ChunkRow:
        """Of a chunk of which only time, drop ratio, mask and picture are kept."""
        nothing = PackedChunk("", torch.zeros(0, dtype=torch.uint8), 0)
        return replace(cls.of(record, 0, Place(0, 0), nothing, stored_unix), segment=None)

    @property
    def place(self) -> Place:
        return Place(self.offset, self.num_bytes)

    @property
    def record(self) -> ChunkRecord:
        return ChunkRecord(
            self.chunk_id,
            self.start_seconds,
            self.end_seconds,
            self.last_pts_seconds,
            self.num_tokens,
            mask_from_bytes(self.keep),
            self.thumbnail,
        )

    @property
    def checksum(self) -> int:
        plain = [value for value in astuple(self) if not isinstance(value, bytes)]
        return crc32(self.thumbnail, crc32(self.keep, crc32(json.dumps(plain).encode())))

    def columns(self) -> tuple[object, ...]:
        """The values of CHUNK_COLUMNS."""
        return (*(getattr(self, name) for name in CHUNK_COLUMNS[:-1]), self.checksum)

    def picture_columns(self) -> tuple[object, ...]:
        """The values of PICTURE_COLUMNS."""
        return (self.chunk_id, self.keep, self.thumbnail)

    @classmethod
    def from_columns(cls, values: tuple) -> ChunkRow:
        """MemoryBankError if the row is not as it was written."""
        row = cls(*values[:-1]) if len(values) == len(ROW_COLUMNS) else None
        if row is None or not row._is_typed() or row.checksum != values[-1]:
            raise MemoryBankError(f"the manifest's row of chunk {values[0]!r} is damaged; the chunk is left out")
        return row

    def _is_typed(self) -> bool:
        """A flipped type byte makes SQLite return another type, which the checksum could not even be taken of."""
        return isinstance(self.keep, bytes) and isinstance(self.thumbnail, bytes) and isinstance(self.layout, str)


PICTURE_COLUMNS = ("chunk_id", "keep", "thumbnail")
"""In a table of their own, so that whoever looks through all chunks need not read their pictures."""
ROW_COLUMNS = (*(field.name for field in fields(ChunkRow)), "row_crc32")
CHUNK_COLUMNS = tuple(name for name in ROW_COLUMNS if name not in PICTURE_COLUMNS[1:])


class TimelineMoment(NamedTuple):
    """A chunk as the timeline draws it. Plain, since there may be a hundred thousand."""

    chunk_id: int
    start_seconds: float
    end_seconds: float
    num_seen_tokens: int
    num_kept_tokens: int


class Moments(Sequence[Moment]):
    """Stored chunks and those that are not stored yet, in stream order. Each is made when it is looked at: to make a hundred
    thousand at once keeps Python's garbage collection busy for three times as long as reading them takes."""

    def __init__(self, stored: Sequence[tuple], fresh: Sequence[Moment]) -> None:
        """stored: fields of TimelineMoment."""
        self._stored = stored
        self._fresh = fresh

    def __len__(self) -> int:
        return len(self._stored) + len(self._fresh)

    @overload
    def __getitem__(self, at: int) -> Moment: ...
    @overload
    def __getitem__(self, at: slice) -> list[Moment]: ...
    def __getitem__(self, at: int | slice) -> Moment | list[Moment]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return TimelineMoment._make(self._stored[at]) if at < len(self._stored) else self._fresh[at - len(self._stored)]

    def __iter__(self) -> Iterator[Moment]:
        yield from map(TimelineMoment._make, self._stored)
        yield from self._fresh


@dataclass(frozen=True)
class Gap:
    """A span of the stream without KV, and why: paused, forgotten, dropped, damaged, not written.

    pause_seconds: wall-clock time between two sittings, for reason "paused".
    """

    start_seconds: float
    end_seconds: float
    reason: str
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Sitting:
    """One stretch of watching. offset_seconds: what was added to the source's own pts. source: a label that is safe to show.

    source_key: tells recordings and live places apart, so that they are found again; empty where nothing tells.
    """

    start_seconds: float
    offset_seconds: float
    source: str
    source_key: str
    started_unix: float
