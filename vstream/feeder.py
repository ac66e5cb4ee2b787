"""Runs a source into a session in the background, so that questions can be asked while the stream goes on."""

from __future__ import annotations

import logging
import threading
import time

from data.errors import VStreamError
from data.sources import Source
from vstream.session import StreamSession

log = logging.getLogger(__name__)


class Feeder:
    """One thread that feeds one source to one session. `state` is the source's own until the feeder is stopped.

    `error` holds the one line that ended the stream, if something did. The session stays open and answerable.
    """

    def __init__(self, session: StreamSession, source: Source) -> None:
        self.session = session
        self.source = source
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._started = time.monotonic()
        self._stopped = threading.Event()
        self._ended = False

    def start(self) -> Feeder:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the stream; the last, unfinished chunk is stored. Waits for the chunk that is being encoded."""
        self._stopped.set()
        self.source.close()
        self._thread.join(timeout=30)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def state(self) -> str:
        """opening, live, paused, reconnecting, ended or failed."""
        if self._thread.is_alive():
            return self.source.stats.state
        return "ended" if self._ended and not self.error else "failed"

    @property
    def lag_seconds(self) -> float:
        """How far what has been watched is behind what the source has delivered, in seconds of stream."""
        return self.source.stats.lag_seconds

    @property
    def frames_per_second(self) -> float:
        """Sampled frames per second of wall time since the start."""
        return self.session.stats.num_frames / max(1e-6, time.monotonic() - self._started)

    def _run(self) -> None:
        try:
            source = self.source
            joined = self.session.join(source.info.label, source.recording_key, source.place_key)
            if joined.words:
                log.warning("%s", joined.words)
            frames = source.frames(self.session.config.fps, joined.start_seconds)
            for _ in self.session.feed(frames, lambda: source.waits):
                if self._stopped.is_set():
                    break
            self.session.finish()
            self._ended = True
        except VStreamError as error:
            # A sentence that was begun is told, also where the stream breaks off.
            self.session.unasked.finish()
            self.error = str(error)
            log.warning("the stream ended: %s", error)
