"""Pacing: another trigger, kept from firing too often."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from vstream.triggers.base import Decision, LiveChunk, Trigger

MINUTE_SECONDS = 60.0


class Paced(Trigger):
    """`inner`, silent for `cooldown_seconds` after it fired, and at most `per_minute` times in any minute (None: no cap)."""

    def __init__(self, inner: Trigger, cooldown_seconds: float = 0.0, per_minute: int | None = None) -> None:
        self.inner = inner
        self.cooldown_seconds = cooldown_seconds
        self.per_minute = per_minute
        self._fired: deque[float] = deque()

    def look(self, moment: LiveChunk) -> Decision:
        decision = self.inner.look(moment)
        at = moment.at_seconds
        while self._fired and self._fired[0] <= at - max(MINUTE_SECONDS, self.cooldown_seconds):
            self._fired.popleft()
        if not decision.fired:
            return decision
        if self._fired and at - self._fired[-1] < self.cooldown_seconds:
            return replace(decision, fired=False, reason=f"{decision.reason}; still cooling down")
        within = sum(fired > at - MINUTE_SECONDS for fired in self._fired)
        if self.per_minute is not None and within >= self.per_minute:
            return replace(decision, fired=False, reason=f"{decision.reason}; {self.per_minute} times this minute already")
        self._fired.append(at)
        return decision
