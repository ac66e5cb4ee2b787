"""Scores by hand, controls that show what they say, and one small evaluation that adds up."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.questions import FAMILIES, ask_at, ask_when
from data.world import make_world
from eval.arms import Arm, Oracle, make_arms, remember
from eval.needle import AGES, Record, put, summary
from eval.report import table
from eval.run import main
from eval.scoring import Rate, exact, median, rate, recall_precision
from vstream.config import SessionConfig
from vstream.session import StreamSession

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def score(p: float, right: int, n: int) -> float:
    """How many standard errors (of a true rate p) the observed rate lies above p."""
    return (right / n - p) / math.sqrt(p * (1 - p) / n)


def bisected(right: int, n: int, low: float, high: float, target: float) -> float:
    """The p in (low, high) at which the score, which falls with p, is `target`."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle, right, n) > target else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("n", [1, 2, 7, 40, 1000])
def test_wilson_bounds_are_the_roots_of_the_score_test(n: int) -> None:
    for right in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        low, high = Rate(right, n).interval
        p, tiny = right / n, 1e-12
        assert low == pytest.approx(0.0 if right == 0 else bisected(right, n, tiny, p, Z), abs=1e-6)
        assert high == pytest.approx(1.0 if right == n else bisected(right, n, p, 1 - tiny, -Z), abs=1e-6)
        assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1


def test_rates_in_words() -> None:
    assert str(rate([])) == "–" and math.isnan(rate([]).value) and rate([]).interval == (0.0, 1.0)
    assert (rate([True, False, True, True]).right, rate([True, False, True, True]).value) == (3, 0.75)
    assert str(rate([True] * 5)).startswith("100.0 (") and "n=5" in str(rate([True] * 5))


@pytest.mark.parametrize("seed", range(20))
def test_recall_and_precision_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.permutation(30)[: rng.integers(0, 20)].tolist()
    wanted = set(rng.permutation(30)[: rng.integers(1, 8)].tolist())
    for k in (1, 4, 8, 16):
        hits = [i for rank, i in enumerate(found) if rank < k and i in wanted]
        shown = min(k, len(found))
        recall, precision = recall_precision(found, wanted, k)
        assert recall == len(hits) / len(wanted) and precision == (len(hits) / shown if shown else 0.0)


def test_exact_match_and_median() -> None:
    assert exact(" A  red\tCircle ", "a red circle") and not exact("a red circle.", "a red circle")
    for values in ([3.0], [4.0, 1.0], [5.0, 1.0, 2.0], [1.0, 9.0, 2.0, 4.0]):
        assert median(values) == np.median(values)
    assert math.isnan(median([]))


def test_tables_are_markdown() -> None:
    lines = table(["a", "bb"], [[1, "x"], ["long", 2.5]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and all(line.count("|") == 3 for line in lines)
    assert lines[1].strip("|-") == "" and lines[3].split("|")[1].strip() == "long"


@pytest.fixture(scope="module")
def watched(random_adapter):
    """A session that has watched half a minute, its world, and all arms that know its chunks."""
    world = make_world(seed=21, seconds=30, side=96)
    config = SessionConfig(window_seconds=4, top_k=4, max_new_tokens=3, drop="off")
    with StreamSession(random_adapter, config) as session:
        list(session.feed(world.frames(2.0)))
        arms = make_arms()
        remember(arms, session.bank.get(session.bank.chunk_ids()), ())
        yield session, world, arms


def tokens_of(session: StreamSession, ids: set[int], question: str) -> int:
    """The context of an answer that is shown these chunks."""
    stored = sum(kv.num_tokens for kv in session.bank.get(sorted(ids)))
    return session.ingest.sink.num_tokens + stored + session.adapter.question_run(question).num_tokens


def arm(arms: list[Arm], name: str) -> Arm:
    return next(arm for arm in arms if arm.name == name)


def test_the_oracle_is_shown_the_evidence_and_the_window_and_nothing_else(watched) -> None:
    session, world, arms = watched
    window = {26, 27, 28, 29}
    for second in (2, 9, 25, 28):
        question = ask_at(world, second, 29.5)
        view = session.view(29.5)
        answer, hits = arm(arms, "oracle").answer(session, question.question, view, {second})
        assert [hit.chunk_id for hit in hits] == ([] if second in window else [second])
        assert answer.num_context_tokens == tokens_of(session, window | {second}, question.question)
        assert {e.chunk_id for e in answer.evidence} <= window | {second}
    assert isinstance(arm(arms, "oracle").retriever, Oracle)
    _, hits = arm(arms, "oracle").answer(session, "now ?", session.view(29.5), set())
    assert hits == []


@pytest.mark.parametrize("at", [10.5, 29.5])
def test_every_control_is_shown_what_it_is_called(watched, at: float) -> None:
    session, _, arms = watched
    question, end = "what came after the red circle ?", int(at + 0.5)
    past, window = set(range(end)), set(range(end - 4, end))
    for name, shown in (("blind", set()), ("last 4 s", window), ("last window", window), ("all", past)):
        answer, _ = arm(arms, name).answer(session, question, session.view(at), {3})
        assert answer.num_context_tokens == tokens_of(session, shown, question), name
    answer, hits = arm(arms, "uniform").answer(session, question, session.view(at), {3})
    ids = {hit.chunk_id for hit in hits}
    assert len(ids) == 4 and not ids & window and ids <= past
    assert answer.num_context_tokens == tokens_of(session, ids | window, question)


def test_the_first_arm_is_the_sessions_own_way(watched) -> None:
    session, _, arms = watched
    for question in ("when did the red circle appear ?", "what was on screen at 4 s ?"):
        mine = session.answer(question, 29.5)
        theirs, _ = arms[0].answer(session, question, session.view(29.5), set())
        assert (mine.text, mine.evidence, mine.num_context_tokens) == (theirs.text, theirs.evidence, theirs.num_context_tokens)


def test_last_seconds_cut_the_window_and_the_open_chunk_stays(random_adapter) -> None:
    world = make_world(seed=21, seconds=12, side=96)
    with StreamSession(random_adapter, SessionConfig(window_seconds=8, max_new_tokens=2, drop="off")) as session:
        for frame in world.frames(2.0):
            if frame.pts_seconds <= 10.0:
                session.push(frame)
        arms = make_arms()
        view = session.view(10.0)
        part = view.partial.num_tokens
        blind, _ = arm(arms, "blind").answer(session, "now ?", view, set())
        last, _ = arm(arms, "last 4 s").answer(session, "now ?", view, set())
        assert blind.num_context_tokens == tokens_of(session, set(), "now ?")
        assert last.num_context_tokens == tokens_of(session, {6, 7, 8, 9}, "now ?") + part


def test_putting_a_question_scores_it_by_the_schedule(watched) -> None:
    session, world, arms = watched
    name = world.needles[0]
    question = ask_when(world, name, 29.5)
    records = {record.arm: record for record in put(session, arms, question)}
    assert set(records) == {arm.name for arm in arms}
    wanted = set(range(*question.evidence))
    assert records["oracle"].recall == {4: 1.0, 8: 1.0, 16: 1.0} and records["oracle"].precision[4] == 1.0
    assert records["blind"].recall[4] == 0.0
    spread = {hit.chunk_id for hit in arm(arms, "uniform").answer(session, question.question, session.view(29.5), set())[1]}
    assert records["uniform"].recall[4] == len(spread & wanted) / len(wanted)
    for record in records.values():
        assert record.right == exact(record.answer, question.answer)


def test_a_summary_counts_every_record_once() -> None:
    world = make_world(seed=2, seconds=90, side=96)
    rng = np.random.default_rng(0)
    records = []
    for number in range(60):
        at, age = int(rng.integers(70, 90)), (0, 1, 4, 5, 6, 29, 30, 31, 60)[number % 9]
        question = ask_at(world, at - age - 1, float(at))
        assert question.age_seconds == age
        question = replace(question, family=FAMILIES[number % 6])
        for name in ("ours", "blind"):
            right = bool(rng.random() < 0.5)
            found = {4: float(rng.random())} | dict.fromkeys((8, 16), 1.0) if number % 2 else {}
            shown = (number % 4 == 0, number % 2 == 0)
            records.append(Record(name, question, "x", right, number / 10, found, found, shown))
    result = summary(records)
    for name in ("ours", "blind"):
        rows = [r for r in records if r.arm == name]
        by_family = Counter(r.question.family for r in rows)
        accuracy = result["accuracy"][name]
        assert accuracy["all"]["n"] == 60 and accuracy["all"]["right"] == sum(r.right for r in rows)
        assert {f: accuracy[f]["n"] for f in FAMILIES} == by_family
        assert sum(accuracy[f]["right"] for f in FAMILIES) == accuracy["all"]["right"]
        ages = result["by_age"][name]
        assert sum(a["n"] for a in ages.values()) == 60
        # 5 s and 30 s open the next bin.
        counted = Counter(sum(r.question.age_seconds >= high for high, _ in AGES) for r in rows)
        assert [a["n"] for a in ages.values()] == [counted[k] for k in range(6)]
        assert list(ages) == [label for _, label in AGES]
        assert result["retrieval"][name]["n"] == 30
        assert result["retrieval"][name]["recall@4"] == pytest.approx(np.mean([r.recall[4] for r in rows if r.recall]))
        for kind, place in (("first", 0), ("any", 1)):
            proof = result["evidence"][name][kind]
            assert proof["n"] == accuracy["all"]["right"]
            assert proof["right"] == sum(r.right and r.shown[place] for r in rows)
        assert result["ttft_seconds"][name] == np.median([r.ttft_seconds for r in rows])
    assert len(result["wrong"]) == sum(not r.right for r in records if r.arm == "ours")


@pytest.mark.slow
def test_the_needle_evaluation_runs_and_adds_up(random_folder, tmp_path, capsys) -> None:
    path = tmp_path / "deep" / "needle.json"
    argv = ["needle", "--streams", "1", "--seconds", "12", "--moments", "2", "--encode", "none", "--max-new-tokens", "3"]
    assert main([*argv, "--window-seconds", "3", "--model", str(random_folder), "--json", str(path)]) == 0
    out, _ = capsys.readouterr()
    result = json.loads(path.read_text())
    names = [arm.name for arm in make_arms()]
    assert result["name"] == "needle" and list(result["accuracy"]) == names and result["environment"]["torch"]
    totals = set()
    for name in names:
        values = result["accuracy"][name]
        totals.add(values["all"]["n"])
        assert (
            values["all"]["n"] == sum(values[f]["n"] for f in FAMILIES) == sum(a["n"] for a in result["by_age"][name].values())
        )
        assert values["all"]["right"] == sum(values[f]["right"] for f in FAMILIES)
        assert f"| {name} " in out
        assert values["all"]["words"] in out
    # Six families at two moments, and all arms are asked the same.
    assert totals == {12}
    assert len(result["wrong"]) == 12 - result["accuracy"][names[0]]["all"]["right"]
    assert result["retrieval"]["oracle"]["recall@16"] in (None, 1.0)


def test_wrong_input_is_one_line(tmp_path, capsys) -> None:
    assert main(["needle", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for argv in (["nonsense"], ["needle", "--streams", "many"], []):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "needle --streams 0",
        "needle --moments 10001",
        "needle --first-seed -1",
        "needle --seconds many",
        "proactive --watches 17",
        "codecs --coarseness 1 nan",
        "crash --kills 0",
        "crash --sessions -1",
        "day --hours inf",
        "day --gpu-mib nan",
        "reads --chunk-mib 1e9",
        "reopen --hours 1 0",
        "efficiency --minutes 0",
    ],
)
def test_a_number_that_makes_no_sense_ends_it_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And not with a table of nothing, in which nothing failed."""
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and not out
    assert err.count("\n") == 1 and f"argument {words.split()[1]}: '{words.split()[-1]}' is none; give a " in err
