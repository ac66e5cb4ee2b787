"""A day of stream in minutes: does memory keep to its budgets, and what does it still know of what is long past?

A few minutes of a world are really watched. Their chunks, with new times, are then stored and indexed over and over as a stream
of many hours: putting, encoding, moving, thinning, dropping and indexing are all real, only the model's forwards are saved.
The chunks that show a needle are stored once each. Questions do not name times: the time stamps inside a re-used chunk are
those of the minutes that were watched.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from data.questions import WorldQuestion, ask_did, ask_which
from data.world import World, make_world
from eval.efficiency import mib, resident_bytes
from eval.flags import SEED, amount, whole
from eval.report import hardware_words, table, write_json
from eval.scoring import exact, rate
from memory import DurableBank, MemoryBank
from memory.files import no_fault
from memory.thinning import create_thinning
from model_adapters.base import ChunkKV, ModelAdapter
from retrieval.base import Retriever
from retrieval.compose import compose_retriever
from retrieval.restored import Restored
from vstream.answer import Answerer, View
from vstream.config import SessionConfig, from_flags
from vstream.ingest import remember
from vstream.models import chosen_model
from vstream.progress import Progress
from vstream.remembered import opened_memory
from vstream.session import StreamSession

NUM_NEEDLES = 24
AGES = ((120, "to 2 min"), (600, "2–10 min"), (3600, "10 min–1 h"), (4 * 3600, "1–4 h"), (12 * 3600, "4–12 h"))
OLDEST = "12–24 h"
ASK_EVERY_HOURS = 4


@dataclass(frozen=True)
class Placed:
    """A needle and the stream time at which its chunks are stored."""

    name: str
    start_seconds: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=amount(0.001), default=24, help="length of the stream")
    parser.add_argument("--slot-seconds", type=amount(0.1, 3600), default=1.0, help="stream time that one chunk stands for")
    parser.add_argument("--watched-seconds", type=whole(1), default=300, help="how much of a world is really watched")
    parser.add_argument("--world-seed", type=SEED, default=1_500_000)
    parser.add_argument("--gpu-mib", type=amount(0), default=4)
    parser.add_argument("--ram-mib", type=amount(0), default=8)
    parser.add_argument("--disk-mib", type=amount(0), default=32)
    parser.add_argument("--kept", action="store_true", help="in a memory that outlives its session, under its quota")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = from_flags(args)
    budgets = {tier: int(getattr(args, f"{tier}_mib") * 2**20) for tier in ("gpu", "ram", "disk")}
    adapter = chosen_model(args).load(config.gpu_bytes)
    world = make_world(args.world_seed, args.watched_seconds, num_needles=NUM_NEEDLES)
    with StreamSession(adapter, config) as session, tempfile.TemporaryDirectory() as folder:
        list(session.feed(world.frames(config.fps)))
        session.finish()
        bank, retriever = memory_of(adapter, config, budgets, Path(folder) / "day", args.kept)
        result = live_through(session, world, bank, retriever, args)
        bank.check_integrity()
        bank.close()
    result |= {"budget_bytes": budgets, "kv_codec": config.kv_codec, "kept": args.kept}
    print_result(result, config, args)
    write_json(args.json, "day", result)
    return result


def memory_of(
    adapter: ModelAdapter, config: SessionConfig, budgets: Mapping[str, int], folder: Path, kept: bool
) -> tuple[MemoryBank, Retriever]:
    """The bank and the retriever that a session with these budgets has, with and without a memory in `folder`."""
    gpu, ram, disk = (budgets[tier] for tier in ("gpu", "ram", "disk"))
    retriever = compose_retriever(config.retrieval, config.gate, index_bytes=config.index_bytes)
    if not kept:
        thinning = create_thinning(config.thinning)
        return MemoryBank(adapter.device, gpu, ram, disk, folder, codec=config.kv_codec, thinning=thinning), retriever
    memory = opened_memory(folder, adapter.info, config.replace(disk_bytes=disk), read_only=False, fault=no_fault)
    return DurableBank(memory, adapter.device, gpu, ram), Restored(retriever, memory, -1)


def live_through(
    session: StreamSession, world: World, bank: MemoryBank, retriever: Retriever, args: argparse.Namespace
) -> dict[str, Any]:
    """Store the day chunk by chunk; look at the sizes every hour, and ask every few hours and at the end."""
    answerer = Answerer(session.adapter, session.config, bank, retriever, session.turns)
    chunks = session.bank.get(session.bank.chunk_ids())
    num_slots, per_hour = round(args.hours * 3600 / args.slot_seconds), round(3600 / args.slot_seconds)
    placed = places(world, args.hours * 3600)
    hours: list[dict[str, Any]] = []
    asked: list[tuple[WorldQuestion, str, int]] = []
    window: list[ChunkKV] = []
    with Progress("day", num_slots, "chunks") as progress:
        for number, kv in enumerate(stream_of(chunks, world, placed, num_slots, args.slot_seconds)):
            remember(bank, retriever, kv)
            window = [*window, kv][-session.config.window_chunks :]
            progress.update(number + 1)
            done, end = number + 1, number + 1 == num_slots
            if done % per_hour == 0 or end:
                hours.append(sizes(bank, retriever.num_bytes, done / per_hour))
            if done % (ASK_EVERY_HOURS * per_hour) == 0 or end:
                view = View(kv.end_seconds, kv.end_seconds, tuple(window), None)
                for question in questions(world, placed, kv.end_seconds):
                    *_, answer = answerer.answer(question.question, session.ingest.sink, view)
                    asked.append((question, answer.text, left_of(bank, question)))
    return {"hours": hours, "by_age": by_age(asked), "num_chunks": num_slots}


def places(world: World, seconds: float) -> list[Placed]:
    """Half of the needles at ages that double or so up to the whole stream, half spread evenly; on whole minutes or earlier."""
    ages = np.geomspace(20, 0.9 * seconds, NUM_NEEDLES // 2)
    evenly = np.linspace(0.02, 0.93, NUM_NEEDLES - len(ages)) * seconds
    starts = sorted([*(seconds - ages).tolist(), *evenly.tolist()])
    return [Placed(name, start) for name, start in zip(world.needles, starts, strict=True)]


def stream_of(
    chunks: Sequence[ChunkKV], world: World, placed: Sequence[Placed], num_slots: int, slot_seconds: float
) -> Iterator[ChunkKV]:
    """`num_slots` chunks: those without a needle again and again, and each needle's own ones where it is placed."""
    shown = {name: [kv for kv in chunks if _shows(world, name, kv)] for name in world.needles}
    with_needle = {kv.chunk_id for several in shown.values() for kv in several}
    filler = cycle([kv for kv in chunks if kv.chunk_id not in with_needle])
    waiting = sorted(placed, key=lambda one: one.start_seconds)
    queue: list[ChunkKV] = []
    for slot in range(num_slots):
        start = slot * slot_seconds
        if not queue and waiting and waiting[0].start_seconds <= start:
            queue = list(shown[waiting.pop(0).name])
        kv = queue.pop(0) if queue else next(filler)
        yield replace(kv, chunk_id=slot, start_seconds=start, end_seconds=start + slot_seconds)


def _shows(world: World, name: str, kv: ChunkKV) -> bool:
    stay = world.stay_of(name)
    return stay is not None and kv.start_seconds < stay.end_seconds and kv.end_seconds > stay.start_seconds


def questions(world: World, placed: Sequence[Placed], now: float) -> Iterator[WorldQuestion]:
    """Two questions about every needle so far, and as many about objects that never came. Their age is that of the stream."""
    for one in placed:
        stay = world.stay_of(one.name)
        if stay is not None and one.start_seconds + 30 <= now:
            end = round(one.start_seconds + stay.end_seconds - stay.start_seconds)
            for ask in (ask_which, ask_did):
                yield replace(ask(world, one.name, now), evidence=(int(one.start_seconds), end), at_seconds=now)
    for name in world.absent:
        yield ask_did(world, name, now)


def left_of(bank: MemoryBank, question: WorldQuestion) -> int:
    """How often the chunks of the evidence were thinned, at least; −1 if none is there."""
    if question.evidence is None:
        return 0
    low, high = question.evidence
    spans = ((i, bank.span(i)) for i in bank.chunk_ids())
    return min((bank.step(i) for i, (start, end) in spans if start < high and end > low), default=-1)


def sizes(bank: MemoryBank, index_bytes: int, hour: float) -> dict[str, Any]:
    stats = bank.stats()
    return {
        "hour": hour,
        "rss_bytes": resident_bytes(),
        "bytes": {tier: bank.num_bytes(tier) for tier in ("gpu", "ram", "disk")},
        "index_bytes": index_bytes,
        **{name: stats[name] for name in ("num_chunks", "num_at_step", "num_thinned", "num_dropped", "gap_seconds")},
    }


def by_age(asked: Sequence[tuple[WorldQuestion, str, int]]) -> dict[str, dict[str, Any]]:
    """Rates by age of the evidence, by what is left of it, and for objects that never came."""
    groups: dict[str, list[bool]] = {name: [] for name in ("never came", *(name for _, name in AGES), OLDEST)}
    groups |= {f"evidence {words}": [] for words in ("whole", "thinned", "one token", "gone")}
    for question, text, step in asked:
        right = exact(text, question.answer)
        if question.evidence is None:
            groups["never came"].append(right)
            continue
        groups[next((name for limit, name in AGES if question.age_seconds < limit), OLDEST)].append(right)
        groups["evidence " + ("gone" if step < 0 else ("whole", "thinned", "one token")[step])].append(right)
    rates = {name: rate(rights) for name, rights in groups.items()}
    return {name: {"right": found.right, "n": found.n, "words": str(found)} for name, found in rates.items()}


def print_result(result: dict[str, Any], config: SessionConfig, args: argparse.Namespace) -> None:
    budgets = ", ".join(f"{tier} {mib(num)}" for tier, num in result["budget_bytes"].items())
    where = ", in a memory that is kept" if args.kept else ""
    length = f"{args.hours:g} h in {result['num_chunks']} chunks"
    print(f"day: {length}, {config.kv_codec}{where}; budgets {budgets}; {hardware_words()}\n")
    rows = []
    for hour in result["hours"]:
        whole, thinned, summaries = [*hour["num_at_step"], 0, 0][:3]
        held = [mib(hour["bytes"][tier]) for tier in ("gpu", "ram", "disk")]
        counts = [whole, thinned, summaries, f"{hour['gap_seconds'] / 3600:.1f} h"]
        rows.append([f"{hour['hour']:g}", mib(hour["rss_bytes"]), *held, mib(hour["index_bytes"]), *counts])
    header = ["hour", "RSS", "gpu", "ram", "disk", "index", "whole chunks", "thinned", "one token", "gone"]
    print(table(header, rows))
    rows = [[name, values["words"]] for name, values in result["by_age"].items()]
    print("\nExact match in %, by age of the evidence and by what is left of it\n\n" + table(["evidence", "right"], rows))
