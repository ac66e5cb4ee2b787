"""Watches that outlive their session: in the notes of the stream's stored memory, with their decisions and alerts."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.errors import MemoryBankError, WatchError
from memory.notes import Note, Notes
from vstream.prompts import Prompts
from vstream.watches.base import Alert, WatchDecision, decision_row, read_log
from vstream.watches.state import WatchState

logger = logging.getLogger(__name__)

MOST = {"watch": 1000, "alert": 1000, "decision": 20_000}
WRITE_SECONDS = 5.0
"""Decisions are written this often, in seconds of the stream; alerts and changes of a watch at once."""


class KeptWatches:
    """The watches of one stored memory. Where it cannot be written, that is logged once and the stream goes on.

    picture_of: the JPEG of a chunk, empty if there is none. Where a watch posts its alerts is not kept: it may be a secret.
    """

    def __init__(self, notes: Notes, picture_of: Callable[[int], bytes], write: bool) -> None:
        self.notes = notes
        self.picture_of = picture_of
        self.write = write
        self._pending: deque[Note] = deque(maxlen=MOST["decision"])
        self._written_seconds = float("-inf")
        self._failed = False

    def states(self, prompts: Prompts) -> Iterator[tuple[WatchState, bool]]:
        """Every watch that was ever set, as it was left, and whether it may still fire."""
        for row in self._rows("watch"):
            try:
                yield WatchState.of(row, prompts), bool(row["active"])
            except (KeyError, TypeError, WatchError) as error:
                logger.warning("a watch in %s cannot be taken up again: %s", self.notes.manifest.folder, error)

    def decisions(self) -> list[WatchDecision]:
        """The newest decisions, oldest first."""
        return read_log(note.content for note in self.notes.of("decision"))

    def alerts(self) -> list[Alert]:
        """The newest alerts, oldest first."""
        return [Alert(**row, thumbnail=self.picture_of(row["chunk_id"])) for row in self._rows("alert")]

    def first_free(self, kind: str) -> int:
        """The number after that of the newest note of a kind."""
        return max((note.number + 1 for note in self.notes.of(kind)), default=0)

    def decided(self, decisions: Sequence[WatchDecision], first_number: int) -> None:
        """Decisions to be written. first_number: counts all decisions of the memory."""
        for number, decision in enumerate(decisions, first_number):
            found = decision.findings
            self._pending.append(
                Note("decision", number, json.dumps(decision_row(decision)), found.start_seconds, found.end_seconds)
            )

    def alerted(self, alerts: Sequence[Alert], first_number: int) -> None:
        """Alerts to be written. first_number: counts all alerts of the memory."""
        for number, alert in enumerate(alerts, first_number):
            row = {name: value for name, value in vars(alert).items() if name != "thumbnail"}
            self._pending.append(Note("alert", number, json.dumps(row), alert.start_seconds, alert.end_seconds))

    def due(self, now_seconds: float) -> bool:
        """Whether it is time to write."""
        return self.write and now_seconds - self._written_seconds >= WRITE_SECONDS

    def save(self, states: Sequence[tuple[WatchState, bool]], now_seconds: float) -> None:
        """Write what waits, and the watches as they are now. states: each with whether it may still fire."""
        if not self.write:
            return
        self._written_seconds = now_seconds
        notes = [Note("watch", s.watch.number, json.dumps({**s.row(), "active": active})) for s, active in states]
        by_kind = {kind: [note for note in [*self._pending, *notes] if note.kind == kind] for kind in MOST}
        try:
            for kind, most in MOST.items():
                self.notes.put(by_kind[kind], most)
        except MemoryBankError as error:
            if not self._failed:
                logger.warning("%s; watches go on, but are not remembered", error)
            self._failed = True
            return
        self._failed = False
        self._pending.clear()

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        """Let go of what waits to be written about a span; what was written goes with the chunks."""
        kept = (
            note
            for note in self._pending
            if note.start_seconds is None
            or note.end_seconds is None
            or note.end_seconds <= start_seconds
            or note.start_seconds >= end_seconds
        )
        self._pending = deque(kept, self._pending.maxlen)

    def _rows(self, kind: str) -> Iterator[dict[str, Any]]:
        return (json.loads(note.content) for note in self.notes.of(kind))
