"""Each trigger alone, against the schedule: which entries it notices, how much else it fires on, and what it costs.

A policy that looks at the stream is right where something enters or leaves; one that looks for a watched object, where that
object enters. Every firing is right for one event at most, of the last 2 s: firing all the time notices all, and is wrong most
of the time. Cost: CPU time of the policy over that of ingest, in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.world import World
from eval.report import table
from eval.scenes import Scene
from eval.scoring import Rate, median
from model_adapters.base import ModelAdapter
from model_adapters.registry import EMBEDDED
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord
from vstream.prompts import Prompts, prompts_for
from vstream.session import StreamSession
from vstream.triggers import (
    Always,
    Decision,
    LiveChunk,
    Novelty,
    Perplexity,
    Poll,
    QueryJump,
    SceneTiling,
    SilenceToken,
    Trigger,
    create_gate,
)
from vstream.triggers.yes_no import THRESHOLD, yes_probabilities

NEAR_SECONDS = 2.0
POLL_SECONDS = 4.0
CAPTION_TOKENS = 24

Policy = Callable[[LiveChunk], list[bool]]
"""Looks at the newest chunk; says whether it fires: for the stream, or for each of the watched objects."""


@dataclass
class Firing:
    """Counts of one policy on one kind of stream. seconds: of stream, or of stream times watched objects."""

    entries: int = 0
    noticed: int = 0
    fired: int = 0
    right: int = 0
    seconds: float = 0.0
    cost: list[float] = field(default_factory=list)

    def add(self, events: list[float], entries: set[float], fired: list[float], seconds: float) -> None:
        """One stream: when something happened, which of it were entries, and when the policy fired; in order."""
        open_, found = list(events), set()
        for at in fired:
            # The oldest first: it is the first to be too old for the next firing.
            near = next((event for event in open_ if 0 <= at - event <= NEAR_SECONDS + 0.5), None)
            if near is not None:
                open_.remove(near)
                found.add(near)
        self.entries += len(entries)
        self.noticed += len(entries & found)
        self.fired += len(fired)
        self.right += len(found)
        self.seconds += seconds

    def row(self) -> dict[str, Any]:
        """Ready for JSON. false_per_hour: firings without an event of their own."""
        hours = self.seconds / 3600
        noticed, right = Rate(self.noticed, self.entries), Rate(self.right, self.fired)
        return {
            "noticed": noticed.value if noticed.n else None,
            "noticed_words": str(noticed),
            "precision": right.value if right.n else None,
            "fired_per_hour": self.fired / hours if hours else 0.0,
            "false_per_hour": (self.fired - self.right) / hours if hours else 0.0,
            "cost": median(self.cost),
        }


class Captioned(Trigger):
    """Perplexity verification with the model's own caption, made anew where it fires."""

    def __init__(self, adapter: ModelAdapter, question: str) -> None:
        self.inner = Perplexity(adapter, question)

    def look(self, moment: LiveChunk) -> Decision:
        decision = self.inner.look(moment)
        if decision.fired:
            adapter, question = self.inner.adapter, self.inner.question
            *_, caption = ["", *adapter.generate(moment.live.fork(), adapter.question_run(question), CAPTION_TOKENS)]
            self.inner.told(caption)
        return decision


def trained_for_silence(adapter: ModelAdapter) -> bool:
    """Whether the model was trained to answer with a word for silence; any other one has no such probability to look at."""
    return adapter.info.name == EMBEDDED


def stream_policies(adapter: ModelAdapter, config: SessionConfig, prompts: Prompts) -> dict[str, Policy]:
    """Policies that look at the stream as a whole, each alone, and the gate that watches and commentary stand behind."""
    comment = prompts.comment.format(background="")
    triggers: dict[str, Trigger] = {
        "every chunk": Always(),
        f"poll, {POLL_SECONDS:g} s": Poll(POLL_SECONDS),
        "novelty": Novelty(config.key_every),
        "scene tiling": SceneTiling(),
        "perplexity": Captioned(adapter, prompts.confirm or comment),
        "gate (tiling or novelty)": create_gate(config),
    }
    if trained_for_silence(adapter):
        triggers["silence token"] = SilenceToken(adapter, comment, prompts.silence)
    return {name: partial(_fires, trigger) for name, trigger in triggers.items()}


def watch_policies(adapter: ModelAdapter, config: SessionConfig, prompts: Prompts, names: list[str]) -> dict[str, Policy]:
    """Policies that look for each of `names`: a jump of likeness, the model's yes or no, and the first behind the gate."""
    jumps = [QueryJump(adapter.encode_question(name)) for name in names]
    behind = [QueryJump(adapter.encode_question(name)) for name in names]
    runs = [adapter.question_run(prompts.watch.format(condition=f"a {name} appears")) for name in names]
    gate = create_gate(config)

    def jump(moment: LiveChunk) -> list[bool]:
        return [trigger.look(moment).fired for trigger in jumps]

    def gated(moment: LiveChunk) -> list[bool]:
        opened = gate.look(moment).fired
        return [trigger.look(moment).fired and opened for trigger in behind]

    def asked(moment: LiveChunk) -> list[bool]:
        return [p >= THRESHOLD for p in yes_probabilities(adapter, moment.live, runs, prompts.yes, prompts.no)]

    return {"query jump": jump, "gate, then query jump": gated, "yes or no": asked}


def measure(
    adapter: ModelAdapter,
    config: SessionConfig,
    scene: Scene,
    names: list[str],
    of_stream: Mapping[str, Firing],
    of_watches: Mapping[str, Firing],
) -> None:
    """Every policy on one scene, side by side in one session."""
    prompts = prompts_for(adapter.info.name, config.prompts)
    streams, watches = stream_policies(adapter, config, prompts), watch_policies(adapter, config, prompts, names)
    policies = streams | watches
    fired: dict[str, list[list[float]]] = {name: [[] for _ in names] if name in watches else [[]] for name in policies}
    spent = dict.fromkeys(policies, 0.0)
    ingest, began = 0.0, time.process_time()
    with StreamSession(adapter, config) as session:
        for record in chunks_of(session, scene):
            ingest += time.process_time() - began
            moment = LiveChunk(record, *session.ingest.newest, session.ingest.live)
            for name, policy in policies.items():
                began = time.process_time()
                for times, fires in zip(fired[name], policy(moment), strict=True):
                    times += [moment.at_seconds] * fires
                spent[name] += time.process_time() - began
            began = time.process_time()
    world = scene.world
    edges = sorted({float(t) for stay in world.stays for t in (stay.start_seconds, stay.end_seconds) if t < world.seconds})
    for name in streams:
        of_stream[name].add(edges, {float(stay.start_seconds) for stay in world.stays}, fired[name][0], world.seconds)
        of_stream[name].cost.append(spent[name] / ingest)
    for name in watches:
        for watched, times in zip(names, fired[name], strict=True):
            entries = _entries(world, watched)
            of_watches[name].add(entries, set(entries), times, world.seconds)
        of_watches[name].cost.append(spent[name] / ingest)


def chunks_of(session: StreamSession, scene: Scene) -> Iterator[ChunkRecord]:
    """Every chunk of a scene as it is stored, its last one too."""
    yield from session.feed(scene.frames(session.config.fps))
    yield from session.finish()


def print_gates(rows_of: Mapping[str, Mapping[str, Mapping[str, Any]]], num_watches: int) -> None:
    """rows_of: "stream" and "watches", each by kind and policy, as `Firing.row` makes them."""
    for side, kinds in rows_of.items():
        title = f"of {num_watches} watches" if side == "watches" else f"of the {side}"
        first = next(iter(kinds.values()))
        header = [f"trigger {title}: entries noticed, false per hour", *kinds, "of ingest time"]
        rows = [
            [policy, *(_cell(rows[policy]) for rows in kinds.values()), f"{100 * median(_costs(kinds, policy)):.0f} %"]
            for policy in first
        ]
        print(table(header, rows) + "\n")


def _cell(row: Mapping[str, Any]) -> str:
    noticed = "–" if row["noticed"] is None else f"{100 * row['noticed']:.0f} %"
    return f"{noticed}, {row['false_per_hour']:.0f}"


def _costs(kinds: Mapping[str, Mapping[str, Any]], policy: str) -> list[float]:
    return [rows[policy]["cost"] for rows in kinds.values()]


def _entries(world: World, name: str) -> list[float]:
    return [float(stay.start_seconds) for stay in world.stays if stay.name == name]


def _fires(trigger: Trigger, moment: LiveChunk) -> list[bool]:
    return [trigger.look(moment).fired]
