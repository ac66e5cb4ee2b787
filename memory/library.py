"""Stored memories from outside: which there are, what they hold, whether it is whole; deletion."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import MemoryBankError
from memory.files import locked, sync_folder
from memory.identity import FORMAT_VERSION, Identity
from memory.manifest import MANIFEST, Manifest
from memory.notes import Notes
from memory.opening import LOCK, NEW_MANIFEST, OLD_MANIFEST, is_memory, is_torn, open_memory
from memory.reference import REFERENCE
from memory.rows import Gap, Sitting
from memory.segment_file import SEGMENT_NAME, segment_path
from memory.stored import StoredMemory

PIN = "pinned"
"""A memory with this file in it never gives way to others."""
META = ("format_version", "identity", "created_unix", "next_segment", "vectors", "num_vectors", "forgetting")
OWN_NAMES = re.compile(
    rf"{LOCK}|{PIN}|{REFERENCE}|(reference|{PIN})\.part|({MANIFEST}|{NEW_MANIFEST}|{OLD_MANIFEST})(-wal|-shm|-journal)?"
    r"|segment-\d{8,}\.(safetensors|part)|vectors-\d{4,}\.(f32|part)"
)


@dataclass(frozen=True)
class Description:
    """What a memory holds. Times in seconds of its stream; `unix` times are wall-clock time."""

    folder: Path
    identity: Identity
    format_version: int
    num_chunks: int
    num_stored: int
    num_seen_tokens: int
    num_kept_tokens: int
    start_seconds: float
    end_seconds: float
    first_stored_unix: float
    last_stored_unix: float
    num_bytes: int
    num_segments: int
    num_thinned: dict[int, int]
    """How many chunks have been thinned so many times."""
    gaps: list[Gap]
    sittings: list[Sitting]


@dataclass
class Verdict:
    """Whether a memory is whole. damaged: what is wrong with a chunk that cannot be read. foreign: files of somebody else."""

    num_chunks: int = 0
    num_good: int = 0
    num_without_kv: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not (self.damaged or self.missing or self.problems)


def memories(folder: Path) -> list[Path]:
    """The memories in a folder: itself, or those in the folders below it, by name; also those that have lost their manifest.
    MemoryBankError if it cannot be listed."""
    if is_memory(folder) or is_torn(folder):
        return [folder]
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and (is_memory(path) or is_torn(path)))
    except OSError as error:
        raise MemoryBankError(f"{folder} cannot be listed: {error.strerror}; give a folder of memories") from error


def own_files(folder: Path) -> list[Path]:
    """The files of a memory, by name; not what somebody else has put beside them, be it called alike."""
    return sorted(path for path in folder.iterdir() if _is_own(path))


def describe(folder: Path) -> Description:
    """What a memory holds; it reads every row of the manifest, but no KV."""
    memory = open_memory(folder)
    try:
        manifest = memory.manifest
        totals = manifest.totals()
        return Description(
            folder,
            memory.identity,
            manifest.number("format_version"),
            int(totals["num_chunks"]),
            int(totals["num_stored"]),
            int(totals["num_seen_tokens"]),
            int(totals["num_kept_tokens"]),
            totals["start"],
            totals["end"],
            totals["first"],
            totals["last"],
            memory.num_bytes,
            memory.num_segments,
            dict(sorted(Counter(manifest.steps().values()).items())),
            manifest.gaps(),
            manifest.sittings(),
        )
    finally:
        memory.close()


def verify(folder: Path) -> Verdict:
    """Read everything and check it; one of an older format is brought to this one first. MemoryBankError if the memory cannot
    be opened at all."""
    bring_up(folder)
    memory = open_memory(folder)
    try:
        verdict = Verdict()
        verdict.problems += memory.manifest.check()
        verdict.problems += _damaged_meta(memory.manifest)
        if num_notes := Notes(memory.manifest).num_damaged():
            verdict.problems.append(f"{num_notes} notes about what was watched for are damaged and left out")
        if num_entries := memory.manifest.num_damaged_entries():
            verdict.problems.append(f"{num_entries} entries about gaps, or what was watched when, are damaged and left out")
        gone = [number for number in memory.segments if not segment_path(folder, number).exists()]
        # Who writes meanwhile deletes what is no longer named.
        verdict.missing = [segment_path(folder, number).name for number in gone if number in memory.manifest.segments()]
        verdict.foreign = sorted(p.name for p in folder.iterdir() if not _is_own(p))
        for chunk_id in memory.manifest.ids_of_all():
            verdict.num_chunks += 1
            wrong = _wrong(memory, chunk_id)
            if wrong is None:
                verdict.num_without_kv += 1
            elif wrong:
                verdict.damaged[chunk_id] = wrong
            else:
                verdict.num_good += 1
        num_vectors = sum(int(right.sum()) for _, _, right in memory.vectors.blocks())
        if num_vectors < memory.vectors.num_records:
            lost = memory.vectors.num_records - num_vectors
            verdict.problems.append(f"{lost} index vectors are damaged; they are made again from the chunks when needed")
        return verdict
    finally:
        memory.close()


def bring_up(folder: Path) -> None:
    """Make a memory of an older format one of this format, where it can be written. MemoryBankError as `open_memory`."""
    if not is_memory(folder) or not os.access(folder, os.W_OK):
        return
    manifest = Manifest(folder, write=False)
    try:
        version = manifest.number("format_version")
    finally:
        manifest.close()
    if version < FORMAT_VERSION:
        open_memory(folder, write=True).close()


def delete(folder: Path) -> list[str]:
    """Delete a memory. Returns the names of foreign files, which stay. MemoryBankError if it is being written."""
    if not is_memory(folder) and not is_torn(folder):
        raise MemoryBankError(f"{folder} holds no memory; nothing was deleted")
    try:
        with locked(folder / LOCK):
            for path in sorted(own_files(folder), key=_turn):
                path.unlink(missing_ok=True)
            sync_folder(folder)
        foreign = sorted(path.name for path in folder.iterdir())
        if not foreign:
            folder.resolve().rmdir()
            if folder.is_symlink():
                folder.unlink()
    except OSError as error:
        raise MemoryBankError(f"{folder} cannot be deleted: {error.strerror}; delete what is left of it by hand") from error
    return foreign


def _turn(path: Path) -> int:
    """When a file is deleted. The manifest first: a deletion that is interrupted leaves no memory that names what is gone. The
    segments last but for the lock: as long as there are some it can be deleted again, and then nothing is left of it."""
    return 0 if path.name == MANIFEST else 3 if path.name == LOCK else 2 if SEGMENT_NAME.fullmatch(path.name) else 1


def delete_if_empty(folder: Path) -> bool:
    """Delete a memory in which no chunk was ever stored, or is any more. Whether it was. MemoryBankError as `delete`."""
    memory = open_memory(folder)
    try:
        there = bool(memory.manifest.totals()["num_chunks"])
    finally:
        memory.close()
    if not there:
        delete(folder)
    return not there


def _damaged_meta(manifest: Manifest) -> list[str]:
    """What is wrong with the values that only a writer needs, or everybody."""
    wrong = []
    for name in META:
        try:
            manifest.meta(name)
        except MemoryBankError as error:
            wrong.append(str(error))
    return wrong


def _wrong(memory: StoredMemory, chunk_id: int) -> str | None:
    """Why a chunk cannot be read; "" if it can be, None if its KV was let go."""
    try:
        row = memory.manifest.row(chunk_id)
        if row is None or row.segment is None:
            return None
        memory.get(chunk_id)
    except KeyError:
        return None  # Let go by who writes it, between the two.
    except MemoryBankError as error:
        return str(error)
    return ""


def _is_own(path: Path) -> bool:
    return OWN_NAMES.fullmatch(path.name) is not None and not path.is_dir()
