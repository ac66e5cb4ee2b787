"""A library: a folder in which the streams that are watched have their memories, found again by their sources."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import MemoryBankError
from memory.identity import Identity
from memory.library import delete_if_empty, memories
from memory.opening import open_memory
from model_adapters.base import ModelAdapter
from vstream.config import SessionConfig
from vstream.remembered import check_library, identity_of
from vstream.session import StreamSession
from vstream.turns import Turns

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 15.0
"""How long a new stream waits for one that is just being closed: a page that is reloaded closes its old stream late."""


class Library:
    """One memory per recording, where its writer is free; a new one for every other stream. None of them is left empty.

    The folder is made if it is missing. MemoryBankError if it is a memory itself, or cannot be used. Thread-safe.
    """

    def __init__(self, folder: Path) -> None:
        check_library(folder)
        self.folder = folder
        self._num_leaving = 0
        self._changed = threading.Condition()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryBankError(f"memory folder {folder} cannot be used: {error.strerror}; choose another folder") from error
        for left in memories(folder):
            self._discard(left)

    def saved(self) -> list[str]:
        """The names of the memories, oldest first."""
        return [folder.name for folder in memories(self.folder)]

    def session(self, adapter: ModelAdapter, config: SessionConfig, turns: Turns, label: str, key: str) -> StreamSession:
        """A session that writes the memory of a recording that was watched before, or a new one. See `StreamSession.join`."""
        identity = identity_of(adapter.info, config)
        with self._changed:
            self._changed.wait_for(lambda: not self._num_leaving, timeout=RELEASE_SECONDS)
            for folder in self._of(key, identity):
                try:
                    return StreamSession(adapter, config, turns=turns, memory=folder)
                except MemoryBankError as error:
                    logger.warning("%s; this stream gets a memory of its own", error)
            return StreamSession(adapter, config, turns=turns, memory=self.folder / _name_of(label))

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """While a stream is being ended, those that begin wait for its memory."""
        with self._changed:
            self._num_leaving += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_leaving -= 1
                self._changed.notify_all()

    def close(self, session: StreamSession) -> None:
        """Close a session over one of these memories; where nothing was stored, the memory goes, too."""
        session.close()
        if session.memory is not None and session.writes:
            with self._changed:
                self._discard(session.memory.folder)

    def _of(self, key: str, identity: Identity) -> Iterator[Path]:
        """The memories of one recording, newest first."""
        for folder in reversed(memories(self.folder) if key else []):
            try:
                memory = open_memory(folder)
            except MemoryBankError as error:
                logger.warning("%s; it is not continued", error)
                continue
            try:
                sitting, theirs = memory.manifest.last_sitting(), memory.identity
            finally:
                memory.close()
            alike = theirs.model == identity.model and theirs.settings == identity.settings
            if sitting is not None and sitting.source_key == key and alike:
                yield folder

    def _discard(self, folder: Path) -> None:
        try:
            delete_if_empty(folder)
        except MemoryBankError as error:
            logger.warning("%s", error)


def _name_of(label: str) -> str:
    """A name of its own for a new memory, from the time and the source."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:40]
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{words}-{secrets.token_hex(2)}"
