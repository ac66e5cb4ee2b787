"""Room in a library: how much its memories take up together, and which of them give way when that is too much.

What was watched longest ago gives way first: its chunks thin out and go, as under the quota of one memory, and a memory that
has no KV left is deleted. One that is pinned, that is open, or that cannot be opened never gives way.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import MemoryBankError
from memory.files import make_private, write_whole
from memory.library import PIN, delete, memories, own_files
from memory.manifest import LOGS
from memory.opening import open_memory
from memory.thinning import Thinning
from memory.upkeep import keep_quota

logger = logging.getLogger(__name__)

SLACK = 0.05
"""When room is made, this share more is made at once, not a little for every chunk …"""
MAX_SLACK_BYTES = 256 * 2**20
"""… but no more than that: who starts a stream waits for it."""


@dataclass(frozen=True)
class GaveWay:
    """What was taken from one memory. deleted: it has gone as a whole."""

    name: str
    num_bytes: int
    deleted: bool


@dataclass
class Room:
    """num_bytes: of all memories together; num_fixed_bytes: of those that may not give way, but for the open ones."""

    library_bytes: int
    num_bytes: int = 0
    num_fixed_bytes: int = 0
    gave_way: list[GaveWay] = field(default_factory=list)

    def share_bytes(self, num_open: int) -> int:
        """What each of so many open memories may take up, so that all of them fit beside those that may not give way."""
        return max(0, self.library_bytes - self.num_fixed_bytes) // max(1, num_open)


def bytes_of(folder: Path) -> int:
    """Bytes of all files of a memory, as they lie on disk; not of the log that SQLite keeps beside one that is open."""
    total = 0
    with suppress(FileNotFoundError):  # The whole memory was deleted meanwhile.
        for path in own_files(folder):
            with suppress(FileNotFoundError):  # Merged or thinned away meanwhile.
                total += 0 if path.name.endswith(LOGS) else path.stat().st_size
    return total


def is_pinned(folder: Path) -> bool:
    """Whether a memory never gives way to others."""
    return (folder / PIN).exists()


def pin(folder: Path, pinned: bool) -> None:
    """Never let a memory give way to others, or let it again; also while it is written. MemoryBankError if it holds none."""
    if folder not in memories(folder.parent):
        raise MemoryBankError(f"{folder} holds no memory; give the folder of one")
    make_private(folder)
    try:
        if pinned:
            write_whole(folder / PIN, b"")
        else:
            (folder / PIN).unlink(missing_ok=True)
    except OSError as error:
        raise MemoryBankError(f"memory folder {folder} cannot be written: {error.strerror}; free some space") from error


def make_room(library: Path, library_bytes: int, held: Collection[Path], thinning: Thinning | None) -> Room:
    """Let memories give way until all fit into `library_bytes`, as far as they may. held: those that are open."""
    sizes = {folder: bytes_of(folder) for folder in memories(library)}
    room = Room(library_bytes, sum(sizes.values()))
    closed = [folder for folder in sizes if folder not in held]
    room.num_fixed_bytes = sum(sizes[folder] for folder in closed if is_pinned(folder))
    if room.num_bytes <= library_bytes:
        return room
    goal = library_bytes - min(int(SLACK * library_bytes), MAX_SLACK_BYTES)
    for _, folder in sorted((_last_stored(folder), folder) for folder in closed if not is_pinned(folder)):
        if room.num_bytes <= goal:
            break
        try:
            deleted = _shrink(folder, sizes[folder] - (room.num_bytes - goal), thinning)
        except MemoryBankError as error:
            logger.warning("%s; it does not give way to others", error)
            room.num_fixed_bytes += sizes[folder]
            continue
        num_freed = sizes[folder] - (0 if deleted else bytes_of(folder))
        room.num_bytes -= num_freed
        if num_freed > 0:
            room.gave_way.append(GaveWay(folder.name, num_freed, deleted))
    return room


def _shrink(folder: Path, num_bytes: int, thinning: Thinning | None) -> bool:
    """Thin a memory out to so many bytes. Whether no KV was left, and it was deleted."""
    memory = open_memory(folder, write=True, disk_bytes=max(1, num_bytes), thinning=thinning)
    try:
        keep_quota(memory, 0)
        left = memory.manifest.num_with_kv
        memory.manifest.compact()
    finally:
        memory.close()
    if not left:
        delete(folder)
    return not left


def _last_stored(folder: Path) -> float:
    """Wall-clock time at which a memory was last written; what cannot be opened comes last."""
    try:
        memory = open_memory(folder)
    except MemoryBankError:
        return float("inf")
    try:
        return memory.manifest.last_stored_unix()
    finally:
        memory.close()
