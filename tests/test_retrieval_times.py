"""Times in questions, the retriever that reads them, and the gate."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from test_retrieval import chunk, filled, ids, question

from data.errors import ConfigError
from retrieval.gate import Gate, robust_z
from retrieval.key_similarity import KeySimilarity
from retrieval.temporal import Combined, Temporal, TimeSpan, parse_times

NOW = 1000.0
NAMED = {
    "what was on screen at 37 s ?": (37, 37),
    "What was on screen at 37s?": (37, 37),
    "at 37 seconds": (37, 37),
    "at 37.5 sec.": (37.5, 37.5),
    "at the 37 second mark": (37, 37),
    "at second 37": (37, 37),
    "at t = 37 s": (37, 37),
    "what was there at 1:05?": (65, 65),
    "at 01:02:03": (3723, 3723),
    "at 1 minute 30 seconds": (90, 90),
    "at 1m30s": (90, 90),
    "at two and a half minutes": (150, 150),
    "at twenty-five seconds": (25, 25),
    "at thirty seven seconds": (37, 37),
    "At sixty s": (60, 60),
    "5 minutes into the video": (300, 300),
    "in the first minute": (0, 60),
    "within the first thirty seconds": (0, 30),
    "in the first half hour": (0, 1800),
    "in the second minute": (60, 120),
    "in the 3rd minute": (120, 180),
    "in the last 30 seconds": (970, 1000),
    "during the past minute": (940, 1000),
    "in the last two hours and 5 minutes": (0, 1000),
    "five minutes ago": (685, 715),
    "2 min ago": (874, 886),
    "a minute ago": (937, 943),
    "a few minutes ago": (730, 910),
    "half an hour ago": (-710, -710),
    "between 5 and 10 minutes ago": (400, 700),
    "between 10 s and 20 s": (10, 20),
    "between 10 and 20 s": (10, 20),
    "between 20 s and 10 s": (10, 20),
    "from 1:00 to 2:00": (60, 120),
    "from ten to twenty seconds": (10, 20),
    "0:10-0:20": (10, 20),
    "at 10–20 s": (10, 20),
    "seconds 10 to 20": (10, 20),
    "before 20 s": (0, 20),
    "up to 1:00": (0, 60),
    "after 90 seconds": (90, 1000),
    "since 1:00": (60, 1000),
    "after 2000 s": (2000, 2000),
}
NOT_NAMED = """what came after the red circle ?
what came after the second red circle ?
what happened after a second red circle appeared ?
which way did the second red circle move ?
when did the red circle appear ?
did a red circle appear ?
what is on screen now ?
what was the last object ?
what was the first second object ?
did 3 stars appear ?
was there one square ?
did it stay for at least 5 seconds ?
are there 5 stars at 5 squares ?
was it there at 10:30 pm ?
is it between two and three ?
did it move from 1 to 2 ?
what appeared 20 seconds after the red circle ?
the 2 circles at the top
is the ratio 16:9 ?"""


@pytest.mark.parametrize("text", NAMED)
def test_times_that_are_named(text: str) -> None:
    (span,) = parse_times(text, NOW)
    assert (span.start_seconds, span.end_seconds) == pytest.approx(NAMED[text])


@pytest.mark.parametrize("text", NOT_NAMED.splitlines())
def test_words_that_name_no_time(text: str) -> None:
    assert parse_times(text, NOW) == []


def test_several_times_in_the_order_of_the_words() -> None:
    assert parse_times("was it red at 50 s or at 0:20 or in the first minute ?", NOW) == [
        TimeSpan(50, 50),
        TimeSpan(20, 20),
        TimeSpan(0, 60),
    ]


def test_every_number_word_up_to_ninety_nine() -> None:
    ones = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    teens = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    words = ["zero", *ones, *teens]
    for ten in tens:
        words += [ten, *(f"{ten}-{one}" for one in ones)]
    for number, word in enumerate(words):
        assert parse_times(f"what was on screen at {word} seconds ?", NOW) == [TimeSpan(number, number)]
        assert parse_times(f"at {number} s", NOW) == parse_times(f"at {number // 60}:{number % 60:02}", NOW)


def overlapping(low: float, high: float, num: int) -> list[int]:
    return [i for i in range(num) if (i <= low < i + 1 if low == high else i < high and i + 1 > low)]


@pytest.mark.parametrize("seed", range(30))
def test_temporal_brings_the_named_chunks_then_their_neighbours(seed: int) -> None:
    rng = random.Random(seed)
    low = rng.randint(0, 40)
    high = low + rng.choice([0, 0, 1, 3, 10])
    text = f"at {low} s" if low == high else f"between {low} s and {high} s"
    until, margin, top_k = float(rng.randint(35, 50)), rng.randint(0, 2), rng.randint(1, 8)
    retriever = filled(Temporal(margin), [chunk(i) for i in range(50)])
    hits = retriever.search(question(text=text), top_k, until)
    named = [i for i in overlapping(low, high, 50) if i + 1 <= until]
    if len(named) > top_k:
        assert len(hits) == top_k and set(ids(hits)) <= set(named)
        steps = [b - a for a, b in zip(sorted(ids(hits)), sorted(ids(hits))[1:], strict=False)]
        assert not steps or max(steps) - min(steps) <= 1, "thinned evenly"
        return
    beside = [i for i in range(50) if i + 1 <= until and i not in named and any(abs(i - n) <= margin for n in named)]
    assert set(ids(hits)[: len(named)]) == set(named)
    assert len(hits) == min(top_k, len(named) + len(beside)) and set(ids(hits)) <= {*named, *beside}
    middles = [abs(hit.start_seconds + 0.5 - (low + high) / 2) for hit in hits[: len(named)]]
    assert middles == sorted(middles), "the closest to the middle of the span first"


def test_temporal_counts_back_from_the_time_of_the_question() -> None:
    retriever = filled(Temporal(0), [chunk(i) for i in range(100)])
    assert ids(retriever.search(question(text="ten seconds ago"), 5, 60.0)) == [49, 50]
    assert set(ids(retriever.search(question(text="in the last 3 s"), 5, 60.0))) == {57, 58, 59}
    assert set(ids(retriever.search(question(text="in the last 3 s"), 5, math.inf))) == {97, 98, 99}
    assert retriever.search(question(text="at 80 s"), 5, 60.0) == []
    assert ids(retriever.search(question(text="at 30 s"), 5, 60.0, exclude=[30])) == []
    assert retriever.search(question(text="two minutes ago"), 5, 60.0) == []


def test_an_exact_time_is_not_crowded_out_by_a_long_span() -> None:
    retriever = filled(Temporal(), [chunk(i) for i in range(100)])
    hits = ids(retriever.search(question(text="in the first minute and at 90 s"), 4, 100.0))
    assert 90 in hits and len(hits) == 4 and all(i < 60 for i in hits if i != 90)


def test_combined_puts_named_times_first_and_fills_up() -> None:
    chunks = [chunk(i) for i in range(60)]
    base = filled(KeySimilarity(), chunks)
    both = filled(Combined(Temporal(), KeySimilarity()), chunks)
    plain = question(3, "what came after the red circle ?")
    assert both.search(plain, 8, 60.0, [5]) == base.search(plain, 8, 60.0, [5])
    named = question(3, "what was on screen at 37 s ?")
    hits = both.search(named, 8, 60.0, [5])
    assert ids(hits)[0] == 37 and set(ids(hits)[1:3]) == {36, 38}
    assert hits[3:] == base.search(named, 5, 60.0, [5, 36, 37, 38])
    assert ids(both.search(named, 2, 60.0)) == [37, 36]


@pytest.mark.parametrize("seed", range(5))
def test_robust_z_is_the_z_score_that_outliers_do_not_move(seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.gauss(5.0, 2.0) for _ in range(4001)]
    assert robust_z(scores, 11.0) == pytest.approx(3.0, abs=0.2)
    middle = statistics.median(scores)
    mad = statistics.median(abs(score - middle) for score in scores)
    assert robust_z(scores, 11.0) == pytest.approx((11.0 - middle) / (1.4826 * mad))
    assert robust_z([*scores, *[10**6] * 20], 11.0) == pytest.approx(robust_z(scores, 11.0), abs=0.1)
    assert robust_z([7 * score - 3 for score in scores], 7 * 11.0 - 3) == pytest.approx(robust_z(scores, 11.0))


def test_gate() -> None:
    scores = [float(i % 10) for i in range(100)]
    assert Gate(3.0).open([*scores, 40.0], [40.0, 8.0])
    assert not Gate(3.0).open(scores, [9.0, 9.0]) and not Gate(3.0).open(scores, [])
    assert Gate(0.0).open(scores, []) and Gate(0.0).open([], [])
    assert Gate(3.0).open([1.0, 1.0], [1.0]), "too few chunks to tell"
    assert robust_z([1.0, 1.0, 1.0], 1.0) == 0.0 and robust_z([1.0, 1.0, 1.0], 2.0) == math.inf
    assert not Gate(3.0).open([1.0] * 9, [1.0]) and Gate(3.0).open([*[1.0] * 9, 2.0], [2.0])
    with pytest.raises(ValueError, match="at least one"):
        robust_z([], 1.0)
    for bad in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="gate="):
            Gate(bad)
