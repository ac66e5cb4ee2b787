"""After a kill: is what is left of a memory what was written, all of what was promised, and nothing else?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.frames import Frame
from eval.random_memory import (
    CHUNK_SECONDS,
    random_chunk,
    random_identity,
    random_query,
    random_record,
    same_chunk,
    same_record,
)
from memory import DurableBank, open_memory
from memory.opening import is_memory
from memory.stored import StoredMemory
from memory.stored_records import StoredRecords
from memory.thinning import Distinct, Thinning
from model_adapters.base import ChunkKV, ModelAdapter, ModelInfo
from retrieval.base import Hit
from retrieval.key_similarity import KeySimilarity
from retrieval.restored import Restored
from vstream.session import StreamSession

QUESTION = "when did the red circle appear ?"
NUM_QUERIES = 2
THINNING = Thinning(Distinct())


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


@dataclass
class Acknowledged:
    """What children have said before they were killed. committed: ids below it are durable."""

    committed: int = 0
    next_id: int = 0
    forgetting: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)

    def hear(self, word: str, *numbers: int) -> None:
        if word == "committed":
            self.committed = max(self.committed, numbers[0])
        elif word == "forgetting":
            self.forgetting = set(range(*numbers))
        else:
            self.forgotten |= self.forgetting
            self.forgetting = set()


def check_folder(folder: Path, info: ModelInfo, seed: int, known: Acknowledged, tally: Tally, where: str) -> None:
    """Open what a kill left, compare all of it, and say in `known` where the next child goes on."""
    if not is_memory(folder):
        if known.committed:
            tally.failures.append(f"{where}: the memory is gone, though {known.committed} chunks were committed")
        return
    memory = open_memory(folder, random_identity(info), write=True)
    try:
        tally.num_torn_tails += sum("torn tail" in notice for notice in memory.notices)
        tally.num_finished_forgettings += sum("forgetting" in notice for notice in memory.notices)
        wrong = [*_wrong_chunks(memory, info, seed, known, tally), *_wrong_files(memory)]
        wrong += _wrong_hits(memory, info, seed)
        bank = DurableBank(memory, "cpu", 0, 0, write=False)
        bank.check_integrity()
        bank.close()
    finally:
        memory.close()
    tally.failures += [f"{where}: {words}" for words in wrong]


def _wrong_chunks(memory: StoredMemory, info: ModelInfo, seed: int, known: Acknowledged, tally: Tally) -> list[str]:
    ids = set(memory.manifest.ids())
    wrong = []
    records = StoredRecords(memory.manifest)
    for chunk_id in sorted(ids):
        chunk = random_chunk(info, seed, chunk_id)
        tally.num_chunks_checked += 1
        step = memory.manifest.step(chunk_id)
        tally.num_thinned += step > 0
        if not same_chunk(memory.get(chunk_id), thinned(chunk, step)):
            wrong.append(f"chunk {chunk_id} is not as it was written and thinned {step} times")
        if not same_record(records.get(chunk_id), random_record(seed, chunk)):
            wrong.append(f"the record of chunk {chunk_id} is not as it was written")
    if ids & known.forgotten:
        wrong.append(f"forgotten chunks are back: {sorted(ids & known.forgotten)}")
    dropped = [gap for gap in memory.manifest.gaps() if gap.reason == "dropped"]
    spans = {i: i * CHUNK_SECONDS for i in range(max(ids, default=-1))}
    gone = {i for i, at in spans.items() if any(gap.start_seconds <= at < gap.end_seconds for gap in dropped)} - ids
    tally.num_gone += len(gone)
    half = (known.forgetting & set(range(known.committed))) - known.forgotten - gone
    if half & ids:
        known.forgetting = set()
        if half - ids:
            wrong.append(f"a span was forgotten by half: {sorted(half & ids)} are there, {sorted(half - ids)} are not")
    # What was said to be forgotten was there before: the next child must not put it again.
    known.next_id = max(known.committed, max(ids | known.forgotten, default=-1) + 1)
    # What was being forgotten and is not there any more has been forgotten, or was never committed and may come yet.
    known.forgotten |= {i for i in known.forgetting - ids - gone if i < known.next_id}
    known.forgetting = set()
    missing = set(range(known.next_id)) - ids - known.forgotten - gone
    if missing:
        wrong.append(f"committed chunks are missing: {sorted(missing)}")
    known.committed = known.next_id
    return wrong


def thinned(chunk: ChunkKV, step: int) -> ChunkKV:
    """A chunk as it is after so many steps, had nobody been killed."""
    num_tokens = chunk.num_tokens
    for number in range(1, step + 1):
        chunk = THINNING.thin(chunk, number, num_tokens)
    return chunk


def _wrong_files(memory: StoredMemory) -> list[str]:
    """Files that nobody names, and files that are named and not there."""
    named = {f"segment-{number:08d}.safetensors" for number in memory.segments} | {memory.vectors.path.name}
    there = {path.name for path in memory.folder.iterdir() if path.name.startswith(("segment", "vectors"))}
    wrong = [f"{name} is left over" for name in sorted(there - named)] + [
        f"{name} is missing" for name in sorted(named - there)
    ]
    size = memory.vectors.path.stat().st_size if memory.vectors.path.exists() else 0
    if size != memory.vectors.num_bytes:
        wrong.append(f"the file of vectors has {size} bytes instead of {memory.vectors.num_bytes}")
    return [*wrong, *memory.manifest.check()]


def _wrong_hits(memory: StoredMemory, info: ModelInfo, seed: int) -> list[str]:
    """A retriever over the stored vectors must find what one finds that was there when the chunks came."""
    ids = memory.manifest.ids()
    uninterrupted = KeySimilarity()
    for chunk_id in ids:
        uninterrupted.add(thinned(random_chunk(info, seed, chunk_id), memory.manifest.step(chunk_id)))
    restored = Restored(KeySimilarity(), memory, until_chunk_id=10**9)
    queries = [random_query(info, seed + number) for number in range(NUM_QUERIES)]
    alike = all(_alike(restored.search(query, 5, 1e9), uninterrupted.search(query, 5, 1e9)) for query in queries)
    return [] if alike else ["a question finds other chunks than in an uninterrupted run"]


def _alike(left: list[Hit], right: list[Hit]) -> bool:
    """Vectors on disk and in RAM are multiplied in another order, which is a matter of rounding."""
    places = [[(hit.chunk_id, hit.start_seconds, hit.end_seconds) for hit in hits] for hits in (left, right)]
    return places[0] == places[1] and np.allclose([hit.score for hit in left], [hit.score for hit in right], atol=1e-4)


def check_session(folder: Path, adapter: ModelAdapter, frames: Sequence[Frame], tally: Tally, where: str) -> None:
    """Answers over what is left, against those of a session that watched the same chunks and was never killed."""
    if not is_memory(folder):
        return
    with StreamSession(adapter, memory=folder) as left:
        ids = left.bank.chunk_ids()
        if ids != list(range(len(ids))):
            tally.failures.append(f"{where}: chunks {ids} are no unbroken beginning")
        if not ids:
            return
        with StreamSession(adapter) as whole:
            for frame in frames[: round(len(ids) * whole.config.fps * whole.config.chunk_seconds)]:
                whole.push(frame)
            for one, other in zip(left.bank.get(ids), whole.bank.get(ids), strict=True):
                tally.num_chunks_checked += 1
                if not same_chunk(one, other):
                    tally.failures.append(f"{where}: chunk {one.chunk_id} is not as it was encoded")
            for at in (None, whole.now_seconds / 2):
                mine, theirs = left.answer(QUESTION, at), whole.answer(QUESTION, at)
                found = [[(e.chunk_id, e.score) for e in answer.evidence] for answer in (mine, theirs)]
                if mine.text != theirs.text or found[0] != found[1]:
                    tally.failures.append(f"{where}: the answer at {at} is another one after the kill")
