"""The nouns of a watch: its rules, what was found for it at a moment, what was decided, and an alert."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import get_type_hints

from data.errors import WatchError
from vstream.watches.condition import Condition


@dataclass(frozen=True)
class WatchRules:
    """When a watch may fire. Times are seconds of the stream. Raises WatchError for rules that cannot be kept.

    threshold: the least P(yes). cooldown_seconds: silence after an alert. confirm, of: an alert needs `confirm` confirming
    looks among the `of` looks from the first "yes" on; None: as it fits the model, of which a first look must be sure.
    once: the watch ends with its first alert. expires_seconds: it ends this long after it was set.
    """

    threshold: float = 0.5
    cooldown_seconds: float = 3.0
    confirm: int | None = None
    of: int | None = None
    once: bool = False
    expires_seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise WatchError(f"threshold is {self.threshold}; give a number between 0 and 1")
        if not 0 <= self.cooldown_seconds < float("inf"):
            raise WatchError(f"cooldown is {self.cooldown_seconds} s; give 0 or more")
        if self.expires_seconds is not None and not 0 < self.expires_seconds < float("inf"):
            raise WatchError(f"expiry is {self.expires_seconds} s; give more than 0, or leave it out")
        confirm, of = self.confirm, self.of
        if (confirm is not None and not 1 <= confirm <= 60) or (of is not None and not 1 <= of <= 60):
            raise WatchError(f"confirmation is {confirm} of {of}; give whole numbers from 1 to 60")
        if (confirm or 1) > (of or 60):
            raise WatchError(
                f"confirmation is {confirm} of {of}, which can never come; give at most as many as there are looks"
            )

    def looks(self, default_of: int) -> tuple[int, int]:
        """How many confirming looks of how many. default_of: where the rules leave it open."""
        confirm = self.confirm or 1
        return confirm, self.of or max(confirm, default_of)


@dataclass(frozen=True)
class Watch:
    """A watch as it was set. number: counts up from 1 in a stream."""

    number: int
    written: str
    condition: Condition
    rules: WatchRules
    set_at_seconds: float


@dataclass(frozen=True)
class Findings:
    """What was found for one watch at one moment: all that a decision rests on.

    looked: whether the model was asked at all; gate: why, or why not. score: P(yes), None where it was not asked.
    confirmed: how likely the confirming answer was, in [0, 1]; None where it was not wanted.
    """

    watch: int
    at_seconds: float
    chunk_id: int
    start_seconds: float
    end_seconds: float
    looked: bool
    gate: str
    score: float | None = None
    confirmed: float | None = None


@dataclass(frozen=True)
class WatchDecision:
    """One line of the log. verdict: fired, declined, suppressed or expired. reason: one line for a person."""

    findings: Findings
    verdict: str
    threshold: float
    reason: str


@dataclass(frozen=True)
class Alert:
    """A watch that fired. score: P(yes). start_seconds, end_seconds: the clip that shows it. thumbnail: JPEG of the chunk.
    reason: why it fired, as the log says it."""

    watch: str
    number: int
    fired_at_seconds: float
    text: str
    score: float
    chunk_id: int
    start_seconds: float
    end_seconds: float
    thumbnail: bytes
    reason: str = ""

    def row(self) -> dict[str, object]:
        """The JSON line of an alert."""
        return {
            "watch": self.watch,
            "fired_at_seconds": round(self.fired_at_seconds, 3),
            "text": self.text,
            "score": round(self.score, 4),
            "chunk_id": self.chunk_id,
        }


def decision_row(decision: WatchDecision) -> dict[str, object]:
    """A decision as one flat JSON object; floats are kept whole, so that reading it back loses nothing."""
    return {
        **asdict(decision.findings),
        "verdict": decision.verdict,
        "threshold": decision.threshold,
        "reason": decision.reason,
    }


def read_log(lines: Iterable[str]) -> list[WatchDecision]:
    """The decisions in JSON lines that `decision_row` wrote. Raises WatchError for a line that is none."""
    kinds = get_type_hints(Findings)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            for name, kind in kinds.items():
                # A whole number may stand for any other.
                if not isinstance(row[name], kind) and (kind in (bool, str) or type(row[name]) is not int):
                    raise TypeError(name)
                if type(row[name]) is int and kind is not int:
                    row[name] = float(row[name])
            findings = Findings(**{name: row[name] for name in kinds})
            found.append(WatchDecision(findings, row["verdict"], row["threshold"], row["reason"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WatchError(f"line {number} of the log is no decision of a watch; give a file that --log wrote") from error
    return found
