"""What of a stored memory can be taken elsewhere: a copy of it, or its timeline as a table."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from data.errors import MemoryBankError
from memory.files import PRIVATE_FILE, copy_private, locked, make_private, sync_folder, unusable
from memory.library import own_files
from memory.manifest import MANIFEST
from memory.opening import LOCK, NEW_MANIFEST, open_memory


def export_table(folder: Path, out: Path) -> int:
    """Times, tokens, drop ratios and thumbnails as JSON lines, in a private file. Returns the number of chunks."""
    _check_outside(folder, out)
    memory = open_memory(folder)
    try:
        num = 0
        with _private(out) as file:
            for chunk_id in memory.manifest.ids_of_all():
                try:
                    row = memory.manifest.row(chunk_id)
                except MemoryBankError as error:
                    file.write(json.dumps({"chunk_id": chunk_id, "error": str(error)}) + "\n")
                    continue
                if row is None:
                    continue
                record = row.record
                line = {
                    "chunk_id": row.chunk_id,
                    "start_seconds": row.start_seconds,
                    "end_seconds": row.end_seconds,
                    "num_seen_tokens": row.num_seen_tokens,
                    "num_kept_tokens": row.num_kept_tokens,
                    "drop_ratio": record.drop_ratio,
                    "stored_unix": row.stored_unix,
                    "has_kv": row.segment is not None,
                    "thumbnail_jpeg_base64": base64.b64encode(row.thumbnail).decode(),
                }
                file.write(json.dumps(line) + "\n")
                num += 1
            for gap in memory.manifest.gaps():
                file.write(json.dumps({"gap": asdict(gap)}) + "\n")
        return num
    finally:
        memory.close()


def export_copy(folder: Path, out: Path) -> int:
    """A copy of the memory as it is between two commits, private too. Returns its size in bytes. MemoryBankError if it is being
    written, or `out` is not new or empty; nothing of a copy that fails is left."""
    _check_outside(folder, out)
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise unusable(out, error) from error
    if taken:
        raise MemoryBankError(f"{out} is not empty; choose a new folder")
    # One that cannot be written needs no mending, and nobody else writes it.
    is_writable = os.access(folder, os.W_OK)
    open_memory(folder, write=is_writable).close()
    make_private(out)
    try:
        with locked(folder / LOCK) if is_writable else nullcontext():
            for path in own_files(folder):
                if path.name not in (LOCK, MANIFEST):
                    copy_private(path, out / path.name)
            # The manifest last, and under its name when it is whole: what it names is there then.
            copy_private(folder / MANIFEST, out / NEW_MANIFEST)
            (out / NEW_MANIFEST).rename(out / MANIFEST)
            sync_folder(out)
    except OSError as error:
        for path in own_files(out):
            path.unlink()
        raise MemoryBankError(f"{folder} cannot be copied to {out}: {error.strerror}; choose another folder") from error
    return sum(path.stat().st_size for path in out.iterdir())


def _check_outside(folder: Path, out: Path) -> None:
    """MemoryBankError if `out` would lie in the memory, where forgetting does not reach it."""
    # Not Path.resolve, which raises for links in a circle.
    if Path(os.path.realpath(folder)) in Path(os.path.realpath(out)).parents:
        raise MemoryBankError(f"{out} would lie in the memory itself; choose a place outside of {folder}")


@contextmanager
def _private(out: Path) -> Iterator[TextIO]:
    """A text file of its owner's own, also where one with other permissions was there. MemoryBankError if it cannot be
    written."""
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "w") as file:
            if out.is_file():
                os.fchmod(file.fileno(), PRIVATE_FILE)
            yield file
    except OSError as error:
        raise MemoryBankError(f"{out} cannot be written: {error.strerror}; choose another file") from error
