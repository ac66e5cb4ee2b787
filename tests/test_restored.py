"""Retrievers over stored vectors: they find what a retriever finds that was there when the chunks came."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from test_memory_stores import chunk

from data.errors import ConfigError
from memory.thinning import pooled
from memory.vectors import Summaries
from model_adapters.base import Query
from retrieval import RETRIEVERS, create_retriever
from retrieval.compose import compose_retriever
from retrieval.key_similarity import KeySimilarity
from retrieval.restored import Restored

NUM = 30
CHUNKS = [chunk(i, num_tokens=0 if i == 5 else 4) for i in range(NUM)]


def query(seed: int, text: str = "what was on screen at 1 s ?") -> Query:
    return Query(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)), text)


@pytest.mark.parametrize("name", [*sorted(RETRIEVERS), "composed"])
@pytest.mark.parametrize("seed", range(3))
def test_restored_and_added_find_the_same(name: str, seed: int) -> None:
    rng = random.Random(seed)

    def make():
        return compose_retriever("key_similarity") if name == "composed" else create_retriever(name)

    num_stored = rng.randint(1, NUM)
    stored = CHUNKS[:num_stored]
    cuts = sorted(rng.sample(range(num_stored + 1), min(3, num_stored)))
    blocks = [stored[a:b] for a, b in zip([0, *cuts], [*cuts, num_stored], strict=True) if a < b]
    rng.shuffle(blocks)

    def load() -> Iterator[Summaries]:
        # What was stored after the memory was opened is in the file by the time it is read.
        yield from (Summaries.of(block) for block in [*blocks, CHUNKS[num_stored:]] if block)

    added, restored = make(), Restored(make(), load, until_chunk_id=num_stored - 1)
    for one in CHUNKS:
        added.add(one)
    for one in CHUNKS[num_stored:]:
        restored.add(one)
    gone = rng.sample(range(num_stored, NUM), min(2, NUM - num_stored))
    for retriever in (added, restored):
        retriever.remove(gone)
    for number in range(3):
        for until in (1e9, 1.55):
            wanted = [(h.chunk_id, h.start_seconds, h.end_seconds) for h in added.search(query(number), 6, until, [3])]
            found = restored.search(query(number), 6, until, [3])
            assert [(h.chunk_id, h.start_seconds, h.end_seconds) for h in found] == wanted
    restored.remove([0, 7])
    added.remove([0, 7])
    assert [h.chunk_id for h in restored.search(query(9), 30, 1e9)] == [h.chunk_id for h in added.search(query(9), 30, 1e9)]


def test_nothing_is_loaded_before_the_first_question() -> None:
    loads = []

    def load() -> Iterator[Summaries]:
        loads.append(1)
        yield Summaries.of(CHUNKS[:4])

    restored = Restored(KeySimilarity(), load, until_chunk_id=3)
    restored.add(CHUNKS[4])
    assert restored.num_bytes > 0 and not loads
    assert (
        {hit.chunk_id for hit in restored.search(query(0), 9, 1e9)}
        == {0, 1, 2, 3, 4}
        == {hit.chunk_id for hit in restored.search(query(1), 9, 1e9)}
    )
    assert loads == [1]


def test_what_was_thinned_before_it_was_loaded_is_found_once() -> None:
    thinner = pooled(CHUNKS[2])
    restored = Restored(KeySimilarity(), lambda: iter([Summaries.of([*CHUNKS[:2], thinner, CHUNKS[3]])]), until_chunk_id=3)
    for _ in range(2):
        restored.remove([2])
        restored.add(thinner)
        assert sorted(hit.chunk_id for hit in restored.search(query(0), 9, 1e9)) == [0, 1, 2, 3]


def test_what_needs_every_token_is_refused() -> None:
    for late in ("max", "tokens"):
        with pytest.raises(ConfigError, match="every token"):
            Restored(KeySimilarity(late), lambda: iter([Summaries.of(CHUNKS[:2])]), 9).search(query(0), 3, 1e9)
