"""How one watch comes to a decision: a state machine without a model, so that its log can be replayed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vstream.prompts import Prompts
from vstream.watches.base import Findings, Watch, WatchDecision, WatchRules
from vstream.watches.condition import parse_condition

CONFIRM_THRESHOLD = 0.85
"""Least mean likelihood per token of the confirming answer: one doubtful word among four pulls the mean below it."""
SURE_THRESHOLD = 0.999
"""The same of a first look that more looks may follow: what is just entering has been taken for another thing at 0.998. One in
twenty true ones is below, and waits for the next look, which sees more of it."""


class WatchState:
    """What one watch remembers between moments. `decide` is given the findings in stream order."""

    def __init__(self, watch: Watch, prompts: Prompts) -> None:
        self.watch = watch
        self.begins_only = prompts.begins_only
        self.asks_again = bool(prompts.confirm and watch.condition.subject)
        """Whether a "yes" is confirmed by a question of another kind."""
        self.needed, self.looks_allowed = watch.rules.looks(prompts.confirm_looks)
        self.done = False
        self.clip_start_seconds = 0.0
        self.score = 0.0
        self._looks: list[bool] = []
        self._armed = True
        self._fired_at: float | None = None

    def row(self) -> dict[str, Any]:
        """The watch and what it remembers, ready for JSON."""
        watch = self.watch
        row = {"number": watch.number, "written": watch.written, "rules": asdict(watch.rules)}
        state = {
            "armed": self._armed,
            "looks": list(self._looks),
            "fired_at_seconds": self._fired_at,
            "clip_start_seconds": self.clip_start_seconds,
            "score": self.score,
        }
        return {**row, "set_at_seconds": watch.set_at_seconds, "state": state}

    @classmethod
    def of(cls, row: Mapping[str, Any], prompts: Prompts) -> WatchState:
        """Go on from what `row` gave. KeyError, TypeError or WatchError if it is none."""
        condition, rules, kept = parse_condition(row["written"]), WatchRules(**row["rules"]), row["state"]
        found = cls(Watch(row["number"], row["written"], condition, rules, _number(row["set_at_seconds"])), prompts)
        found._armed, found._looks = bool(kept["armed"]), [bool(look) for look in kept["looks"]]
        fired_at = kept["fired_at_seconds"]
        found._fired_at = None if fired_at is None else _number(fired_at)
        found.clip_start_seconds, found.score = _number(kept["clip_start_seconds"]), _number(kept["score"])
        return found

    @property
    def pending(self) -> bool:
        """Whether a "yes" waits for confirmation; the next moment must then be looked at."""
        return bool(self._looks)

    def wants_score(self) -> bool:
        """Whether a look needs P(yes)."""
        return not (self.pending and self.asks_again)

    def wants_confirmation(self, score: float | None) -> bool:
        """Whether a look that found `score` needs the confirming question too."""
        first = score is not None and score >= self.watch.rules.threshold and self._armed
        return self.asks_again and (self.pending or first)

    def decide(self, findings: Findings) -> WatchDecision:
        """The decision on one moment. Changes the state."""
        rules = self.watch.rules
        if rules.expires_seconds is not None and findings.at_seconds >= self.watch.set_at_seconds + rules.expires_seconds:
            self.done = True
            return self._said(findings, "expired", f"{rules.expires_seconds:g} s have passed since it was set")
        if not findings.looked:
            return self._said(findings, "declined", f"not looked at: {findings.gate}")
        if not self.pending:
            score = findings.score or 0.0
            if score < rules.threshold:
                self._armed = True
                return self._said(findings, "declined", f"the model says no ({score:.2f}, yes from {rules.threshold:.2f})")
            if not self._armed:
                return self._said(findings, "suppressed", "still true since the last alert; it must end first")
            self.clip_start_seconds, self.score = findings.start_seconds, score
        return self._confirm(findings)

    def _confirm(self, findings: Findings) -> WatchDecision:
        found = findings.confirmed if self.asks_again else findings.score
        self._looks.append((found or 0.0) >= self._least)
        num_yes, num = sum(self._looks), len(self._looks)
        words = f"the model says yes ({self.score:.2f}); {num_yes} of {num} looks confirm it"
        if num_yes < self.needed and num_yes + self.looks_allowed - num >= self.needed:
            return self._said(findings, "declined", f"{words}, {self.needed} of {self.looks_allowed} are needed: waiting")
        self._looks = []
        if num_yes < self.needed:
            return self._said(findings, "declined", f"{words}, {self.needed} of {self.looks_allowed} were needed")
        return self._fire(findings, words)

    @property
    def _least(self) -> float:
        """What the next look must find to confirm. Rules of one's own are kept to the letter."""
        if not self.asks_again:
            return self.watch.rules.threshold
        must_be_sure = not self._looks and self.looks_allowed > 1 and self.watch.rules.confirm is None
        return SURE_THRESHOLD if must_be_sure else CONFIRM_THRESHOLD

    def _fire(self, findings: Findings, words: str) -> WatchDecision:
        at, cooldown = findings.at_seconds, self.watch.rules.cooldown_seconds
        self._armed = self.begins_only
        if self._fired_at is not None and at - self._fired_at < cooldown:
            left = self._fired_at + cooldown - at
            return self._said(findings, "suppressed", f"{words}, but it cools down for another {left:.1f} s")
        self._fired_at = at
        self.done = self.watch.rules.once
        return self._said(findings, "fired", words)

    def _said(self, findings: Findings, verdict: str, reason: str) -> WatchDecision:
        return WatchDecision(findings, verdict, self.watch.rules.threshold, reason)


def _number(value: object) -> float:
    """`value`, if it is one that can be reckoned with, else TypeError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def replay(watch: Watch, prompts: Prompts, log: Iterable[WatchDecision]) -> list[WatchDecision]:
    """The decisions that the findings in `log` lead to, made again from nothing else: equal to `log`."""
    state = WatchState(watch, prompts)
    return [state.decide(decision.findings) for decision in log if decision.findings.watch == watch.number]
