"""One browser tab: its stream, its conversation, and what it is looking at."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from data.errors import MemoryBankError, QuestionError, SourceError, VStreamError
from data.frames import tick_of
from data.sources import PushSource, Source
from memory.records import Moment
from model_adapters.base import ModelAdapter
from vstream.answer import Answer, Evidence
from vstream.config import SessionConfig
from vstream.feeder import Feeder
from vstream.ingest import ChunkRecord
from vstream.library import Library
from vstream.remembered import stored_settings
from vstream.session import StreamSession
from vstream.turns import Turns
from vstream.ui.before import Before
from vstream.ui.dialogue import Exchange, finished_turns
from vstream.ui.stage import Picture
from vstream.ui.text import clock, percent, span
from vstream.ui.timeline import tier_names
from vstream.ui.watched import WatchedSource
from vstream.unasked import Wishes

CAMERA_SILENCE_SECONDS = 3.0
"""A camera that has sent nothing for this long is paused; what it sends next is a new beginning."""
CLOSE_WAIT_SECONDS = 30.0


class Tab:
    """A stream session of its own, and the conversation about it. All tabs share one adapter and one `turns`."""

    def __init__(self, adapter: ModelAdapter, config: SessionConfig, turns: Turns, library: Library | None = None) -> None:
        """library: where streams are remembered; None: nowhere."""
        self.adapter = adapter
        self.config = config
        self.turns = turns
        self.library = library
        self.tier_names = tier_names(adapter.device.type)
        self.session: StreamSession | None = None
        self.num_streams = 0
        """How many streams and stored memories have been open here: tells the alerts of one from those of another."""
        self.source: WatchedSource | None = None
        self.feeder: Feeder | None = None
        self.is_upload = False
        self.dialogue: list[Exchange] = []
        self.shown = 0
        """Which answer of the conversation the chips and the marks belong to."""
        self.marked: frozenset[int] = frozenset()
        """The chunks behind that answer."""
        self.moment: int | None = None
        """The past chunk that is on the stage; None: the newest frame."""
        self.sent: dict[str, object] = {}
        """What the last refresh has shown, so that the next one sends only what is new."""
        self.filled_for: StreamSession | None = None
        """The stream by whose commentary the fields of the page were filled; what is typed then stays."""
        self.last_seen = time.monotonic()
        self.closed = False
        self.tokens_per_second = 0.0
        self.before = Before()
        self.why_left = ""
        self.num_told = 0
        """How much the library had said when this stream began."""
        self._wishes = Wishes()
        """What was wanted unasked of the last stream that was watched; a stored memory in between changes nothing."""
        self._camera: PushSource | None = None
        self._camera_key = f"camera {secrets.token_hex(8)}"
        """Of this page: another page's camera may be somebody else's."""
        self._camera_seen = float("-inf")
        self._lock = threading.RLock()
        self._asking = threading.Lock()
        self._cancel = threading.Event()
        self.rate: deque[tuple[float, int]] = deque(maxlen=12)

    def start(self, source: Source, is_upload: bool = False) -> None:
        """Watch `source` with what the library remembers of it, in a new conversation. The stream before it is closed."""
        with self._lock:
            if self.closed:
                source.close()
                raise SourceError("this page was closed; reload it")
            self._end_stream()
            num_told = self.library.num_notices if self.library else 0
            try:
                self.session = self._session_for(source)
                self.session.unasked.take_over(self._wishes)
            except VStreamError:
                source.close()
                raise
            self.source = WatchedSource(source, self.config.chunk_seconds)
            self._camera = source if isinstance(source, PushSource) else None
            self.is_upload = is_upload
            self.before = Before.of(self.session)
            self.num_told = num_told
            self.feeder = Feeder(self.session, self.source).start()
            self.sent.clear()

    def open_stored(self, folder: Path) -> None:
        """Answer from a stored memory; there is nothing to watch. The stream before it is closed. Raises MemoryBankError."""
        with self._lock:
            if self.closed:
                raise SourceError("this page was closed; reload it")
            # Opened first: where that fails, what runs goes on.
            config = self.config.replace(**stored_settings(folder))
            if self.library:
                session = self.library.read(self.adapter, config, self.turns, folder)
            else:
                session = StreamSession(self.adapter, config, turns=self.turns, memory=folder, read_only=True)
            self._end_stream()
            self.session, self.is_upload, self.before = session, False, Before.of(session)

    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        """Really remove a span of the stream that is being watched, its large pictures too. Returns the ids of its chunks."""
        if self.session is None:
            raise QuestionError("there is no stream yet; choose a source and start it")
        ids = self.session.forget(start_seconds, end_seconds)
        if self.source is not None:
            self.source.forget(start_seconds, end_seconds)
        self.sent.clear()
        return ids

    def reads(self, folder: Path) -> bool:
        """Whether this page answers from the stored memory in `folder`, without writing it."""
        session = self.session
        return session is not None and session.memory is not None and session.memory.folder == folder and not session.writes

    def reread(self, folder: Path) -> None:
        """Open a stored memory anew, if it is the one that is open: something was forgotten in it, in RAM too from now on."""
        with self._lock:
            if self.reads(folder):
                dialogue = self.dialogue
                self.open_stored(folder)
                self.dialogue = dialogue

    def leave(self, why: str = "") -> None:
        """Close the stream and its memory; the page stays open. why: what the page says about it."""
        with self._lock:
            self._end_stream()
            self.why_left = why

    def stop(self) -> None:
        """End the stream. What was watched can still be asked about."""
        with self._lock:
            self._camera = None
            if self.feeder:
                self.feeder.stop()

    def close(self) -> None:
        """Cancel what runs and free everything. Idempotent."""
        with self._lock:
            self.closed = True
            self._end_stream()

    def push(self, rgb: np.ndarray) -> None:
        """A frame of this tab's camera, uint8 [H, W, 3]. The first one after a silence starts a camera stream."""
        now = time.monotonic()
        fresh, self._camera_seen = now - self._camera_seen > CAMERA_SILENCE_SECONDS, now
        with self._lock:
            if self._camera is None and fresh:
                self.start(PushSource("camera of this browser", place_key=self._camera_key))
            camera = self._camera
        # After a stop, or when another source was started, the camera's remaining frames are not wanted.
        if camera is not None:
            camera.push(rgb)

    def ask(self, question: str, at: float | None = None, with_dialogue: bool = False) -> Iterator[Answer]:
        """Yields the growing answer; `cancel` ends it at the next token. Raises QuestionError for what cannot be asked."""
        session = self.session
        if session is None:
            raise QuestionError("there is no stream yet; choose a source and start it")
        if not self._asking.acquire(blocking=False):
            raise QuestionError("an answer is still being written; stop it, or wait for it")
        try:
            self._cancel.clear()
            turns = finished_turns(self.dialogue) if with_dialogue else ()
            began, num_tokens = 0.0, 0
            with closing(cast("Generator[Answer, None, None]", session.ask(question, at, turns))) as answers:
                for answer in answers:
                    num_tokens += not answer.done
                    began = began or time.monotonic()
                    if num_tokens > 1:
                        self.tokens_per_second = (num_tokens - 1) / max(1e-6, time.monotonic() - began)
                    yield answer
                    if self._cancel.is_set():
                        break
        finally:
            self._asking.release()

    def cancel(self) -> None:
        """End the answer that is being written, at its next token."""
        self._cancel.set()

    @property
    def camera_is_silent(self) -> bool:
        return self._camera is not None and time.monotonic() - self._camera_seen > CAMERA_SILENCE_SECONDS

    def records(self) -> Sequence[Moment]:
        """What there is to draw of all stored chunks, in stream order."""
        return self.session.timeline if self.session else []

    def record(self, chunk_id: int) -> ChunkRecord | None:
        return self.session.record(chunk_id) if self.session else None

    def tier(self, chunk_id: int) -> str | None:
        return self.session.bank.tier(chunk_id) if self.session else None

    def thumbnail(self, chunk_id: int) -> bytes | None:
        """A small JPEG of a chunk. A chunk that is not complete yet has only the large one."""
        record = self.record(chunk_id)
        return record.thumbnail if record else self._large(chunk_id)

    def evidence(self, exchange: Exchange) -> list[Evidence]:
        """The moments behind an answer; the chunk that was unfinished then goes by the id that it was stored under."""
        found = exchange.answer.evidence if exchange.answer else ()
        length = self.session.config.chunk_seconds if self.session else self.config.chunk_seconds
        return [replace(e, chunk_id=tick_of(e.start_seconds, 1 / length)) if e.chunk_id < 0 else e for e in found]

    def _large(self, chunk_id: int) -> bytes | None:
        return self.source.picture(chunk_id) if self.source else None

    def picture(self) -> Picture | None:
        """What the stage shows: the chosen moment with its kept cells, else the newest frame."""
        if self.moment is not None:
            return self._moment_picture(self.moment)
        newest = self.source.newest() if self.source else None
        return Picture(newest[1], f"Stream time {clock(newest[0])}") if newest else None

    def _moment_picture(self, chunk_id: int) -> Picture | None:
        record, large = self.record(chunk_id), self._large(chunk_id)
        if record is None:
            start = chunk_id * self.config.chunk_seconds
            return Picture(large, span(start, start + self.config.chunk_seconds)) if large else None
        tier = self.tier_names[self.tier(chunk_id) or "gone"]
        caption = (
            f"{span(record.start_seconds, record.end_seconds)} · {percent(record.drop_ratio)} of its tokens dropped · {tier}"
        )
        jpeg = large or record.thumbnail
        return Picture(jpeg, caption, np.asarray(record.keep.any(axis=0))) if jpeg else None

    def look_at(self, chunk_id: int) -> float:
        """Put a chunk on the stage; returns its stream time. Raises MemoryBankError if it is gone."""
        if self.record(chunk_id) is None and self._large(chunk_id) is None:
            raise MemoryBankError("this moment is no longer in memory; choose a later one")
        self.moment = chunk_id
        self.sent.clear()
        return chunk_id * self.config.chunk_seconds

    def look_live(self) -> None:
        self.moment = None
        self.sent.clear()

    def _session_for(self, source: Source) -> StreamSession:
        if self.library is None:
            return StreamSession(self.adapter, self.config, turns=self.turns)
        return self.library.session(self.adapter, self.config, self.turns, source)

    def _end_stream(self) -> None:
        self._cancel.set()
        with self.library.leaving() if self.library else nullcontext():
            if self.feeder:
                self.feeder.stop()
            if self.feeder and self.session:
                self._wishes = self.session.unasked.wishes
            # An answer that is being written still reads the memory: it ends at its next token.
            if self._asking.acquire(timeout=CLOSE_WAIT_SECONDS):
                self._asking.release()
            # Out of sight before it is closed: a page that is just being refreshed must be able to tell.
            session, self.session = self.session, None
            self.num_streams += 1
            if session and self.library:
                self.library.close(session)
            elif session:
                session.close()
        self.source = self.feeder = self._camera = None
        self.why_left = ""
        self.dialogue, self.marked, self.moment = [], frozenset(), None
        self.before, self.tokens_per_second = Before(), 0.0
        self.rate.clear()
        self.sent.clear()
