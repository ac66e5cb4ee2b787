"""A memory folder: manifest, segments and index vectors as one thing that is whole at any moment, also after a crash.

Order of a commit: vectors appended and synced, segment written under a temporary name, synced, renamed, folder synced, then
the rows. What a crash leaves behind the last committed row is a torn tail: it is dropped when the folder is opened.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import MemoryBankError
from memory.codecs import create_codec, decoded
from memory.codecs.native import Native
from memory.files import Fault, no_fault
from memory.labels import Origin, RowLabel, labels_of
from memory.layout import PackedChunk, Packet, pack, unpack
from memory.manifest import Manifest
from memory.reading import Take, fresh
from memory.records import ChunkRecord, mask_to_bytes
from memory.rows import ChunkRow, Gap, Sitting
from memory.segment_file import announce_blocks, read_block, read_blocks, segment_path, write_segment
from memory.stored_vectors import StoredVectors
from memory.thinning import Thinning
from memory.upkeep import keep_quota
from memory.vectors import Summaries, VectorFile
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 2**20
ROW_BYTES = 512
"""What a chunk takes up, about, beside its KV, vector, mask and picture: its row, and its part of the segment's header."""


@dataclass(frozen=True)
class Pending:
    """A chunk that waits to be committed. The chunk's tensors may live on any device."""

    chunk: ChunkKV
    record: ChunkRecord


@dataclass(frozen=True)
class Written:
    """A segment that is there but not named yet, and the rows of its chunks."""

    number: int
    num_bytes: int
    rows: list[ChunkRow]


class StoredMemory:
    """Made by `memory.opening`. Reads from any thread; changes one at a time. Errors are MemoryBankError.

    disk_bytes: quota over segments, vectors and manifest; beyond it old KV thins out in steps (see `memory.thinning`)
    and then goes, which leaves a gap; without `thinning`, the KV of the oldest segments goes at once.
    notices: what was found and mended when it was opened, in words.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        disk_bytes: int,
        codec: str = "native",
        segment_bytes: int = SEGMENT_BYTES,
        thinning: Thinning | None = None,
        fault: Fault = no_fault,
    ) -> None:
        self.folder = folder
        self.codec = create_codec(codec)
        self.manifest = manifest
        self._largest_segment_bytes = segment_bytes
        self.limit(disk_bytes)
        self.thinning = thinning
        self.fault = fault
        self.notices: list[str] = []
        self.on_drop: Callable[[list[int]], None] = lambda chunk_ids: None
        """Hears of chunks whose KV had to go for the quota."""
        self.on_thin: Callable[[list[ChunkKV]], None] = lambda chunks: None
        """Hears of what is left of chunks that were thinned for the quota."""
        self.lock = threading.RLock()
        self.closing = ExitStack()
        self.identity = manifest.identity
        self.vectors = self.vectors_of(manifest.meta("vectors"), manifest.number("num_vectors"))
        if not manifest.write:
            # Whoever writes it may forget, and so replace the file, before this one is asked.
            self.vectors.hold()
        self.segments = manifest.segments()

    def limit(self, disk_bytes: int) -> None:
        """Another quota; the next commit keeps to it."""
        self.disk_bytes = disk_bytes
        self.segment_bytes = min(self._largest_segment_bytes, max(1, disk_bytes // 8))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files that the manifest names, and of its own rows; not of the few MiB that SQLite logs beside it."""
        return sum(num for num, _ in self.segments.values()) + self.vectors.num_bytes + self.manifest.num_bytes

    @property
    def num_segments(self) -> int:
        return len(self.segments)

    def step_of(self, segment: int) -> int:
        """How often the chunks of a segment have been thinned. 0 is whole, or not known: a damaged manifest may name what is
        not there."""
        return max(0, self.segments.get(segment, (0, 0))[1] - 1)

    def bytes_of(self, segments: Sequence[int]) -> np.ndarray:
        """int64: bytes of segments; 0 for one that is not known."""
        return np.array([self.segments.get(number, (0, 0))[0] for number in segments], dtype=np.int64)

    def commit(self, batch: Sequence[Pending], gaps: Sequence[Gap] = ()) -> None:
        """Make chunks durable, all or none of them; of those that the quota has no room for, without their KV."""
        packed = {one.chunk.chunk_id: pack(self.encoded(one.chunk)) for one in batch}
        with self.lock, self.said():
            keep_quota(self, self._bytes_for(batch, packed))
            kept, gone = self._fitting(batch, packed)
            written = None
            if kept:
                self.vectors.append(Summaries.of([one.chunk for one in kept]), self.fault)
                written = self._written({one.chunk.chunk_id: packed[one.chunk.chunk_id] for one in kept}, kept)
            num_vectors = self.vectors.num_records + len(kept)
            with self.manifest.changing() as db:
                self.fault("rows.begun")
                if written:
                    self.manifest.add_segment(db, written.number, written.num_bytes, merged=0)
                    self.manifest.put_rows(db, written.rows)
                self.manifest.put_rows(db, [ChunkRow.without_kv(one.record, time.time()) for one in gone])
                self.manifest.add_gaps(db, gaps)
                self.manifest.add_gaps(db, [Gap(o.record.start_seconds, o.record.end_seconds, "dropped") for o in gone])
                self.manifest.set_meta(db, "num_vectors", num_vectors)
                self.fault("rows.written")
            self.fault("rows.committed")
            self.vectors.num_records = num_vectors
            if written:
                self.segments[written.number] = (written.num_bytes, 0)
            if gone:
                self.on_drop([one.chunk.chunk_id for one in gone])

    def get(self, chunk_id: int) -> ChunkKV:
        """One chunk on the CPU, verified. KeyError if its KV is not stored, MemoryBankError if it is damaged."""
        return decoded(self.packet(chunk_id))

    def packet(self, chunk_id: int) -> Packet:
        """One chunk as it is stored, verified. Errors as in `get`."""
        row = self.manifest.row(chunk_id)
        while True:
            if row is None or row.segment is None:
                raise KeyError(chunk_id)
            path = segment_path(self.folder, row.segment)
            try:
                return unpack(row.layout, read_block(path, row.place), row.crc32)
            except MemoryBankError as error:
                # It may have been moved, or forgotten, between the two reads.
                before, row = row.segment, self.manifest.row(chunk_id)
                if row is not None and row.segment == before:
                    raise MemoryBankError(f"{path.name}: chunk {chunk_id} is damaged: {error}; it is left out") from error

    def packets(self, chunk_ids: Sequence[int], take: Take = fresh) -> dict[int, Packet]:
        """Chunks as they are stored, verified, each segment in as few reads as its chunks allow. What is not stored, or
        cannot be read, is left out: `packet` says why."""
        by_segment: dict[int, list[ChunkRow]] = {}
        for row in self.manifest.rows_of(chunk_ids):
            if isinstance(row, ChunkRow) and row.segment is not None:
                by_segment.setdefault(row.segment, []).append(row)
        found: dict[int, Packet] = {}
        for segment, rows in by_segment.items():
            try:
                blocks = read_blocks(segment_path(self.folder, segment), [row.place for row in rows], take)
                found.update({r.chunk_id: unpack(r.layout, b, r.crc32) for r, b in zip(rows, blocks, strict=True)})
            except MemoryBankError:
                continue
        return found

    def announce(self, chunk_ids: Sequence[int]) -> None:
        """These will be read soon."""
        for segment, places in self.manifest.places(chunk_ids).items():
            announce_blocks(segment_path(self.folder, segment), places)

    def without_vector(self, wanted: np.ndarray, stored: StoredVectors) -> Iterator[ChunkKV]:
        """Those of these chunks (ids int64) that are not among the vectors found for them."""
        for chunk_id in wanted[~np.isin(wanted, stored.chunk_ids)].tolist():
            try:
                yield self.get(chunk_id)
            except (MemoryBankError, KeyError) as error:
                self.notices.append(f"chunk {chunk_id} cannot be found by questions: {error}")

    def begin_sitting(self, sitting: Sitting, gaps: Sequence[Gap]) -> None:
        with self.lock, self.said(), self.manifest.changing() as db:
            self.manifest.add_sitting(db, sitting)
            self.manifest.add_gaps(db, gaps)

    @contextmanager
    def said(self) -> Iterator[None]:
        """Something is written: not into the folder of another memory, and errors of the file system as one line."""
        self.manifest.check_there()
        try:
            yield
        except OSError as error:
            raise MemoryBankError(
                f"memory folder {self.folder} cannot be written: {error.strerror or error};"
                " free some space or choose another folder"
            ) from error

    def close(self) -> None:
        """Idempotent. Lets another writer in."""
        with self.lock:
            self.closing.close()

    def encoded(self, chunk: ChunkKV) -> Packet:
        """A chunk as it is written; as it is, if the codec cannot keep what is in it."""
        try:
            return self.codec.encode(chunk)
        except MemoryBankError as error:
            logger.warning("%s; it is kept as it is", error)
            return Native().encode(chunk)

    def _bytes_for(self, batch: Sequence[Pending], packed: Mapping[int, PackedChunk]) -> int:
        """What these chunks take up, about, in all files."""
        pictures = sum(one.record.keep.size + len(one.record.thumbnail) + ROW_BYTES for one in batch)
        own = [packed[one.chunk.chunk_id] for one in batch]
        return pictures + sum(p.data.numel() + len(p.layout) for p in own) + self.vectors.bytes_of(len(batch))

    def _fitting(
        self, batch: Sequence[Pending], packed: Mapping[int, PackedChunk]
    ) -> tuple[Sequence[Pending], Sequence[Pending]]:
        """The newest chunks for which the quota has room now that nothing else may give way, and the older ones."""
        num_gone = 0
        while num_gone < len(batch) and self.num_bytes + self._bytes_for(batch[num_gone:], packed) > self.disk_bytes:
            num_gone += 1
        return batch[num_gone:], batch[:num_gone]

    def _written(self, packed: dict[int, PackedChunk], batch: Sequence[Pending]) -> Written:
        number, now = self.manifest.number("next_segment"), time.time()
        records: dict[int, ChunkRecord] = {one.chunk.chunk_id: one.record for one in batch}
        about = {i: RowLabel(r.last_pts_seconds, r.num_tokens, mask_to_bytes(r.keep), now) for i, r in records.items()}
        labels = labels_of(Origin(self.identity), about)
        num_bytes, places = write_segment(segment_path(self.folder, number), packed, self.fault, labels)
        rows = [ChunkRow.of(records[i], number, places[i], p, now) for i, p in packed.items()]
        return Written(number, num_bytes, rows)

    def vectors_of(self, file: str, num_records: int) -> VectorFile:
        model = self.identity.model
        return VectorFile(self.folder / file, model["num_layers"], model["num_kv_heads"] * model["head_dim"], num_records)
