"""Killing the writer: what SIGKILL at any moment leaves of a stored memory, compared with what was written.

A child process ingests chunks made from a seed and is killed: at every marked point of commit, thinning, merge and forgetting,
in turn and at random moments. After each kill the folder is opened again and everything in it is compared with the seed: chunks
bit by bit, records, what the writer had acknowledged, what was forgotten, the files, and the hits of a retriever over it with
those of one over an uninterrupted run. A share of the kills hits a whole session over the synthetic world instead, whose
answers are compared with those of a session that was never killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from eval.crash_check import THINNING, Acknowledged, check_folder, check_session
from eval.random_memory import model_info, random_chunk, random_identity, random_record
from eval.report import table, write_json
from memory import DurableBank, open_memory
from memory.files import Fault
from model_adapters.base import ModelAdapter
from vstream.models import chosen_model
from vstream.progress import Progress
from vstream.session import StreamSession

INFO = model_info()
SEGMENT_BYTES = 8_000
"""So small that merges come often."""
DISK_BYTES = 80_000
"""So little that old chunks are thinned, and some go."""
NUM_CHUNKS = 12
"""A child puts so many chunks, and forgets a span in between."""
KILLS_PER_FOLDER = 12
MAX_MISSED = 4
"""After so many children that were not killed, a folder is too full or too empty for a point to be reached."""
POINTS = (
    *("vectors.half", "vectors.written", "vectors.synced"),
    *("segment.begun", "segment.half", "segment.written", "segment.synced", "segment.renamed", "segment.durable"),
    *("rows.begun", "rows.written", "rows.committed"),
    "thin.written",
    *("rewrite.begun", "rewrite.written", "rewrite.committed", "unwanted.deleting"),
    *("vectors.begun", "vectors.renamed", "forget.compacting"),
    *("manifest.made", "manifest.renamed"),
)
"""The marked points of making a memory, committing, thinning, merging and forgetting."""


@dataclass
class Tally:
    """What came out of the kills."""

    kills: Counter[str] = field(default_factory=Counter)
    num_chunks_checked: int = 0
    num_torn_tails: int = 0
    num_thinned: int = 0
    num_gone: int = 0
    num_finished_forgettings: int = 0
    failures: list[str] = field(default_factory=list)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=50, help="how often to kill")
    parser.add_argument(
        "--sessions", type=int, default=None, help="how many of them hit a whole session; default: one in fifty"
    )
    parser.add_argument("--shuffle", type=int, default=0, metavar="SEED", help="seed of chunks and moments")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Kill, check, print; returns the result as JSON-ready values."""
    # What every opening finds is counted; a thousand warnings would say no more.
    logging.getLogger("memory").setLevel(logging.ERROR)
    num_sessions = args.kills // 50 if args.sessions is None else args.sessions
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vstream-crash-") as place:
        tally = kill_banks(Path(place), args.kills - num_sessions, args.shuffle)
        if num_sessions:
            kill_sessions(Path(place), num_sessions, args.shuffle, chosen_model(args).load(), tally)
    result = {
        "num_kills": tally.kills.total(),
        "kills": dict(tally.kills),
        "num_chunks_checked": tally.num_chunks_checked,
        "num_torn_tails": tally.num_torn_tails,
        "num_thinned": tally.num_thinned,
        "num_gone": tally.num_gone,
        "num_finished_forgettings": tally.num_finished_forgettings,
        "num_failures": len(tally.failures),
        "failures": tally.failures,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(table(["killed at", "kills"], sorted(tally.kills.items())))
    print(
        f"\n{result['num_kills']} kills, {result['num_chunks_checked']} chunks compared bit by bit,"
        f" {result['num_torn_tails']} torn tails dropped, {result['num_finished_forgettings']} forgettings finished:"
        f" {result['num_failures']} failures"
    )
    for failure in tally.failures:
        print(f"FAILED {failure}")
    write_json(args.json, "crash", result)
    return result


def kill_banks(place: Path, num_kills: int, seed: int) -> Tally:
    """Kill a child that puts random chunks straight into a bank."""
    tally, rng, longest = Tally(), random.Random(seed), 0.05
    folder, known, num_folders = place / "0", Acknowledged(), 1
    num_missed = 0
    with Progress("killing", num_kills, "kills") as progress:
        while (done := tally.kills.total()) < num_kills:
            # Half of the kills go through the points in turn, the other half come at any moment.
            point = POINTS[done // 2 % len(POINTS)] if done % 2 == 0 else None
            once = point is None or point.startswith(("manifest", "forget"))
            fault = _killer(point, 1 if once else rng.randint(1, 3))
            child = partial(_ingest, folder, seed, known.next_id, fault, rng.random())
            started = time.perf_counter()
            killed = _killed(child, known, None if point else rng.uniform(0, longest))
            # A child that was done before it was killed is no kill: random moments should come sooner.
            longest = 1.1 * longest if killed else 0.9 * min(longest, time.perf_counter() - started)
            where = f"{point or 'any moment'} (kill {done}, seed {seed})"
            check_folder(folder, INFO, seed, known, tally, where)
            tally.kills[point or "any moment"] += killed
            progress.update(tally.kills.total())
            # A folder of its own for the next ones, also where a point is reached in a new folder only.
            num_missed = 0 if killed else num_missed + 1
            only_new = point is not None and point.startswith("manifest") and not killed
            if (killed and (done + 1) % KILLS_PER_FOLDER == 0) or only_new or num_missed == MAX_MISSED:
                num_missed = 0
                shutil.rmtree(folder, ignore_errors=True)
                folder, known, num_folders = place / str(num_folders), Acknowledged(), num_folders + 1
    return tally


def _ingest(folder: Path, seed: int, first_id: int, fault: Fault, share: float, acks: int) -> None:
    """In the child: put chunks, forget a span half-way, tell through the pipe `acks` what is done."""
    memory = open_memory(
        folder,
        random_identity(INFO),
        write=True,
        disk_bytes=DISK_BYTES,
        segment_bytes=SEGMENT_BYTES,
        thinning=THINNING,
        fault=fault,
    )
    bank = DurableBank(memory, "cpu", 0, 4_000)
    assert bank.writer is not None
    for i in range(first_id, first_id + NUM_CHUNKS):
        chunk = random_chunk(INFO, seed, i)
        bank.put(chunk, random_record(seed, chunk))
        _tell(acks, "committed", first_id + bank.writer.num_committed)
        if i == first_id + NUM_CHUNKS // 2:
            start = int(share * i)
            _tell(acks, "forgetting", start, start + 2)
            bank.forget(float(start), start + 2.0)
            _tell(acks, "forgotten", start, start + 2)
    bank.close()
    _tell(acks, "committed", first_id + NUM_CHUNKS)


def kill_sessions(place: Path, num_kills: int, seed: int, adapter: ModelAdapter, tally: Tally) -> None:
    """Kill a child that watches the synthetic world, and compare the answers of what it leaves."""
    from data.world import make_world

    rng = random.Random(seed)
    with _one_thread(), Progress("killing sessions", num_kills, "kills") as progress:
        for number in range(num_kills):
            folder = place / f"session-{number}"
            # One whole chunk is two frames; the last, unfinished one is never stored by a child that is killed.
            frames = list(make_world(seed + number, 20, side=96).frames(2.0))
            point = rng.choice(("segment.half", "segment.renamed", "rows.written", "rows.committed"))

            def watch(acks: int, folder: Path = folder, frames: Any = frames, point: str = point) -> None:
                with StreamSession(adapter, memory=folder, fault=_killer(point, rng.randint(2, 12))) as session:
                    for frame in frames:
                        session.push(frame)

            if _killed(watch, Acknowledged(), None):
                tally.kills[f"session, {point}"] += 1
            check_session(folder, adapter, frames, tally, f"session {number}, {point}")
            shutil.rmtree(folder, ignore_errors=True)
            progress.update(number + 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The child has one thread, and sums come out bit-equal only with as many threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _killed(child: Callable[[int], None], known: Acknowledged, after_seconds: float | None) -> bool:
    """Run `child` in a forked process and wait for its end, or kill it `after_seconds` from now. Whether it was killed."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reads)
        _run_child(child, writes)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        if after_seconds is not None:
            time.sleep(after_seconds)
            os.kill(process, signal.SIGKILL)
        for line in pipe:
            if line.endswith("\n"):
                known.hear(*json.loads(line))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the child ended with status {os.WEXITSTATUS(status)}; its traceback is above")
    return False


def _run_child(child: Callable[[int], None], acks: int) -> NoReturn:
    status = 1
    # Threads do not survive a fork, so the child must not count on any.
    torch.set_num_threads(1)
    try:
        child(acks)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        # Nothing of the parent's may run in the child: no exit handlers, no buffers.
        os._exit(status)


def _killer(point: str | None, nth: int) -> Fault:
    """A fault that kills its own process when `point` is reached for the n-th time."""
    left = [nth]

    def fault(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    return fault


def _tell(acks: int, *words: object) -> None:
    os.write(acks, (json.dumps(words) + "\n").encode())
