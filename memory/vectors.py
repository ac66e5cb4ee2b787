"""The index vectors of a stored memory: the mean key of every chunk, in one append-only file with a checksum per record."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from zlib_ng.zlib_ng import crc32

from memory.files import PRIVATE_FILE, Fault, no_fault, sync_folder, write_whole
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)

VECTORS_NAME = re.compile(r"vectors-\d{4,}\.f32")
BLOCK_BYTES = 4 * 2**20
"""Read and verified at a time: RAM does not grow with the file, and what was read is still in the cache when it is searched."""


def mean_key(chunk: ChunkKV) -> torch.Tensor:
    """float32 [layers, kv_heads * head_dim]: the mean un-rotated key of a chunk's tokens; zeros for a chunk without any."""
    tokens = chunk.keys.float().permute(2, 0, 1, 3).flatten(1)
    mean = tokens.mean(0) if len(tokens) else tokens.new_zeros(tokens.shape[1])
    return mean.view(chunk.keys.shape[0], -1)


@dataclass(frozen=True)
class Summaries:
    """What a retriever needs of stored chunks. chunk_ids: int64 [n]. spans: float64 [n, 2], seconds. num_tokens: int64 [n].

    mean_keys: float32 [n, layers, kv_heads * head_dim].
    """

    chunk_ids: np.ndarray
    spans: np.ndarray
    num_tokens: np.ndarray
    mean_keys: np.ndarray

    @classmethod
    def of(cls, chunks: Sequence[ChunkKV]) -> Summaries:
        """What a file would hold of these chunks; at least one."""
        return cls(
            np.array([chunk.chunk_id for chunk in chunks], dtype=np.int64),
            np.array([(chunk.start_seconds, chunk.end_seconds) for chunk in chunks]).reshape(-1, 2),
            np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64),
            torch.stack([mean_key(chunk) for chunk in chunks]).cpu().numpy(),
        )

    def __len__(self) -> int:
        return len(self.chunk_ids)


def generation_of(path: Path) -> int:
    """The number in the name of a file of vectors: each rewrite has the next one."""
    return int(path.stem.partition("-")[2])


def vectors_in(folder: Path) -> list[Path]:
    """The files of vectors that are there, the oldest first."""
    found = [path for path in folder.iterdir() if VECTORS_NAME.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=generation_of)


class VectorFile:
    """`num_records` records count; what stands behind them in the file was not committed. OSError where writing fails."""

    def __init__(self, path: Path, layers: int, dim: int, num_records: int) -> None:
        """dim: kv_heads * head_dim."""
        self.path = path
        self.layers = layers
        self.num_records = num_records
        self._open: int | None = None
        self._record = np.dtype(
            [
                ("chunk_id", "<i8"),
                ("span", "<f8", 2),
                ("num_tokens", "<i8"),
                ("mean_key", "<f4", (layers, dim)),
                ("crc32", "<u4"),
            ]
        )

    @property
    def num_bytes(self) -> int:
        return self.bytes_of(self.num_records)

    def bytes_of(self, num_records: int) -> int:
        """What so many records take up."""
        return num_records * self._record.itemsize

    def cut(self) -> int:
        """Cut off what was not committed. Returns how many bytes that were."""
        extra = self.path.stat().st_size - self.num_bytes if self.path.exists() else 0
        if extra > 0:
            os.truncate(self.path, self.num_bytes)
        return max(0, extra)

    def append(self, summaries: Summaries, fault: Fault = no_fault) -> None:
        """Add records behind the committed ones, durably. They count once `num_records` says so."""
        content = self._packed(summaries)
        was_there = self.path.exists()
        # One that has been taken away is made anew: what it lacks reads as damaged, and is made again from the chunks.
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE), "r+b", buffering=0) as file:
            file.truncate(self.num_bytes)
            file.seek(self.num_bytes)
            half = len(content) // 2
            file.write(content[:half])
            fault("vectors.half")
            file.write(content[half:])
            fault("vectors.written")
            os.fsync(file.fileno())
        if not was_there:
            sync_folder(self.path.parent)
        fault("vectors.synced")

    def write(self, blocks: Iterator[Summaries], fault: Fault = no_fault) -> None:
        """A whole new file of these records, which count at once; block by block, as there may be more than RAM holds."""
        num_records = 0

        def packed() -> Iterator[bytes]:
            nonlocal num_records
            for block in blocks:
                num_records += len(block)
                yield self._packed(block)

        write_whole(self.path, packed(), fault, "vectors")
        self.num_records = num_records

    def blocks(self, first: int = 0) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The committed records from number `first` on, in blocks: (number of the first one, records, bool: as they were
        written). The records have the fields of `Summaries` in the singular; the next block overwrites them.

        What the file does not hold, or what cannot be read, is left out: it is made again from the chunks.
        """
        size = self._record.itemsize
        num = max(1, BLOCK_BYTES // size)
        buffer = np.empty(min(num, max(1, self.num_records - first)) * size, dtype=np.uint8).data
        end = self.num_records
        try:
            handle = self._handle()
            while first < end:
                wanted = min(num, end - first) * size
                there = _read_into(handle, buffer[:wanted], first * size) // size
                right = [crc32(buffer[at : at + size - 4]) for at in range(0, there * size, size)]
                records = np.frombuffer(buffer[: there * size], self._record)
                yield first, records, np.array(right, dtype=np.uint32) == records["crc32"]
                if there * size < wanted:
                    return
                first += there
        except OSError as error:
            logger.warning("%s cannot be read: %s", self.path, error.strerror)

    def hold(self) -> None:
        """Open the file now, if it is there: then it is read as it was, even if another takes its place before it is needed."""
        if self.path.exists():
            self._handle()

    def _handle(self) -> int:
        """Open for reading until this object goes: another file in its place takes nothing from who still searches this one."""
        if self._open is None:
            self._open = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._open)
        return self._open

    def _packed(self, summaries: Summaries) -> bytes:
        records = np.zeros(len(summaries), self._record)
        records["chunk_id"], records["span"] = summaries.chunk_ids, summaries.spans
        records["num_tokens"], records["mean_key"] = summaries.num_tokens, summaries.mean_keys
        rows = records.view(np.uint8).reshape(len(records), self._record.itemsize)
        records["crc32"] = [crc32(row[:-4].data) for row in rows]
        return records.tobytes()


def _read_into(handle: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from a file as far as it goes. Returns how many bytes that was."""
    at = 0
    while at < len(buffer) and (num := os.preadv(handle, [buffer[at:]], offset + at)):
        at += num
    return at
