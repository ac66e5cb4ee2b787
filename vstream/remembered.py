"""A stream that goes on: whose memory a folder holds, and how a source joins what was watched before."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import MemoryBankError
from memory import DurableBank
from memory.base import Span
from memory.files import Fault, unusable
from memory.identity import Identity
from memory.opening import is_memory, open_memory
from memory.reference import Reference, keep_reference
from memory.rows import ChunkRow, Gap, Sitting
from memory.stored import StoredMemory
from memory.thinning import create_thinning
from model_adapters.base import ModelInfo
from vstream.config import SessionConfig

logger = logging.getLogger(__name__)

SCHEME = "memory:"
SHAPING = ("fps", "chunk_seconds", "drop", "drop_threshold", "drop_target", "drop_reference", "key_every", "kv_codec")
"""Settings that shape what is stored; a memory is opened with those it was made with."""


def identity_of(info: ModelInfo, config: SessionConfig) -> Identity:
    """Whose memory a session of this model and these settings makes."""
    return Identity.of(info, {name: getattr(config, name) for name in SHAPING})


def opened_memory(folder: Path, info: ModelInfo, config: SessionConfig, read_only: bool, fault: Fault) -> StoredMemory:
    """The memory in `folder` for a session of this model and these settings. MemoryBankError as `open_memory`."""
    return open_memory(
        folder,
        identity_of(info, config),
        write=not read_only,
        disk_bytes=config.disk_bytes,
        codec=config.kv_codec,
        thinning=create_thinning(config.thinning),
        fault=fault,
    )


def leave_off(bank: DurableBank, reference: Reference) -> None:
    """A session over this bank ends: keep what the stream would go on with, if all of its chunks are on disk."""
    if bank.writer is None or bank.writer.closed:
        return
    try:
        bank.writer.flush()
        newest = [row for row in bank.memory.manifest.newest(math.inf, 0.0) if isinstance(row, ChunkRow)]
        if newest:
            keep_reference(bank.memory, reference, newest[0].chunk_id)
    except MemoryBankError as error:
        logger.warning("%s; when it goes on, this stream begins with a whole chunk", error)


def stored_settings(folder: Path | None) -> dict[str, Any]:
    """The shaping settings of the memory in `folder`; none where there is no memory yet. MemoryBankError if it is damaged."""
    if folder is None or not is_memory(folder):
        return {}
    memory = open_memory(folder)
    try:
        return {name: value for name, value in memory.identity.settings.items() if name in SHAPING}
    finally:
        memory.close()


def check_library(folder: Path | None) -> None:
    """MemoryBankError if a folder that is to hold memories is one itself, or cannot be reached."""
    if folder is None:
        return
    try:
        folder.exists()  # Raises where that cannot be told: a name that is too long, a folder above that is shut.
    except OSError as error:
        raise unusable(folder, error) from error
    if is_memory(folder):
        raise MemoryBankError(
            f"{folder} is one memory; give the folder above it to hold several, or memory:{folder} as the source"
        )


def memory_folder(source: str) -> Path | None:
    """The folder that `memory:DIR` names; None for any other source."""
    source = source.strip()
    return Path(os.path.expanduser(source[len(SCHEME) :])) if source.lower().startswith(SCHEME) else None


@dataclass(frozen=True)
class Joined:
    """How a source continues a memory. offset_seconds: added to the source's pts. words: what to tell, empty for a new memory.

    start_seconds: where in the source to begin: a recording that was watched before goes on where it was left. gap: the span
    of the memory's stream that lies between, if any.
    """

    offset_seconds: float = 0.0
    start_seconds: float = 0.0
    words: str = ""
    gap: Span | None = None


def join(memory: StoredMemory, chunk_seconds: float, label: str, key: str, place: str, end_seconds: float | None) -> Joined:
    """Begin a sitting, and write it down. end_seconds: where the last stored chunk ends; None if there is none.

    label: the source, safe to show. key: what tells recordings apart; empty for live sources, which `place` tells apart.
    A source that does not go on where it was left, as no live one does, follows behind one empty chunk: a gap, with the
    wall-clock time that passed.
    """
    now = time.time()
    # What was forgotten at the end was watched, too: it must not be watched again.
    ends = [gap.end_seconds for gap in memory.manifest.gaps() if gap.reason == "forgotten"]
    end_seconds = max([*ends, *([end_seconds] if end_seconds is not None else [])], default=None)
    if end_seconds is None:
        memory.begin_sitting(Sitting(0.0, 0.0, label, key or place, now), [])
        return Joined()
    before = memory.manifest.last_sitting()
    if key and before is not None and before.source_key == key:
        start = end_seconds - before.offset_seconds
        memory.begin_sitting(Sitting(end_seconds, before.offset_seconds, label, key, now), [])
        return Joined(before.offset_seconds, start, f"{label} goes on at {start:g} s, where it was left")
    offset = end_seconds + chunk_seconds
    stored_unix = memory.manifest.last_stored_unix()
    pause = max(0.0, now - stored_unix)
    memory.begin_sitting(Sitting(offset, offset, label, key or place, now), [Gap(end_seconds, offset, "paused", pause)])
    words = f"the memory goes on at {offset:g} s of its stream, after a pause of {pause:.0f} s"
    return Joined(offset, 0.0, words, (end_seconds, offset))
