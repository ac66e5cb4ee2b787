"""Needles in the synthetic world: accuracy by family and by age, retrieval against the schedule, and the controls."""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.frames import Frame
from data.questions import FAMILIES, WorldQuestion, questions_about
from data.sources import FileSource
from data.world import World, make_world
from eval.arms import Arm, make_arms, remember
from eval.flags import SEED, whole
from eval.report import hardware_words, table, write_json
from eval.scoring import Rate, exact, median, rate, recall_precision
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.recorded import Reel
from vstream.session import StreamSession

AGES = ((5, "0–5 s"), (30, "5–30 s"), (120, "30 s–2 min"), (600, "2–10 min"), (3600, "10 min–1 h"), (float("inf"), "over 1 h"))
CUTS = (4, 8, 16)
SIDES = (96, 128, 160, 240, 320)
RATES = (8, 10, 15, 25, 30)


@dataclass(frozen=True)
class Record:
    """One question to one arm. recall, precision: per cut, where the evidence lay outside of the window."""

    arm: str
    question: WorldQuestion
    answer: str
    right: bool
    ttft_seconds: float
    recall: dict[int, float]
    precision: dict[int, float]
    shown: tuple[bool, bool]
    """Whether the first moment of the evidence, and any of it, lies in the true span."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=whole(1), default=12)
    parser.add_argument("--seconds", type=whole(1), default=60, help="length of each stream")
    parser.add_argument("--moments", type=whole(1, 10_000), default=5, help="times per stream at which all families are asked")
    parser.add_argument("--first-seed", type=SEED, default=1_000_000, help="seeds of the streams; training draws others")
    parser.add_argument("--encode", choices=("mixed", "h264", "vp9", "none"), default="mixed", help="how frames are delivered")
    parser.add_argument("--only-ours", action="store_true", help="leave the controls out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = chosen_settings(args)
    adapter = chosen_model(args).load(config.gpu_bytes)
    records: list[Record] = []
    with Progress("needle", args.streams, "streams") as progress:
        for number in range(args.streams):
            seed = args.first_seed + number
            side, fps = SIDES[number % len(SIDES)], RATES[number % len(RATES)]
            world = make_world(seed, args.seconds, side=side)
            codec = ("h264", "vp9")[number % 2] if args.encode == "mixed" else args.encode
            with StreamSession(adapter, config) as session, tempfile.TemporaryDirectory() as folder:
                frames = delivered(world, codec, fps, Path(folder), config.fps, jitter=0.03 if number % 3 == 2 else 0.0)
                records += list(ask_along(session, world, frames, args.moments, seed, args.only_ours))
            progress.update(number + 1)
    result = summary(records)
    print_result(result, args)
    write_json(args.json, "needle", result)
    return result


def delivered(world: World, codec: str, fps: int, folder: Path, sample_fps: float, jitter: float) -> Iterator[Frame]:
    """The world's frames as they come out of an encoded file, or straight from the renderer."""
    if codec == "none":
        return world.frames(sample_fps)
    from data.sources.record import write_world

    path = write_world(world, folder / f"world.{'webm' if codec == 'vp9' else 'mp4'}", codec, fps, jitter)
    return FileSource(str(path)).frames(sample_fps)


def moments_of(world: World, num: int) -> list[float]:
    """The times at which questions are asked, the end of the stream last."""
    last = world.seconds - 1
    times = sorted({int(t) for t in np.linspace(max(4, world.seconds // num), last, num)})
    # Not on the second itself: in a stream of variable rate, the frame that shows a change comes a little after it.
    return [*(t + 0.1 for t in times[:-1]), last + 0.5]


def ask_along(
    session: StreamSession, world: World, frames: Iterator[Frame], moments: int, seed: int, only_ours: bool
) -> Iterator[Record]:
    """Feed the stream once; at every moment put all families to every arm, over the same stored chunks."""
    rng = np.random.default_rng(seed)
    arms = make_arms()[: 1 if only_ours else None]
    reel = Reel(session, frames)
    known: set[int] = set()
    for at in moments_of(world, moments):
        reel.watch_until(at)
        ids = set(session.bank.chunk_ids())
        remember(arms, session.bank.get(sorted(ids - known)), known - ids)
        known = ids
        for question in questions_about(world, float(at), rng):
            yield from put(session, arms, question)


def put(session: StreamSession, arms: list[Arm], question: WorldQuestion) -> Iterator[Record]:
    """One question to every arm."""
    view = session.view(question.at_seconds)
    start, end = question.evidence or (0, 0)
    wanted = [r.chunk_id for r in session.timeline if r.start_seconds < end and r.end_seconds > start]
    outside = set(wanted) - {kv.chunk_id for kv in view.window}
    if view.partial and view.partial.start_seconds < end and view.partial.end_seconds > start:
        wanted.append(view.partial.chunk_id)  # in view, but not stored yet
    for arm in arms:
        answer, hits = arm.answer(session, question.question, view, set(wanted))
        if answer is None:
            continue
        found = [hit.chunk_id for hit in hits]
        pairs = {k: recall_precision(found, outside, k) for k in CUTS} if outside else {}
        yield Record(
            arm.name,
            question,
            answer.text,
            exact(answer.text, question.answer),
            answer.ttft_seconds,
            {k: p[0] for k, p in pairs.items()},
            {k: p[1] for k, p in pairs.items()},
            (
                bool(answer.evidence) and answer.evidence[0].chunk_id in wanted,
                any(e.chunk_id in wanted for e in answer.evidence),
            ),
        )


def summary(records: list[Record]) -> dict[str, Any]:
    """Rates by arm and family, by age for ours, and retrieval by arm."""
    by_arm: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_arm[record.arm].append(record)
    result: dict[str, Any] = {"accuracy": {}, "by_age": {}, "retrieval": {}, "evidence": {}, "ttft_seconds": {}, "wrong": []}
    for arm, rows in by_arm.items():
        families = {f: rate([r.right for r in rows if r.question.family == f]) for f in FAMILIES}
        result["accuracy"][arm] = {"all": _json(rate([r.right for r in rows])), **{f: _json(v) for f, v in families.items()}}
        result["ttft_seconds"][arm] = median([r.ttft_seconds for r in rows])
        for low, (high, name) in zip([0.0, *(a for a, _ in AGES)], AGES, strict=False):
            aged = [r.right for r in rows if low <= r.question.age_seconds < high]
            result["by_age"].setdefault(arm, {})[name] = _json(rate(aged))
        proven = [r for r in rows if r.right and r.question.evidence]
        result["evidence"][arm] = {
            "first": _json(rate([r.shown[0] for r in proven])),
            "any": _json(rate([r.shown[1] for r in proven])),
        }
        outside = [r for r in rows if r.recall]
        result["retrieval"][arm] = {"n": len(outside)} | {
            f"{kind}@{k}": float(np.mean([getattr(r, kind)[k] for r in outside])) if outside else None
            for kind in ("recall", "precision")
            for k in CUTS
        }
    ours = next(iter(by_arm.values()), [])
    result["wrong"] = [
        {"question": r.question.question, "at": r.question.at_seconds, "answer": r.answer, "truth": r.question.answer}
        for r in ours
        if not r.right
    ]
    return result


def _json(value: Rate) -> dict[str, Any]:
    return {"right": value.right, "n": value.n, "words": str(value)}


def print_result(result: dict[str, Any], args: argparse.Namespace) -> None:
    print(f"needle: {args.streams} streams of {args.seconds} s, {args.encode}; {hardware_words()}\n")
    families = ["all", *FAMILIES]
    rows = [[arm, *(values[f]["words"] for f in families)] for arm, values in result["accuracy"].items()]
    print("Exact match in % (95 % Wilson interval)\n\n" + table(["context", *families], rows))
    ages = [name for _, name in AGES]
    rows = [[arm, *(values[a]["words"] for a in ages)] for arm, values in result["by_age"].items()]
    print("\nBy age of the evidence\n\n" + table(["context", *ages], rows))
    rows = [[arm, values["first"]["words"], values["any"]["words"]] for arm, values in result["evidence"].items()]
    print("\nEvidence of right answers: how often its first moment, and any of its moments, lies in the true span\n")
    print(table(["context", "first", "any"], rows))
    columns = [f"{kind}@{k}" for kind in ("recall", "precision") for k in CUTS]
    rows = [
        [arm, values["n"], *("–" if values[c] is None else f"{values[c]:.2f}" for c in columns)]
        for arm, values in result["retrieval"].items()
    ]
    print("\nRetrieval of the chunks that show the evidence, where it lay outside of the window\n")
    print(table(["retriever", "n", *columns], rows))
