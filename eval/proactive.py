"""What is said unasked, measured against the schedule: watches and commentary on five kinds of streams, without a judge.

native: watches and commentary as they are set, their own alerts and utterances scored. poll: the same model asked at every
second, without gates or confirmation, which is how most published figures come about. Cost: wall time of watching over that of
ingest, both taken in the same run, chunk by chunk. The triggers alone: see `eval.gates`.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np

from data.questions import canonical
from data.world import World
from eval.flags import SEED, whole
from eval.gates import Firing, chunks_of, measure, print_gates, trained_for_silence
from eval.report import hardware_words, table, write_json
from eval.scenes import KINDS, Scene, make_scene
from eval.schedule import Tally, score_comments, score_watches
from eval.scoring import median
from model_adapters.base import ModelAdapter
from vstream.commentary import NarrationRules, Utterance
from vstream.config import SessionConfig
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.prompts import prompts_for
from vstream.session import StreamSession
from vstream.triggers.yes_no import yes_probabilities
from vstream.watches import MAX_WATCHES

SIDES = (96, 128, 160, 240)
POLL_THRESHOLD = 0.5


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=whole(1), default=2, help="streams of every kind")
    parser.add_argument("--seconds", type=whole(1), default=300, help="length of each stream")
    parser.add_argument("--watches", type=whole(1, MAX_WATCHES), default=8, help="watches per stream")
    parser.add_argument("--first-seed", type=SEED, default=5_000_000, help="seeds of the streams; training draws others")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--no-poll", action="store_true", help="leave the poll protocol out")
    parser.add_argument("--poll-every", type=whole(1), default=1, metavar="N", help="poll at every Nth chunk only")
    parser.add_argument("--no-triggers", action="store_true", help="leave out the table of what each trigger alone would do")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = chosen_settings(args)
    adapter = chosen_model(args).load(config.gpu_bytes)
    watches: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    comments: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    cost: dict[str, list[float]] = defaultdict(list)
    gates: dict[str, dict[str, dict[str, Firing]]] = {
        side: {kind: defaultdict(Firing) for kind in args.kinds} for side in ("stream", "watches")
    }
    with Progress("proactive", args.streams * len(args.kinds), "streams") as progress:
        for number in range(args.streams):
            for kind in args.kinds:
                seed = args.first_seed + number
                scene = make_scene(kind, seed, args.seconds, SIDES[number % len(SIDES)])
                names = watched_names(scene.world, args.watches, seed)
                native(adapter, config, scene, names, watches["native"][kind], comments["native"][kind], cost[kind])
                if not args.no_poll:
                    poll(adapter, config, scene, names, watches["poll"][kind], comments["poll"][kind], args.poll_every)
                if not args.no_triggers:
                    measure(adapter, config, scene, names, gates["stream"][kind], gates["watches"][kind])
                progress.update(sum(map(len, cost.values())))
    result: dict[str, Any] = {
        "watches": {name: {kind: tally.row() for kind, tally in kinds.items()} for name, kinds in watches.items()},
        "commentary": {name: {kind: tally.row() for kind, tally in kinds.items()} for name, kinds in comments.items()},
        "cost": {kind: {"share": median(shares), "n": len(shares)} for kind, shares in cost.items()},
        "num_watches": args.watches,
    }
    if not args.no_triggers:
        result["triggers"] = {
            side: {kind: {name: firing.row() for name, firing in firings.items()} for kind, firings in kinds.items()}
            for side, kinds in gates.items()
        }
        result["triggers_left_out"] = [] if trained_for_silence(adapter) else ["silence token"]
    print_result(result, args)
    write_json(args.json, "proactive", result)
    return result


def watched_names(world: World, num: int, seed: int) -> list[str]:
    """Half of them objects that come, drawn from the whole stream, and half that do not; as far as there are so many."""
    rng = np.random.default_rng([seed, 3])
    coming = sorted({stay.name for stay in world.stays})
    there = [str(name) for name in rng.permutation(coming)[: (num + 1) // 2]]
    absent = [name for name in world.absent if name not in coming]
    return there + [str(name) for name in rng.permutation(absent)[: num - len(there)]]


def native(
    adapter: ModelAdapter,
    config: SessionConfig,
    scene: Scene,
    names: list[str],
    watch: Tally,
    comment: Tally,
    cost: list[float],
) -> None:
    """Watches and commentary at work in one session."""
    with StreamSession(adapter, config) as session:
        for name in names:
            session.watch(f"tell me when a {name} appears")
        session.narrate(NarrationRules())
        voice = session.unasked.commentator
        assert voice is not None
        ingest, watching = [], []
        for frame in scene.frames(config.fps):
            before = session.unasked.watches.spent_seconds + voice.spent_seconds, session.unasked.watches.spent_seconds
            started = time.perf_counter()
            if session.push(frame):
                seconds = time.perf_counter() - started
                watching.append(session.unasked.watches.spent_seconds - before[1])
                ingest.append(seconds - (session.unasked.watches.spent_seconds + voice.spent_seconds - before[0]))
        session.finish()
        # Sums: most chunks cost the watches next to nothing, and what slows the machine down slows both down.
        cost.append(sum(watching) / sum(ingest))
        score_watches(watch, scene.world, names, [(a.text, a.fired_at_seconds) for a in session.unasked.watches.alerts])
        score_comments(comment, scene.world, list(session.unasked.utterances))


def poll(
    adapter: ModelAdapter,
    config: SessionConfig,
    scene: Scene,
    names: list[str],
    watch: Tally,
    comment: Tally,
    every: int = 1,
) -> None:
    """The bare model at every chunk, or at every `every`th."""
    prompts = prompts_for(adapter.info.name, config.prompts)
    runs = [adapter.question_run(prompts.watch.format(condition=f"a {name} appears")) for name in names]
    alerts: list[tuple[str, float]] = []
    said: list[Utterance] = []
    with StreamSession(adapter, config) as session:
        for record in chunks_of(session, scene):
            if record.chunk_id % every:
                continue
            live = session.ingest.live
            scores = yes_probabilities(adapter, live, runs, prompts.yes, prompts.no)
            at = record.last_pts_seconds
            alerts += [(f"a {n} appears", at) for n, score in zip(names, scores, strict=True) if score >= POLL_THRESHOLD]
            *_, text = ["", *adapter.generate(live.fork(), adapter.question_run(prompts.comment.format(background="")), 24)]
            if canonical(text) != prompts.silence:
                said.append(Utterance(record.start_seconds, record.end_seconds, text))
    score_watches(watch, scene.world, names, alerts)
    score_comments(comment, scene.world, said)


def told_words(kind: str, row: dict[str, Any]) -> list[Any]:
    """What watches and commentary have in common: hits, delay and misses on one kind of stream."""
    return [kind, row["hit_words"], f"{row['delay_median_seconds']:+.1f}", row["misses"]]


def print_result(result: dict[str, Any], args: argparse.Namespace) -> None:
    print(f"proactive: {args.streams} streams of {args.seconds} s per kind, {args.watches} watches; {hardware_words()}\n")
    if args.poll_every > 1 and not args.no_poll:
        print(f"poll: at every {args.poll_every}th chunk only\n")
    for protocol, kinds in result["watches"].items():
        rows = [
            [
                *told_words(kind, row),
                row["duplicates"],
                f"{row['false_per_hour']:.2f} ({row['false']} in {row['hours']:.1f} h)",
                f"{100 * result['cost'][kind]['share']:.0f} %" if protocol == "native" else "–",
            ]
            for kind, row in kinds.items()
        ]
        header = ["watches", "hit within 2 s", "delay s", "missed", "twice", "false per watch and hour", "of ingest time"]
        print(f"{protocol}\n\n" + table(header, rows) + "\n")
    if "triggers" in result:
        print_gates(result["triggers"], args.watches)
        for name in result["triggers_left_out"]:
            print(f"left out: {name}, which this model was not trained for\n")
    for protocol, kinds in result["commentary"].items():
        rows = [
            [
                *told_words(kind, row),
                f"{100 * row['duplicate_share']:.1f} %",
                f"{row['false_per_hour']:.1f}",
                f"{row['words_per_second']:.2f}",
                *("–" if row[name] is None else f"{row[name]:.2f}" for name in ("timing", "trace")),
            ]
            for kind, row in kinds.items()
        ]
        header = ["commentary", "told within 2 s", "delay s", "missed", "twice", "wrong per hour", "words/s", "timing", "TRACE"]
        print(f"{protocol}\n\n" + table(header, rows) + "\n")
