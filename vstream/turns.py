"""One model, several users: whose turn it is. Answers go before ingest, and ingest is never starved."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWERS_IN_A_ROW = 8
"""Answer steps that may pass a waiting ingest step."""


class Turns:
    """A lock over the model with two queues. A turn is one chunk's encoding or one token of an answer."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._busy = False
        self._answers_waiting = 0
        self._ingests_waiting = 0
        self._in_a_row = 0

    @property
    def answer_waits(self) -> bool:
        """Whether a step of an answer waits for its turn."""
        return self._answers_waiting > 0

    @contextmanager
    def answer(self) -> Iterator[None]:
        """A turn for a step of an answer."""
        with self._free:
            self._answers_waiting += 1
            self._free.wait_for(lambda: not self._busy and not (self._ingests_waiting and self._in_a_row >= ANSWERS_IN_A_ROW))
            self._answers_waiting -= 1
            self._busy = True
            self._in_a_row += 1
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def ingest(self) -> Iterator[None]:
        """A turn for one chunk."""
        with self._free:
            self._ingests_waiting += 1
            self._free.wait_for(lambda: not self._busy and (not self._answers_waiting or self._in_a_row >= ANSWERS_IN_A_ROW))
            self._ingests_waiting -= 1
            self._busy = True
            self._in_a_row = 0
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._free:
            self._busy = False
            self._free.notify_all()
