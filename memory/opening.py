"""Opening a memory folder: what is made, what is checked, and what a crash left behind and is mended."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from data.errors import ConfigError, MemoryBankError
from memory.database import REBUILD
from memory.files import Fault, locked, make_private, no_fault, sync_folder, unusable, write_whole
from memory.identity import FORMAT_VERSION, Identity
from memory.manifest import LOGS, MANIFEST, Manifest
from memory.migrations import MIGRATIONS, Migration
from memory.reference import REFERENCE
from memory.rewriting import delete_unwanted
from memory.segment_file import segment_path, segments_in
from memory.stored import SEGMENT_BYTES, StoredMemory
from memory.thinning import Thinning
from memory.upkeep import drop_torn, finish_forgetting, leaves_traces

logger = logging.getLogger(__name__)

LOCK = "lock"
FIRST_VECTORS = "vectors-0000.f32"
NEW_MANIFEST = "manifest.new"
OLD_MANIFEST = "manifest.old"
"""One that is being made anew, see `memory.rebuild`."""
UNLIMITED_BYTES = 2**62


def open_memory(
    folder: Path,
    identity: Identity | None = None,
    *,
    write: bool = False,
    disk_bytes: int = UNLIMITED_BYTES,
    codec: str = "native",
    segment_bytes: int = SEGMENT_BYTES,
    thinning: Thinning | None = None,
    fault: Fault = no_fault,
    migrations: Mapping[int, Migration] = MIGRATIONS,
    version: int = FORMAT_VERSION,
) -> StoredMemory:
    """The memory in `folder`. With `write` and an identity, a folder that is empty or missing becomes a new one.

    Takes the same time however much there is in it. MemoryBankError, in one line, for a folder that holds no memory, one of
    another model or other settings, one of a newer format, one that somebody else is writing, or one that cannot be used.
    """
    if disk_bytes < 1:
        raise ConfigError(f"disk_bytes is {disk_bytes}, which leaves a memory no room; give more, or no folder for a memory")
    # Whatever becomes the working directory meanwhile, it stays the same folder.
    folder = folder.absolute()
    with ExitStack() as lock:
        if write:
            if identity is None or is_memory(folder):
                _check_there(folder)
            else:
                _check_empty(folder)
            make_private(folder)
            lock.enter_context(locked(folder / LOCK))
            if not is_memory(folder) and identity is not None:
                _create(folder, identity, fault)
        else:
            _check_there(folder)
        manifest = Manifest(folder, write=write)
        lock.callback(manifest.close)
        manifest.check_schema()
        manifest.migrate(migrations, version)
        if identity is not None:
            manifest.identity.check(identity, folder)
        memory = StoredMemory(
            folder,
            manifest,
            disk_bytes=disk_bytes,
            codec=codec,
            segment_bytes=segment_bytes,
            thinning=thinning,
            fault=fault,
        )
        if write:
            with memory.said():
                _mend(memory)
        memory.closing = lock.pop_all()
    return memory


def is_memory(folder: Path) -> bool:
    """Whether a folder holds a memory."""
    # Not Path.is_file, which raises for a name that is too long, or a folder that is somebody else's, such as lost+found.
    return os.path.isfile(folder / MANIFEST)


def is_torn(folder: Path) -> bool:
    """Whether a folder holds what is left of a memory without its manifest."""
    there = os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
    return there and not is_memory(folder) and bool(segments_in(folder))


def _check_there(folder: Path) -> None:
    if is_memory(folder):
        return
    try:
        below = sorted(path.name for path in folder.iterdir() if os.path.isdir(path) and is_memory(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MemoryBankError(f"there is no memory at {folder}; give the folder of one") from error
    except OSError as error:
        raise unusable(folder, error) from error
    if is_torn(folder):
        raise MemoryBankError(
            f"{folder} holds segments but no {MANIFEST}, as if copied by half; copy the whole folder again, or"
            f" {REBUILD.format(folder=folder)}"
        )
    hint = f"give the folder of one, such as {folder / below[0]}" if below else "give the folder of one"
    raise MemoryBankError(f"{folder} holds no memory; {hint}")


def _check_empty(folder: Path) -> None:
    """A new memory goes into a folder of its own. What a crash left of making it may be there."""
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise MemoryBankError(f"memory folder {folder} is a file; choose another folder")
    left = (LOCK, FIRST_VECTORS, Path(FIRST_VECTORS).with_suffix(".part").name)
    try:
        foreign = [p.name for p in folder.iterdir() if p.name not in left and not p.name.startswith(NEW_MANIFEST)]
    except OSError as error:
        raise unusable(folder, error) from error
    if is_torn(folder):
        _check_there(folder)
    if foreign:
        raise MemoryBankError(f"{folder} holds other files ({sorted(foreign)[0]}) and no memory; choose a new or empty folder")


def _create(folder: Path, identity: Identity, fault: Fault) -> None:
    """Made under another name, so that a manifest with the right name is a whole one."""
    try:
        for leftover in folder.glob(f"{NEW_MANIFEST}*"):
            leftover.unlink()
        write_whole(folder / FIRST_VECTORS, b"", fault, "vectors")
        Manifest.create(folder, identity, FIRST_VECTORS, NEW_MANIFEST).close()
        fault("manifest.made")
        (folder / NEW_MANIFEST).rename(folder / MANIFEST)
        sync_folder(folder)
        # The folder may be as new as what is in it.
        if os.access(folder.absolute().parent, os.R_OK):
            sync_folder(folder.absolute().parent)
        fault("manifest.renamed")
    except OSError as error:
        raise MemoryBankError(
            f"memory folder {folder} cannot be written: {error.strerror}; free some space or choose another folder"
        ) from error


def _mend(memory: StoredMemory) -> None:
    """Drop what a crash left."""
    # Of a rebuilding that was interrupted when it was all but done: what is forgotten must not stay in it.
    manifests = [f"{name}{log}" for name in (NEW_MANIFEST, OLD_MANIFEST) for log in ("", *LOGS)]
    # Nor in the picture that a stream was about to leave off with.
    for name in [*manifests, Path(REFERENCE).with_suffix(".part").name]:
        (memory.folder / name).unlink(missing_ok=True)
    _settle_sizes(memory)
    if torn := drop_torn(memory):
        memory.notices.append(f"a torn tail of {torn} bytes, which was never committed, was dropped")
    if leaves_traces(memory):
        if finish_forgetting(memory):
            memory.notices.append("an interrupted forgetting was finished")
    else:
        delete_unwanted(memory)
    for notice in memory.notices:
        logger.warning("%s: %s", memory.folder, notice)


def _settle_sizes(memory: StoredMemory) -> None:
    """Believe the files, not the manifest, of how large they are: a flipped bit would make the quota take what is good."""
    there = {number: _size_of(segment_path(memory.folder, number)) for number in memory.segments}
    wrong = {number: size for number, size in there.items() if size != memory.segments[number][0]}
    if not wrong:
        return
    memory.manifest.set_sizes(wrong)
    memory.segments = memory.manifest.segments()
    names = ", ".join(segment_path(memory.folder, number).name for number in sorted(wrong)[:3])
    memory.notices.append(f"{len(wrong)} segments are gone or not as long as they were ({names}); what is good in them stays")


def _size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
