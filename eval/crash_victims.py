"""What is killed by `eval.crash`: children that write a memory, and how what each leaves is compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data.frames import Frame
from data.world import make_world
from eval.crash_check import THINNING, Acknowledged, Tally, check_folder, check_session
from eval.random_memory import model_info, random_chunk, random_identity, random_record
from memory import DurableBank, open_memory
from memory.files import Fault
from model_adapters.base import ModelAdapter
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
ANY_MOMENT = "any moment"
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
class Attempt:
    """One child that is to be killed. child: gets the pipe into which it tells what it has done. after_seconds: from its start;
    None where it kills itself at a marked point."""

    name: str
    folder: Path
    child: Callable[[int], None]
    known: Acknowledged
    after_seconds: float | None = None


class Victims(ABC):
    """What is killed, and how it is compared with what it should be."""

    @abstractmethod
    def attempt(self, num_kills: int) -> Attempt:
        """The next child, after so many kills."""

    @abstractmethod
    def settle(self, attempt: Attempt, num_kills: int, killed: bool, seconds: float) -> None:
        """Check what a child left that lived for so many seconds."""


class Banks(Victims):
    """Children that put random chunks straight into a bank; half die at the marked points in turn, half at any moment."""

    def __init__(self, place: Path, seed: int, tally: Tally) -> None:
        self.place, self.seed, self.tally = place, seed, tally
        self.rng = random.Random(seed)
        self.longest_seconds = 0.05
        self.num_missed = 0
        self._new_folder(0)

    def attempt(self, num_kills: int) -> Attempt:
        point = POINTS[num_kills // 2 % len(POINTS)] if num_kills % 2 == 0 else None
        once = point is None or point.startswith(("manifest", "forget"))
        fault = _killer(point, 1 if once else self.rng.randint(1, 3))
        child = partial(_ingest, self.folder, self.seed, self.known.next_id, fault, self.rng.random())
        after = None if point else self.rng.uniform(0, self.longest_seconds)
        return Attempt(point or ANY_MOMENT, self.folder, child, self.known, after)

    def settle(self, attempt: Attempt, num_kills: int, killed: bool, seconds: float) -> None:
        # A child that was done before it was killed is no kill: random moments should come sooner.
        self.longest_seconds = 1.1 * self.longest_seconds if killed else 0.9 * min(self.longest_seconds, seconds)
        where = f"{attempt.name} (kill {num_kills}, seed {self.seed})"
        check_folder(self.folder, INFO, self.seed, self.known, self.tally, where)
        # A folder of its own for the next ones, also where a point is reached in a new folder only.
        self.num_missed = 0 if killed else self.num_missed + 1
        only_new = attempt.name.startswith("manifest") and not killed
        if (killed and (num_kills + 1) % KILLS_PER_FOLDER == 0) or only_new or self.num_missed == MAX_MISSED:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._new_folder(self.number + 1)

    def _new_folder(self, number: int) -> None:
        self.number, self.folder, self.known, self.num_missed = number, self.place / str(number), Acknowledged(), 0


class Sessions(Victims):
    """Children that watch the synthetic world; the answers of what they leave are compared."""

    def __init__(self, place: Path, seed: int, tally: Tally, adapter: ModelAdapter) -> None:
        self.place, self.seed, self.tally, self.adapter = place, seed, tally, adapter
        self.rng = random.Random(seed)
        self.number = -1
        self.frames: list[Frame] = []

    def attempt(self, num_kills: int) -> Attempt:
        self.number += 1
        # One whole chunk is two frames; the last, unfinished one is never stored by a child that is killed.
        self.frames = list(make_world(self.seed + self.number, 20, side=96).frames(2.0))
        point = self.rng.choice(("segment.half", "segment.renamed", "rows.written", "rows.committed"))
        folder = self.place / f"session-{self.number}"
        child = partial(_watch, folder, self.adapter, self.frames, _killer(point, self.rng.randint(2, 12)))
        return Attempt(f"session, {point}", folder, child, Acknowledged())

    def settle(self, attempt: Attempt, num_kills: int, killed: bool, seconds: float) -> None:
        with _one_thread():
            check_session(attempt.folder, self.adapter, self.frames, self.tally, f"{self.number}, {attempt.name}")
        shutil.rmtree(attempt.folder, ignore_errors=True)


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


def _watch(folder: Path, adapter: ModelAdapter, frames: list[Frame], fault: Fault, acks: int) -> None:
    """In the child: watch all frames."""
    with StreamSession(adapter, memory=folder, fault=fault) as session:
        for frame in frames:
            session.push(frame)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The child has one thread, and sums come out bit-equal only with as many threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


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
