"""Reading chunks for one answer: some at a time into the same memory again and again, the next while the last are being used.

Why by chunks and not by layers: a chunk lies in its segment as one block with one checksum, so a layer of it cannot be
verified, nor undone from its codec, without the rest; and one read of a whole chunk is sequential, where one per layer would be
dozens of small ones. What is hidden is the same: while a group is rotated and copied into the context, the next is on its way
from the disk. Memory that stays in the processor's cache is faster to verify, decode and copy on than room for all chunks at
once, which the system would have to clear page by page for every answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from memory.layout import ALIGNMENT, aligned
from model_adapters.base import ChunkKV

GROUP_BYTES = 4 * 2**20
"""Of chunks as they are kept."""

ANNOUNCED = 3
"""Groups that the disk is told of before they are read."""

Take = Callable[[int], torch.Tensor]
"""num_bytes → uint8 [num_bytes] to read into."""
Request = TypeVar("Request")
Found = TypeVar("Found")


def fresh(num_bytes: int) -> torch.Tensor:
    """Memory of its own."""
    return torch.empty(num_bytes, dtype=torch.uint8)


class Staging:
    """Memory that is used again after every `reset`. What would fill more than half of it, or has no room, gets its own: so
    whoever keeps a chunk sees that its tensors are parts of something larger, and copies them."""

    def __init__(self, num_bytes: int, pin: bool) -> None:
        """pin: page-locked, for copies to a GPU."""
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pin)
        self._used = 0

    def reset(self) -> None:
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        start, end = self._used, self._used + aligned(num_bytes)
        if end > len(self._memory) or 2 * num_bytes > len(self._memory):
            return fresh(num_bytes)
        self._used = end
        return self._memory[start : start + num_bytes]


def in_groups(
    read: Callable[[Sequence[int], Take], list[ChunkKV]],
    announce: Callable[[Sequence[int]], None],
    chunk_ids: Sequence[int],
    sizes: Mapping[int, int],
    pin: bool,
) -> Generator[list[ChunkKV], None, None]:
    """What `read` gives of all chunks, group by group, at least once. A group is good until the next is asked for.

    announce: hears of what is read soon, so that the disk need not wait for whoever uses the processor. sizes: bytes of the
    chunks as they are kept, as far as they are known. pin: see Staging.
    """
    groups = groups_of(chunk_ids, sizes)
    if len(groups) == 1:
        yield read(chunk_ids, fresh)
        return
    # Two by turns: what the last group was read into is in use while the next is read.
    staging = [Staging(GROUP_BYTES + ALIGNMENT * len(chunk_ids), pin) for _ in range(2)]

    def one(number: int) -> list[ChunkKV]:
        for soon in groups[number + ANNOUNCED if number else 1 : number + ANNOUNCED + 1]:
            announce(soon)
        staging[number % 2].reset()
        return read(groups[number], staging[number % 2].take)

    yield from one_ahead(one, range(len(groups)))


def groups_of(chunk_ids: Sequence[int], sizes: Mapping[int, int]) -> list[list[int]]:
    """Neighbours together up to GROUP_BYTES, or one alone; at least one group, if an empty one. Unknown ids count nothing."""
    groups: list[list[int]] = [[]]
    num_bytes = 0
    for chunk_id in chunk_ids:
        size = sizes.get(chunk_id, 0)
        if groups[-1] and num_bytes + size > GROUP_BYTES:
            groups.append([])
            num_bytes = 0
        groups[-1].append(chunk_id)
        num_bytes += size
    return groups


def one_ahead(read: Callable[[Request], Found], requests: Sequence[Request]) -> Generator[Found, None, None]:
    """`read` of every request in their order, each in a thread of its own while the result before it is used.

    Nothing is read ahead of a single request. Closing the iterator waits for the read that is under way, and then nothing of
    it is left; what a read raises comes out where its result would.
    """
    if len(requests) < 2:
        yield from map(read, requests)
        return
    with ThreadPoolExecutor(1, "memory reader") as reader:
        waiting = reader.submit(read, requests[0])
        for request in requests[1:]:
            found = waiting.result()
            waiting = reader.submit(read, request)
            yield found
        yield waiting.result()
