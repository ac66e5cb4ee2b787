"""Files that survive a crash: written whole under a temporary name, made durable, then renamed. Private to their owner."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from data.errors import MemoryBankError

Fault = Callable[[str], None]
"""Called at every marked point of a write with its name. Tests kill the process or raise OSError there."""

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


def no_fault(point: str) -> None:
    """The hook of ordinary use."""


def unusable(folder: Path, error: OSError) -> MemoryBankError:
    """What is said of a folder that the system does not let in."""
    return MemoryBankError(f"memory folder {folder} cannot be used: {error.strerror}; choose another folder")


def make_private(folder: Path) -> None:
    """Make `folder`, or take the one that is there, so that only its owner may look into it. MemoryBankError."""
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        folder.chmod(PRIVATE_FOLDER)
    except OSError as error:
        raise unusable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MemoryBankError(f"memory folder {folder} is not writable; choose another folder")


def write_whole(path: Path, content: bytes | Iterable[bytes], fault: Fault = no_fault, name: str = "file") -> None:
    """`content` (or its parts, one after the other) as the file `path`, 0600: there whole or not at all, also after a crash.
    OSError if it cannot be written.

    Marked points: NAME.begun, NAME.half (of the first part), NAME.written, NAME.synced, NAME.renamed, NAME.durable.
    """
    parts = iter([content] if isinstance(content, bytes) else content)
    part = path.with_suffix(".part")
    fault(f"{name}.begun")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "wb", buffering=0) as file:
            first = next(parts, b"")
            half = len(first) // 2
            _write_all(file.fileno(), first[:half])
            fault(f"{name}.half")
            for rest in chain([first[half:]], parts):
                _write_all(file.fileno(), rest)
            fault(f"{name}.written")
            os.fsync(file.fileno())
        fault(f"{name}.synced")
        part.rename(path)
        fault(f"{name}.renamed")
        sync_folder(path.parent)
        fault(f"{name}.durable")
    finally:
        part.unlink(missing_ok=True)


def copy_private(source: Path, target: Path) -> None:
    """A durable copy as the new file `target`, its owner's from the first byte on. OSError if it cannot be written."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(handle, "wb") as write, source.open("rb") as read:
        shutil.copyfileobj(read, write)
        write.flush()
        os.fsync(write.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def passing_folder(inside: Path) -> Iterator[Path]:
    """A private folder (0700) inside another, which is made if it is missing. Both go in the end, the outer one if it was made
    here and is empty. MemoryBankError if it cannot be made."""
    inside = inside.absolute()
    made = not os.path.lexists(inside)
    try:
        inside.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="kv-", dir=inside))
    except OSError as error:
        raise unusable(inside, error) from error
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        if made and inside.is_dir() and not any(inside.iterdir()):
            inside.rmdir()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The only writer while the context is open. The kernel lets go of the lock when the process ends, however it ends.

    MemoryBankError if another writer holds it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    except OSError as error:
        raise MemoryBankError(
            f"memory folder {path.parent} cannot be written: {error.strerror}; choose another folder"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MemoryBankError(
                f"the memory {path.parent} is being written by somebody else; wait for it to close, or read it as memory:DIR"
            ) from error
        except OSError as error:
            raise MemoryBankError(
                f"memory folder {path.parent} cannot be locked: {error.strerror}; choose a folder on another file system"
            ) from error
        if not _is_named(handle, path):
            # Deleted between the two: whoever comes next makes a new one and would hold that at the same time.
            raise MemoryBankError(f"the memory {path.parent} was deleted just now; open it again")
        yield
    finally:
        os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    """Whether an open file is the one that `path` stands for."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
