"""What was said unasked, scored against the schedule of its stream: hits, delays, duplicates, false alarms, words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.questions import canonical, comment_at
from data.world import World
from eval.scoring import Rate, median
from eval.trace import Pair, pairs_of, trace_score
from vstream.commentary import Utterance

NEAR_SECONDS = 2.0


@dataclass
class Tally:
    """Counts of one kind of stream under one protocol. delays: signed, of hits, in seconds. pairs, num_told, num_to_tell: for
    TRACE."""

    hits: int = 0
    misses: int = 0
    false: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    delays: list[float] = field(default_factory=list)
    words: int = 0
    timing: list[float] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    num_told: int = 0
    num_to_tell: int = 0
    said: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Ready for JSON. false_per_hour: per hour of one watch, or of one commented stream."""
        rate = Rate(self.hits, self.hits + self.misses)
        return {
            "hit": rate.value,
            "hit_words": str(rate),
            "n": rate.n,
            "misses": self.misses,
            "delay_median_seconds": median(self.delays),
            "duplicates": self.duplicates,
            "duplicate_share": self.duplicates / self.said if self.said else 0.0,
            "false": self.false,
            "false_per_hour": self.false / self.seconds * 3600 if self.seconds else 0.0,
            "hours": self.seconds / 3600,
            "words_per_second": self.words / self.seconds if self.seconds else 0.0,
            "timing": float(np.mean(self.timing)) if self.timing else None,
            "trace": trace_score(self.pairs, self.num_told, self.num_to_tell) if self.num_to_tell else None,
            "wrong": self.wrong[:40],
        }


def score_watches(tally: Tally, world: World, names: list[str], alerts: list[tuple[str, float]]) -> None:
    """An alert within 2 s of its object's entry is a hit; a second one a duplicate; any other is false."""
    tally.seconds += world.seconds * len(names)
    for name in names:
        fired = [at for text, at in alerts if text == f"a {name} appears"]
        entries = [stay.start_seconds for stay in world.stays if stay.name == name]
        tally.said += len(fired)
        taken: set[int] = set()
        for at in fired:
            # Fired within the second of the entry is in time: its first frame shows the object.
            near = [e for e in entries if -NEAR_SECONDS <= at - e <= NEAR_SECONDS + 0.5]
            if not near:
                tally.false += 1
                tally.wrong.append(f"{at:.1f} s: {name} did not appear")
            elif near[0] in taken:
                tally.duplicates += 1
            else:
                taken.add(near[0])
                tally.delays.append(at - near[0])
        tally.hits += len(taken)
        tally.misses += len(entries) - len(taken)
        tally.wrong += [f"{entry} s: {name} was missed" for entry in entries if entry not in taken]


def score_comments(tally: Tally, world: World, said: list[Utterance]) -> None:
    """Every entry and exit is an event; a clause that names one within 2 s tells it. TRACE compares whole utterances.

    Timing: per event 1 - delay / 2 s where it is told, 0 where it is not; 1 is all told at once.
    """
    true = [(float(t), comment_at(world, t)) for t in range(world.seconds) if comment_at(world, t)]
    tally.pairs += pairs_of([(utterance.start_seconds, utterance.text) for utterance in said], true)
    tally.num_told += len(said)
    tally.num_to_tell += len(true)
    events = [(t, canonical(part)) for t in range(world.seconds) for part in comment_at(world, t).split(" and ") if part]
    tally.seconds += world.seconds
    told: dict[tuple[int, str], float] = {}
    for utterance in said:
        tally.words += len(utterance.text.split())
        for clause in canonical(utterance.text).split(" and "):
            tally.said += 1
            near = [e for e in events if e[1] == clause and abs(utterance.start_seconds - e[0]) <= NEAR_SECONDS]
            fresh = [e for e in near if e not in told]
            if fresh:
                told[fresh[0]] = utterance.start_seconds - fresh[0][0]
            elif near:
                tally.duplicates += 1
            else:
                tally.false += 1
                tally.wrong.append(f"{utterance.start_seconds:.0f} s: {clause}")
    tally.hits += len(told)
    tally.misses += len(events) - len(told)
    tally.delays += told.values()
    tally.timing += [1 - abs(told[e]) / NEAR_SECONDS if e in told else 0.0 for e in events]
    tally.wrong += [f"{t} s: not told: {words}" for t, words in events if (t, words) not in told]
