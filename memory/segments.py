"""The disk tier: chunks in segment files (safetensors), several chunks to a file, each with a checksum.

A segment is written once, under a temporary name, made durable and then renamed, so that a file with the right name is a
whole file. It is never written into again; it goes when all its chunks are gone, or is rewritten when most of them are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from data.errors import MemoryBankError
from memory.base import Store
from memory.layout import ChunkHead, checksum, parts
from model_adapters.base import ChunkKV

SEGMENT_BYTES = 16 * 2**20
HEADER_BYTES = 1024
"""More than a chunk's entries in a segment's header take up, the first chunk's share of the file's own frame included."""
PART_NAMES = ("keys", "position_ids", "values")


@dataclass(frozen=True)
class StoredChunk:
    """What is known of a chunk without reading it."""

    head: ChunkHead
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

    def __init__(self, folder: Path, capacity_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.capacity_bytes = capacity_bytes
        # Space comes back a segment at a time, so a small budget wants small segments.
        self.segment_bytes = min(segment_bytes, max(1, capacity_bytes // 8))
        self._stored: dict[int, StoredChunk] = {}
        self._pending: dict[int, ChunkKV] = {}
        self._segments: dict[int, Segment] = {}
        self._segment_of: dict[int, int] = {}
        self._next_segment = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = any(folder.glob("*.safetensors"))
        except OSError as error:
            raise MemoryBankError(f"memory folder {folder} cannot be used: {error.strerror}; choose another folder") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise MemoryBankError(f"memory folder {folder} is not writable; choose another folder")
        if taken:
            raise MemoryBankError(f"memory folder {folder} already holds segments; choose an empty folder")

    def put(self, chunk: ChunkKV) -> None:
        # Writing comes first: if it fails, the new chunk has not been taken in and nothing else has changed.
        if self._pending and self.num_pending_bytes + self.footprint(chunk.num_bytes) > self.segment_bytes:
            self.flush()
        chunk = chunk.to("cpu")
        head = ChunkHead.of(chunk)
        self._stored[chunk.chunk_id] = StoredChunk(head, checksum(head, parts(chunk)), chunk.num_bytes)
        self._pending[chunk.chunk_id] = chunk

    def get(self, chunk_id: int, device: torch.device | None = None) -> ChunkKV:
        if chunk_id in self._pending:
            return self._pending[chunk_id].to(device or "cpu")
        stored = self._stored[chunk_id]
        path = self._segments[self._segment_of[chunk_id]].path
        tensors = _read(path, [chunk_id])[chunk_id]
        if checksum(stored.head, tensors) != stored.crc32:
            raise MemoryBankError(f"{path.name}: chunk {chunk_id} is damaged: its checksum does not match; it is left out")
        return stored.head.with_parts(tensors).to(device or "cpu")

    def remove(self, chunk_id: int) -> None:
        del self._stored[chunk_id]
        if self._pending.pop(chunk_id, None) is not None:
            return
        number = self._segment_of.pop(chunk_id)
        segment = self._segments[number]
        segment.live.remove(chunk_id)
        if not segment.live:
            self._delete(number)

    def flush(self) -> None:
        """Write the chunks that wait into a segment of their own. MemoryBankError, with nothing lost, if that fails."""
        if self._pending:
            self._write({chunk_id: parts(chunk) for chunk_id, chunk in self._pending.items()})
            self._pending.clear()

    def reclaim(self) -> bool:
        """Rewrite a segment of which less than half is still wanted. For a moment both files are there."""
        for number, segment in self._segments.items():
            live = sum(self._stored[chunk_id].num_bytes for chunk_id in segment.live)
            if not segment.readable or 2 * live >= segment.num_bytes - HEADER_BYTES * len(segment.live):
                continue
            try:
                tensors = _read(segment.path, sorted(segment.live))
            except MemoryBankError:
                # `get` will report its chunks one by one; here the space is simply not to be had.
                segment.readable = False
                continue
            # Checksums go along unverified: damage stays visible to `get`.
            self._write(tensors)
            self._delete(number)
            return True
        return False

    def chunk_ids(self) -> Collection[int]:
        return self._stored.keys()

    @property
    def num_pending_bytes(self) -> int:
        """Bytes that wait in RAM, headers included."""
        return sum(self.footprint(chunk.num_bytes) for chunk in self._pending.values())

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    @property
    def num_bytes(self) -> int:
        return self.num_pending_bytes + sum(segment.num_bytes for segment in self._segments.values())

    @property
    def num_payload_bytes(self) -> int:
        return sum(stored.num_bytes for stored in self._stored.values())

    def footprint(self, num_bytes: int) -> int:
        return num_bytes + HEADER_BYTES

    def check_integrity(self) -> None:
        live = [chunk_id for segment in self._segments.values() for chunk_id in segment.live]
        assert sorted([*live, *self._pending]) == sorted(self._stored), "disk tier: a chunk is in no segment, or in two"
        assert set(live) == set(self._segment_of), "disk tier: the table of segments disagrees with the segments"
        assert self.num_bytes <= self.capacity_bytes, f"disk tier holds {self.num_bytes} of {self.capacity_bytes} bytes"
        unfinished = sorted(path.name for path in self.folder.glob("*.part"))
        assert not unfinished, f"disk tier left unfinished files: {unfinished}"

    def close(self) -> None:
        for table in (self._stored, self._pending, self._segments, self._segment_of):
            table.clear()

    def _write(self, chunks: dict[int, dict[str, torch.Tensor]]) -> None:
        """A new segment of chunks that `_stored` knows; they belong to it from now on."""
        number, self._next_segment = self._next_segment, self._next_segment + 1
        tensors = {f"{i}.{name}": tensor.contiguous() for i, named in chunks.items() for name, tensor in named.items()}
        about = {str(i): json.dumps([self._stored[i].head.to_json(), self._stored[i].crc32]) for i in chunks}
        path = self.folder / f"segment-{number:08d}.safetensors"
        part = path.with_suffix(".part")
        content = save(tensors, about)
        try:
            try:
                with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(path)
                _sync_folder(self.folder)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise MemoryBankError(
                f"memory folder {self.folder} cannot be written: {error.strerror}; free some space or choose another folder"
            ) from error
        self._segments[number] = Segment(path, len(content), set(chunks))
        self._segment_of.update(dict.fromkeys(chunks, number))

    def _delete(self, number: int) -> None:
        path = self._segments.pop(number).path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MemoryBankError(f"{path} cannot be deleted: {error.strerror}") from error


def _read(path: Path, chunk_ids: Iterable[int]) -> dict[int, dict[str, torch.Tensor]]:
    """The tensors of chunks of one segment by chunk and name, as copies. MemoryBankError if the file cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {i: {name: file.get_tensor(f"{i}.{name}").clone() for name in PART_NAMES} for i in chunk_ids}
    except (OSError, SafetensorError) as error:
        raise MemoryBankError(f"{path.name} cannot be read: {error}; its chunks are left out") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
