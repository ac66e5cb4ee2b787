"""Searching the index vectors of a stored memory where they lie: in their file, block by block, verified every time.

Nothing has to be loaded before the first question, and RAM does not grow with the vectors. Measured on one core with a day of
chunks (86,400 vectors of 480 numbers, 161 MiB, pages warm): reading takes 12 ms, checksums 16 ms and products 17 ms, where
filling a FAISS index with them took 270 ms beside that, and searching it 7 ms.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

from memory.vectors import Summaries, VectorFile

logger = logging.getLogger(__name__)

Score = Callable[[np.ndarray], np.ndarray]
"""mean keys float32 [m, layers, kv_heads * head_dim] → float32 [m, width]."""


class StoredVectors:
    """One vector each for stored chunks. In RAM is only what is known of them beside the vector.

    chunk_ids int64 [n], spans float64 [n, 2] in seconds and num_tokens int64 [n] are as in `Summaries`.
    """

    def __init__(
        self, file: VectorFile, numbers: np.ndarray, chunk_ids: np.ndarray, spans: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """numbers: int64 [n], of the records in the file, rising."""
        self.file = file
        self.numbers = numbers
        self.chunk_ids = chunk_ids
        self.spans = spans
        self.num_tokens = num_tokens
        self._told = False

    @classmethod
    def newest(cls, file: VectorFile, chunk_ids: np.ndarray, first: int = 0) -> StoredVectors:
        """Of each of these chunks (int64) the last record that is as it was written, among those from number `first` on."""
        none = np.zeros(0, np.int64)
        found: list[tuple[np.ndarray, ...]] = [(none, none, np.zeros((0, 2)), none)]
        for start, records, right in file.blocks(first):
            at = np.flatnonzero(right)
            found.append((start + at, *(records[name][at] for name in ("chunk_id", "span", "num_tokens"))))
        wanted = np.isin(np.concatenate([part[1] for part in found]), chunk_ids)
        numbers, ids, spans, num_tokens = (np.concatenate(column)[wanted] for column in zip(*found, strict=True))
        if not (ids[1:] > ids[:-1]).all():
            # A chunk that was thinned has an older record, too.
            _, from_behind = np.unique(ids[::-1], return_index=True)
            last = np.sort(len(ids) - 1 - from_behind)
            numbers, ids, spans, num_tokens = numbers[last], ids[last], spans[last], num_tokens[last]
        return cls(file, numbers, ids, spans, num_tokens)

    def scores(self, score: Score, width: int) -> np.ndarray:
        """float32 [n, width]: the score of every vector, read anew; -inf for one that is not as it was written (any more)."""
        found = np.full((len(self), width), -np.inf, dtype=np.float32)
        num_right = 0
        for part, at, records, right in self._blocks():
            # All vectors of a block at once: to pick out those that are wanted would copy them.
            of_all = score(records["mean_key"])
            found[part][right] = of_all[at[right]]
            num_right += int(right.sum())
        if num_right < len(self) and not self._told:
            self._told = True
            logger.warning(
                "%s: %d index vectors are damaged; until the memory is opened anew no question finds their chunks",
                self.file.path,
                len(self) - num_right,
            )
        return found

    def summaries(self) -> Iterator[Summaries]:
        """Everything about these chunks, in blocks, to be written elsewhere. What has been damaged meanwhile is left out."""
        for part, at, records, right in self._blocks():
            keys = records["mean_key"][at[right]]
            yield Summaries(self.chunk_ids[part][right], self.spans[part][right], self.num_tokens[part][right], keys)

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """(which of these vectors, where each stands in the block, the block's records, bool: as it was written)."""
        low = 0
        for start, records, right in self.file.blocks(int(self.numbers[0]) if len(self) else self.file.num_records):
            high = int(np.searchsorted(self.numbers, start + len(records)))
            at = self.numbers[low:high] - start
            yield slice(low, high), at, records, right[at]
            low = high
            if low == len(self):
                return

    @property
    def num_bytes(self) -> int:
        """Bytes in RAM."""
        return sum(part.nbytes for part in (self.numbers, self.chunk_ids, self.spans, self.num_tokens))

    def __len__(self) -> int:
        return len(self.chunk_ids)
