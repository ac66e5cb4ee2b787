"""What can still be read of a manifest that is damaged, for one that is made anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from data.errors import MemoryBankError
from memory.identity import FORMAT_VERSION, Identity
from memory.manifest import MANIFEST, Manifest
from memory.notes import Note, Notes
from memory.opening import OLD_MANIFEST
from memory.rows import ChunkRow, Gap, Sitting

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Salvaged:
    """What can be read of an old manifest. rows: with right checksums. gaps, sittings: None if they cannot be trusted.

    named: the segments that it names, if that can be trusted."""

    identity: Identity | None = None
    rows: dict[int, ChunkRow] = field(default_factory=dict)
    gaps: list[Gap] | None = None
    sittings: list[Sitting] | None = None
    unwanted: set[str] = field(default_factory=set)
    named: set[int] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    num_damaged_entries: int = 0
    num_damaged_notes: int = 0


def salvage(folder: Path, chunk_ids: Sequence[int]) -> Salvaged:
    """All that can be read, also where nothing can. chunk_ids: what to ask for one by one where all at once cannot be read.
    Raises MemoryBankError for a manifest of a newer format."""
    name = next((name for name in (MANIFEST, OLD_MANIFEST) if (folder / name).is_file()), None)
    found = Salvaged()
    if name is None:
        return found
    try:
        manifest = Manifest(folder, write=False, name=name)
    except MemoryBankError as error:
        logger.warning("%s", error)
        return found
    try:
        version = _read(lambda: manifest.number("format_version"))
        if version is not None and version > FORMAT_VERSION:
            manifest.migrate()  # It says what is wrong.
        found.identity = _read(lambda: manifest.identity)
        rows = _read(lambda: list(manifest.rows("")))
        if rows is None:
            rows = [row for i in chunk_ids if (row := _read(lambda i=i: manifest.row(i))) is not None]  # type: ignore[misc]
        found.rows = {row.chunk_id: row for row in rows if isinstance(row, ChunkRow)}
        if _read(manifest.check) == []:
            found.gaps, found.sittings = _read(manifest.gaps), _read(manifest.sittings)
            found.num_damaged_entries = _read(manifest.num_damaged_entries) or 0
            found.named = set(_read(manifest.segments) or {})
        found.notes = _read(lambda: Notes(manifest).all()) or []
        found.num_damaged_notes = _read(lambda: Notes(manifest).num_damaged()) or 0
        found.unwanted = set(_read(manifest.unwanted) or [])
    finally:
        manifest.close()
    return found


def _read(what: Callable[[], T]) -> T | None:
    try:
        return what()
    except (MemoryBankError, ValueError, KeyError, TypeError) as error:
        logger.info("not to be had back: %s", error)
        return None
