"""The disk tier: chunks in segment files (safetensors), several chunks to a file, each with a checksum.

A segment is written once, under a temporary name, made durable and then renamed, so that a file with the right name is a
whole file. It is never written into again; it goes when all its chunks are gone, or is rewritten when most of them are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import MemoryBankError
from memory.base import Store, Stored
from memory.codecs import Codec
from memory.codecs.native import Native
from memory.files import make_private
from memory.layout import PackedChunk, Packet, pack, unpack
from memory.reading import Take, fresh
from memory.segment_file import Place, announce_blocks, read_block, read_blocks, segment_path, write_segment
from model_adapters.base import ChunkKV

SEGMENT_BYTES = 16 * 2**20
HEADER_BYTES = 1024
"""More than a chunk's entries in a segment's header take up, the first chunk's share of the file's own frame included."""


@dataclass(frozen=True)
class Written:
    """A chunk in a segment: where it is and how it reads back. num_bytes: of the chunk itself."""

    segment: int
    place: Place
    layout: str
    crc32: int
    num_bytes: int


@dataclass
class Segment:
    """One file and the chunks in it that are still wanted."""

    path: Path
    num_bytes: int
    live: set[int]
    readable: bool = True


class DiskStore(Store):
    """Chunks in segment files of about `segment_bytes`, files 0600. Chunks wait in RAM until a segment is full; what waits
    is counted in `num_bytes` and is at most `segment_bytes` or one chunk. `flush` writes it. `close` leaves the files."""

    def __init__(
        self, folder: Path, capacity_bytes: int, segment_bytes: int = SEGMENT_BYTES, codec: Codec | None = None
    ) -> None:
        self.folder = folder
        self.codec = codec or Native()
        self.capacity_bytes = capacity_bytes
        # Space comes back a segment at a time, so a small budget wants small segments.
        self.segment_bytes = min(segment_bytes, max(1, capacity_bytes // 8))
        self._written: dict[int, Written] = {}
        self._pending: dict[int, Packet] = {}
        self._num_pending_bytes = 0
        self._segments: dict[int, Segment] = {}
        self._next_segment = 0
        make_private(folder)
        if any(folder.glob("*.safetensors")):
            raise MemoryBankError(f"memory folder {folder} already holds segments; choose an empty folder")

    def prepared(self, chunk: ChunkKV) -> Packet:
        return self.codec.encode(chunk)

    def put(self, item: Stored) -> None:
        packet = item if isinstance(item, Packet) else self.prepared(item)
        # Writing comes first: if it fails, the new chunk has not been taken in and nothing else has changed.
        if self._pending and self.num_pending_bytes + self.footprint(packet.num_bytes) > self.segment_bytes:
            self.flush()
        self._wait(packet)

    def stored(self, chunk_id: int) -> Packet:
        if chunk_id in self._pending:
            return self._pending[chunk_id]
        written = self._written[chunk_id]
        path = self._segments[written.segment].path
        block = read_block(path, written.place)
        try:
            return unpack(written.layout, block, written.crc32)
        except MemoryBankError as error:
            raise MemoryBankError(f"{path.name}: chunk {chunk_id} is damaged: {error}; it is left out") from error

    def announce(self, chunk_ids: Collection[int]) -> None:
        for chunk_id in chunk_ids:
            if (written := self._written.get(chunk_id)) is not None:
                announce_blocks(self._segments[written.segment].path, [written.place])

    def gather(self, chunk_ids: Collection[int], take: Take = fresh) -> dict[int, Stored]:
        """Segment by segment, each in as few reads as its chunks allow."""
        by_segment: dict[int, list[int]] = {}
        for chunk_id in chunk_ids:
            if chunk_id in self._written:
                by_segment.setdefault(self._written[chunk_id].segment, []).append(chunk_id)
        found: dict[int, Stored] = {}
        for number, together in by_segment.items():
            written = [self._written[chunk_id] for chunk_id in together]
            try:
                blocks = read_blocks(self._segments[number].path, [one.place for one in written], take)
                found.update({i: unpack(w.layout, b, w.crc32) for i, w, b in zip(together, written, blocks, strict=True)})
            except MemoryBankError:
                # One by one, `stored` says which of them are damaged.
                continue
        return found

    def remove(self, chunk_id: int) -> None:
        if chunk_id in self._pending:
            self._num_pending_bytes -= self.footprint(self._pending.pop(chunk_id).num_bytes)
            return
        self._leave(self._written.pop(chunk_id).segment, chunk_id)

    def replace(self, items: Mapping[int, Stored]) -> None:
        packets = {i: item if isinstance(item, Packet) else self.prepared(item) for i, item in items.items()}
        before = {i: self._written[i].segment for i in packets if i in self._written}
        if before:
            self._write({i: pack(packets[i]) for i in before}, {i: packets[i].num_bytes for i in before})
        for chunk_id, number in before.items():
            self._leave(number, chunk_id)
        for packet in [packet for i, packet in packets.items() if i in self._pending]:
            self._wait(packet)

    def together(self, chunk_id: int) -> Collection[int]:
        written = self._written.get(chunk_id)
        return [chunk_id] if written is None else list(self._segments[written.segment].live)

    def flush(self) -> None:
        """Write the chunks that wait into a segment of their own. MemoryBankError, with nothing lost, if that fails."""
        if self._pending:
            sizes = {chunk_id: packet.num_bytes for chunk_id, packet in self._pending.items()}
            self._write({chunk_id: pack(packet) for chunk_id, packet in self._pending.items()}, sizes)
            self._pending.clear()
            self._num_pending_bytes = 0

    def reclaim(self) -> bool:
        """Rewrite a segment of which less than half is still wanted. For a moment both files are there."""
        for number, segment in self._segments.items():
            kept = {chunk_id: self._written[chunk_id] for chunk_id in sorted(segment.live)}
            live = sum(written.num_bytes for written in kept.values())
            if not segment.readable or 2 * live >= segment.num_bytes - HEADER_BYTES * len(segment.live):
                continue
            try:
                # Checksums go along unverified: damage stays visible to `get`.
                blocks = {i: PackedChunk(w.layout, read_block(segment.path, w.place), w.crc32) for i, w in kept.items()}
            except MemoryBankError:
                # `get` will report its chunks one by one; here the space is simply not to be had.
                segment.readable = False
                continue
            self._write(blocks, {chunk_id: written.num_bytes for chunk_id, written in kept.items()})
            self._delete(number)
            return True
        return False

    def chunk_ids(self) -> Collection[int]:
        return self._written.keys() | self._pending.keys()

    @property
    def num_pending_bytes(self) -> int:
        """Bytes that wait in RAM, headers included."""
        return self._num_pending_bytes

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    @property
    def num_bytes(self) -> int:
        return self.num_pending_bytes + sum(segment.num_bytes for segment in self._segments.values())

    @property
    def num_payload_bytes(self) -> int:
        written = sum(chunk.num_bytes for chunk in self._written.values())
        return written + sum(packet.num_bytes for packet in self._pending.values())

    def footprint(self, num_bytes: int) -> int:
        return num_bytes + HEADER_BYTES

    def check_integrity(self) -> None:
        live = [chunk_id for segment in self._segments.values() for chunk_id in segment.live]
        assert sorted(live) == sorted(self._written), "disk tier: a chunk is in no segment, or in two"
        assert not self._written.keys() & self._pending.keys(), "disk tier: a written chunk also waits to be written"
        waiting = sum(self.footprint(packet.num_bytes) for packet in self._pending.values())
        assert waiting == self._num_pending_bytes, f"disk tier counts {self._num_pending_bytes} bytes that wait, not {waiting}"
        assert self.num_bytes <= self.capacity_bytes, f"disk tier holds {self.num_bytes} of {self.capacity_bytes} bytes"
        unfinished = sorted(path.name for path in self.folder.glob("*.part"))
        assert not unfinished, f"disk tier left unfinished files: {unfinished}"

    def close(self) -> None:
        for table in (self._written, self._pending, self._segments):
            table.clear()
        self._num_pending_bytes = 0

    def _wait(self, packet: Packet) -> None:
        """A packet waits to be written, in the place of one with the same id."""
        before = self._pending.get(packet.chunk_id)
        self._num_pending_bytes += self.footprint(packet.num_bytes) - (self.footprint(before.num_bytes) if before else 0)
        self._pending[packet.chunk_id] = packet

    def _write(self, chunks: dict[int, PackedChunk], sizes: dict[int, int]) -> None:
        """A new segment; the chunks belong to it from now on. sizes: bytes of each chunk itself."""
        number, self._next_segment = self._next_segment, self._next_segment + 1
        path = segment_path(self.folder, number)
        try:
            num_bytes, places = write_segment(path, chunks)
        except OSError as error:
            raise MemoryBankError(
                f"memory folder {self.folder} cannot be written: {error.strerror}; free some space or choose another folder"
            ) from error
        self._segments[number] = Segment(path, num_bytes, set(chunks))
        self._written.update(
            {i: Written(number, places[i], packed.layout, packed.crc32, sizes[i]) for i, packed in chunks.items()}
        )

    def _leave(self, number: int, chunk_id: int) -> None:
        """A chunk is no longer wanted in a segment, which goes with its last one."""
        segment = self._segments[number]
        segment.live.remove(chunk_id)
        if not segment.live:
            self._delete(number)

    def _delete(self, number: int) -> None:
        path = self._segments.pop(number).path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MemoryBankError(f"{path} cannot be deleted: {error.strerror}") from error
