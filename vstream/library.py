"""A library: a folder in which the streams that are watched have their memories, found again by their sources."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import MemoryBankError
from data.sources import Source
from memory.files import unusable
from memory.identity import Identity
from memory.library import delete_if_empty, memories
from memory.opening import open_memory
from memory.room import GaveWay, Room, bytes_of, is_pinned, make_room
from memory.thinning import create_thinning
from model_adapters.base import ModelAdapter
from vstream.config import SessionConfig
from vstream.remembered import check_library, identity_of
from vstream.session import StreamSession
from vstream.turns import Turns

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 15.0
"""How long a new stream waits for one that is just being closed."""
GRACE_SECONDS = 2.0
KEEP_SECONDS = 10.0
"""How often the sizes are looked at while something is written."""
MIN_BYTES = 2**20
"""With less than that for itself, a stream is not worth remembering."""
MAX_NOTICES = 20


class Library:
    """One memory per recording, live address or page's camera, where its writer is free; a new one for every other stream.
    None of them is left empty, and all of them together stay within `library_bytes` (see `memory.room`): old ones give way,
    and if that is not enough, the open ones get smaller quotas. `notices` says so.

    The folder is made if it is missing. MemoryBankError if it is a memory itself, or cannot be used. Thread-safe.
    """

    def __init__(self, folder: Path, config: SessionConfig | None = None) -> None:
        check_library(folder)
        self.folder = folder = folder.absolute()
        self.config = config or SessionConfig()
        self.notices: deque[str] = deque(maxlen=MAX_NOTICES)
        """What gave way, and what was not remembered, in words, the newest last."""
        self.grace_seconds = GRACE_SECONDS
        """How long a new stream waits for the memory of its source where another one is still writing it: a page that is
        reloaded may begin anew before the old one is known to have gone."""
        self.num_notices = 0
        self.num_thinned = 0
        self.num_deleted = 0
        self._writing: dict[Path, StreamSession] = {}
        self._reading: Counter[Path] = Counter()
        self._keeper: threading.Thread | None = None
        self._num_leaving = 0
        self._changed = threading.Condition(threading.RLock())
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from error
        for left in memories(folder):
            self._discard(left)
        self.keep_within()

    def saved(self) -> list[str]:
        """The names of the memories, oldest first."""
        return [folder.name for folder in memories(self.folder)]

    def session(self, adapter: ModelAdapter, config: SessionConfig, turns: Turns, source: Source) -> StreamSession:
        """A session that writes the memory of what was watched before, or a new one. See `StreamSession.join`."""
        identity = identity_of(adapter.info, config)
        key = source.recording_key or source.place_key
        with self._changed:
            taken = [folder for folder in self._of(key, identity) if folder in self._writing]
            self._changed.wait_for(
                lambda: not self._num_leaving and not any(folder in self._writing for folder in taken),
                timeout=self.grace_seconds,
            )
            self._changed.wait_for(lambda: not self._num_leaving, timeout=RELEASE_SECONDS)
            room = self.keep_within()
            if room.share_bytes(len(self._writing) + 1) < MIN_BYTES:
                self._say(f"{self._taken(room)} and nothing in it may give way, so {source.info.label} is not remembered")
                return StreamSession(adapter, config, turns=turns)
            for folder in self._of(key, identity):
                try:
                    return self._written(StreamSession(adapter, config, turns=turns, memory=folder))
                except MemoryBankError as error:
                    logger.warning("%s; this stream gets a memory of its own", error)
            fresh = self.folder / _name_of(source.info.label)
            return self._written(StreamSession(adapter, config, turns=turns, memory=fresh))

    def read(self, adapter: ModelAdapter, config: SessionConfig, turns: Turns, folder: Path) -> StreamSession:
        """A session that answers from a memory, which stays as it is meanwhile."""
        with self._changed:
            session = StreamSession(adapter, config, turns=turns, memory=folder, read_only=True)
            self._reading[folder] += 1
            return session

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
        if session.memory is None:
            return
        with self._changed:
            folder = session.memory.folder
            if self._writing.pop(folder, None) is session:
                self._discard(folder)
            else:
                self._reading -= Counter([folder])
            self._changed.notify_all()

    def keep_within(self) -> Room:
        """Make room if there is too much, and tell the open memories how much they may take up."""
        with self._changed:
            room = room_for(self.folder, self.config, {*self._writing, *self._reading})
            for one in room.gave_way:
                self.num_deleted += one.deleted
                self.num_thinned += not one.deleted
                self._say(words_of(one, self.config))
            share = max(MIN_BYTES, room.share_bytes(len(self._writing)))
            for session in self._writing.values():
                assert session.memory is not None
                session.memory.limit(min(session.config.disk_bytes, share))
            return room

    def stats(self) -> dict[str, object]:
        """Sizes, counts and what was said, ready for JSON."""
        folders = memories(self.folder)
        return {
            "num_memories": len(folders),
            "num_pinned": sum(is_pinned(folder) for folder in folders),
            "num_bytes": sum(bytes_of(folder) for folder in folders),
            "capacity_bytes": self.config.library_bytes,
            "num_thinned": self.num_thinned,
            "num_deleted": self.num_deleted,
            "notices": list(self.notices),
        }

    def _taken(self, room: Room) -> str:
        taken, limit = room.num_fixed_bytes / 2**20, self.config.library_bytes / 2**20
        return f"the library {self.folder} takes up {taken:.0f} of {limit:.0f} MiB (--library-bytes)"

    def _say(self, words: str) -> None:
        logger.warning("%s", words)
        self.notices.append(words)
        self.num_notices += 1

    def _written(self, session: StreamSession) -> StreamSession:
        assert session.memory is not None
        self._writing[session.memory.folder] = session
        self.keep_within()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="library", daemon=True)
            self._keeper.start()
        return session

    def _keep(self) -> None:
        """While something is written, see to it that all of it stays within its bytes."""
        with self._changed:
            while self._writing:
                self._changed.wait(KEEP_SECONDS)
                try:
                    self.keep_within()
                except (MemoryBankError, OSError) as error:
                    self._say(f"the library cannot be kept within its bytes: {error}")
            self._keeper = None

    def _of(self, key: str, identity: Identity) -> Iterator[Path]:
        """The memories of one recording or place, newest first."""
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


def room_for(folder: Path, config: SessionConfig, held: Collection[Path]) -> Room:
    """Make room in a folder of memories, as `config` has it. held: see `memory.room.make_room`."""
    return make_room(folder, config.library_bytes, held, create_thinning(config.thinning))


def words_of(one: GaveWay, config: SessionConfig) -> str:
    """What to tell about a memory that gave way."""
    how = "was deleted" if one.deleted else f"was thinned out by {one.num_bytes / 2**20:.1f} MiB"
    limit = f"all together may take up {config.library_bytes / 2**20:.0f} MiB (--library-bytes)"
    return f"the memory {one.name} {how}: {limit}; pin what must stay"


def _name_of(label: str) -> str:
    """A name of its own for a new memory, from the time and the source."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:40]
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{words}-{secrets.token_hex(2)}"
