"""Triggers over triggers: any of several, and a cheap gate before a dear check."""

from __future__ import annotations

from collections.abc import Sequence

from vstream.config import SessionConfig
from vstream.triggers.base import Decision, LiveChunk, Trigger
from vstream.triggers.novelty import Novelty
from vstream.triggers.paced import Paced
from vstream.triggers.scene_tiling import SceneTiling

NOVELTY_COOLDOWN_SECONDS = 2.0
NOVELTY_PER_MINUTE = 12


class AnyOf(Trigger):
    """Fires where any of `triggers` does; all of them look at every moment. The first that fired gives the words."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        if not triggers:
            raise ValueError("there is no trigger to choose from; give at least one")
        self.triggers = tuple(triggers)

    def look(self, moment: LiveChunk) -> Decision:
        decisions = [trigger.look(moment) for trigger in self.triggers]
        return next((decision for decision in decisions if decision.fired), decisions[0])


class Gated(Trigger):
    """`check` is asked only where `gate` fires: gate, check, speak."""

    def __init__(self, gate: Trigger, check: Trigger) -> None:
        self.gate = gate
        self.check = check

    def look(self, moment: LiveChunk) -> Decision:
        gate = self.gate.look(moment)
        return self.check.look(moment) if gate.fired else gate


def create_gate(config: SessionConfig) -> Trigger:
    """What is worth a closer look: another scene, or far more that is new than of late. Stand a poll beside it."""
    return AnyOf([SceneTiling(), Paced(Novelty(config.key_every), NOVELTY_COOLDOWN_SECONDS, NOVELTY_PER_MINUTE)])
