"""The index within its budget: bounded at any moment, first coarser, then with neighbours found through one mean."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from test_memory_stores import chunk

from model_adapters.base import ChunkKV, Query
from retrieval.base import Retriever
from retrieval.compose import compose_retriever
from retrieval.key_similarity import KeySimilarity
from retrieval.per_layer import PerLayer

CAPACITY = 12_000


def query(seed: int) -> Query:
    return Query(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)), "?")


def groups_of(retriever: Retriever) -> list[list[int]]:
    """The chunks behind each vector."""
    assert retriever.index is not None
    return [list(row.chunk_ids) for row in retriever.index._rows.values()]


def dense(chunks: list[ChunkKV], query: Query) -> torch.Tensor:
    """[layers]: straight from the definition, the mean over the tokens of all chunks, joined first."""
    keys = torch.cat([one.keys for one in chunks], dim=2).double()
    return torch.einsum("lhsd,lhd->sl", keys, query.per_layer.double()).mean(0)


@pytest.mark.parametrize("make", [KeySimilarity, PerLayer])
@pytest.mark.parametrize("seed", range(3))
def test_pooled_vectors_are_the_means_of_all_their_tokens(
    make: type[KeySimilarity] | type[PerLayer], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    chunks = [chunk(i, rng.randint(1, 6), seed=seed) for i in range(300)]
    retriever = make(index_bytes=CAPACITY)
    with caplog.at_level(logging.WARNING):
        for one in chunks:
            retriever.add(one)
            assert retriever.index.num_ram_bytes <= CAPACITY
    assert caplog.text.count("index_bytes=12000") == 1 and not retriever.index.is_coarse, "said once; 8 bits win little here"
    groups = groups_of(retriever)
    assert sorted(i for group in groups for i in group) == list(range(300)), "every chunk has one vector"
    assert all(group == list(range(group[0], group[-1] + 1)) for group in groups), "neighbours"
    sizes = [len(group) for group in sorted(groups)]
    assert max(sizes) > 4 and retriever.index.num_pooled == sum(size for size in sizes if size > 1)
    for number in range(3):
        asked, until = query(seed + number), rng.choice([1e9, rng.uniform(15, 29)])
        per_group = {tuple(group): dense([chunks[i] for i in group], asked) for group in groups}
        # What also stands for chunks to come must not be found by its score.
        by_then = {group: scores for group, scores in per_group.items() if chunks[group[-1]].end_seconds <= until + 1e-6}
        allowed = {i: scores for group, scores in by_then.items() for i in group}
        total = {i: float(s.sum() if make is KeySimilarity else s.mean()) for i, s in allowed.items()}
        expected = sorted(total.values(), reverse=True)
        found = retriever.search(asked, 300, until)
        assert {hit.chunk_id for hit in found} == total.keys()
        assert [hit.score for hit in found] == pytest.approx(expected, abs=1e-4)
        assert all(hit.score == pytest.approx(total[hit.chunk_id], abs=1e-4) for hit in found)
        few = retriever.search(asked, 7, until, [found[0].chunk_id])
        if make is KeySimilarity:  # the other one chooses in every layer by itself
            rest = [hit.score for hit in found[1:8]]
            assert [hit.score for hit in few] == pytest.approx(rest, abs=1e-5)


def test_a_pooled_vector_goes_with_its_last_chunk() -> None:
    retriever = KeySimilarity(index_bytes=CAPACITY)
    for i in range(200):
        retriever.add(chunk(i))
    group = max(groups_of(retriever), key=len)
    retriever.remove(group[1:])
    left = {hit.chunk_id for hit in retriever.search(query(0), 999, 1e9)}
    assert group[0] in left and not left & set(group[1:])
    before = len(groups_of(retriever))
    retriever.remove([group[0], 999])
    assert len(groups_of(retriever)) == before - 1
    retriever.index._pool()
    retriever.remove(range(200))
    assert retriever.search(query(0), 9, 1e9) == [] and retriever.index.num_ram_bytes == 0


@pytest.mark.parametrize("late", ["max", "tokens"])
def test_tokens_of_old_chunks_are_pooled_too(late: str) -> None:
    retriever = KeySimilarity(late, num_tokens=3, index_bytes=4 * CAPACITY)
    for i in range(100):
        retriever.add(chunk(i))
        assert retriever.index.num_ram_bytes <= 4 * CAPACITY
    assert retriever.index.num_pooled
    assert {hit.chunk_id for hit in retriever.search(query(0), 999, 1e9)} == set(range(100))
    newest = KeySimilarity(late, num_tokens=3)
    newest.add(chunk(99))
    wanted = newest.search(query(0), 1, 1e9)[0].score
    assert next(h.score for h in retriever.search(query(0), 999, 1e9) if h.chunk_id == 99) == pytest.approx(wanted, abs=1e-5)


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    roomy, tight = compose_retriever("key_similarity"), compose_retriever("key_similarity", index_bytes=100 * 1000)
    for i in range(100):
        roomy.add(chunk(i))
        tight.add(chunk(i))
    for seed in range(5):
        assert roomy.search(query(seed), 9, 1e9) == tight.search(query(seed), 9, 1e9)
    assert tight.index is not None and not tight.index.num_pooled and not tight.index.is_full


@pytest.mark.parametrize("make", [KeySimilarity, PerLayer])
def test_a_full_index_keeps_long_vectors_in_eight_bits_first(
    make: type[KeySimilarity] | type[PerLayer], caplog: pytest.LogCaptureFixture
) -> None:
    bits = torch.Generator().manual_seed(0)
    keys = torch.randn(120, 4, 2, 3, 64, generator=bits)
    chunks = [ChunkKV(i, k, k, torch.zeros(3, 3).long(), 3, float(i), i + 1.0) for i, k in enumerate(keys)]
    exact, tight = make(), make(index_bytes=60 * 4 * 4 * 128)
    for one in chunks:
        exact.add(one)
        tight.add(one)
        assert tight.index.num_ram_bytes <= tight.index.capacity_bytes
    assert tight.index.is_coarse and not tight.index.num_pooled and caplog.text.count("8 bits") == 1
    for seed in range(3):
        asked = Query(torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(seed)), "?")
        scores, rough = ({h.chunk_id: h.score for h in one.search(asked, 999, 1e9)} for one in (exact, tight))
        # Means of three: ranges of some 6 standard deviations of 0.6, and half a step of 1/170 of that, for every number.
        most = float(asked.per_layer.abs().sum()) * 0.6 * 6 / 170 / 2
        assert scores.keys() == rough.keys() and all(abs(scores[i] - rough[i]) < most for i in scores)
        assert next(iter(scores)) in list(rough)[:3]
    tight.remove(range(120))
    tight.add(chunks[0])
    assert not tight.index.is_coarse, "begun anew"


@pytest.mark.parametrize("make", [KeySimilarity, PerLayer])
def test_what_is_alike_shares_and_what_is_seldom_is_found_as_before(make: type[KeySimilarity] | type[PerLayer]) -> None:
    rng = random.Random(1)
    seldom = {i: rng.randint(1, 5) for i in rng.sample(range(500), 8)}

    def kv(i: int) -> ChunkKV:
        one = chunk(i, seldom.get(i, 5), seed=i if i in seldom else 0)
        if i in seldom:
            return one
        # A scene that hardly changes.
        still = chunk(0)
        noise = 0.01 * one.keys
        return ChunkKV(i, still.keys + noise, still.values, still.position_ids, still.span, one.start_seconds, one.end_seconds)

    roomy, tight = make(), make(index_bytes=CAPACITY)
    for i in range(500):
        roomy.add(kv(i))
        tight.add(kv(i))
    assert all([i] in groups_of(tight) for i in seldom), "a vector of their own"
    for i in seldom:
        asked = Query(kv(i).keys.mean(2), "?")
        assert tight.search(asked, 1, 1e9) == roomy.search(asked, 1, 1e9)
        assert tight.search(asked, 1, 1e9)[0].chunk_id == i


def test_two_vectors_become_one_where_there_is_room_for_one() -> None:
    retriever = KeySimilarity(index_bytes=500)
    for i in range(6):
        retriever.add(chunk(i))
    assert groups_of(retriever) == [list(range(6))] and retriever.index.num_ram_bytes <= 500
    assert [hit.chunk_id for hit in retriever.search(query(0), 9, 1e9)] == list(range(6))
