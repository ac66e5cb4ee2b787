"""Retrievers and indexes against dense references computed from all keys, on random chunks and questions."""

from __future__ import annotations

import importlib.util
import logging
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.errors import AdapterError, ConfigError
from model_adapters.base import ChunkKV, Query
from retrieval import RETRIEVERS, Hit, Retriever, create_retriever
from retrieval.baselines import All, NoneRetriever, Recent, Uniform
from retrieval.index import BruteIndex, Index, VectorIndex, kind_of_index
from retrieval.key_similarity import KeySimilarity
from retrieval.neighbours import Neighbours
from retrieval.per_layer import PerLayer
from retrieval.temporal import Combined, Temporal

LAYERS, HEADS, DIM = 3, 2, 4


def chunk(chunk_id: int, num_tokens: int = 5, seed: int = 0) -> ChunkKV:
    keys = torch.randn(LAYERS, HEADS, num_tokens, DIM, generator=torch.Generator().manual_seed(1000 * seed + chunk_id))
    positions = torch.arange(num_tokens)[None]
    return ChunkKV(chunk_id, keys, -keys, positions, num_tokens, chunk_id * 1.0, chunk_id + 1.0)


def question(seed: int = 0, text: str = "what is this ?") -> Query:
    return Query(torch.randn(LAYERS, HEADS, DIM, generator=torch.Generator().manual_seed(10**6 + seed)), text)


def filled(retriever: Retriever, chunks: list[ChunkKV]) -> Retriever:
    for one in chunks:
        retriever.add(one)
    return retriever


def ids(hits: list[Hit]) -> list[int]:
    return [hit.chunk_id for hit in hits]


needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss")


@needs_faiss
@pytest.mark.parametrize("seed", range(10))
def test_faiss_equals_brute_force(seed: int) -> None:
    rng, bits = random.Random(seed), torch.Generator().manual_seed(seed)
    pair: list[Index] = [VectorIndex(7), BruteIndex(7)]
    known: list[int] = []
    for step in range(60):
        if rng.random() < 0.6:
            new = [10**9 * seed + 10 * step + k for k in range(rng.randint(1, 3))]
            vectors = torch.randn(len(new), 7, generator=bits)
            known += new
            for index in pair:
                index.add(new, vectors)
        elif known:
            gone = rng.sample(known, min(len(known), 2))
            known = [i for i in known if i not in gone]
            for index in pair:
                index.remove([*gone, 77])
        query, k = torch.randn(7, generator=bits), rng.randint(0, 12)
        allowed = None if rng.random() < 0.3 else [*rng.sample(known, rng.randint(0, len(known))), 77]
        fast, slow = (index.search(query, k, allowed) for index in pair)
        assert [i for i, _ in fast] == [i for i, _ in slow]
        assert [s for _, s in fast] == pytest.approx([s for _, s in slow], abs=1e-5)
        if known:
            there = pair[1].vectors(known)
            assert torch.equal(pair[0].vectors(known), there)
            alone = VectorIndex.products(query.numpy(), there.numpy())
            assert dict(pair[0].search(query, len(known))) == dict(zip(known, alone.tolist(), strict=True)), "bit for bit"
            assert BruteIndex.products(query.numpy(), there.numpy()) == pytest.approx(alone, abs=1e-5)
        assert len(pair[0]) == len(pair[1]) == len(known) and pair[0].num_bytes == pair[1].num_bytes


@needs_faiss
@pytest.mark.parametrize("seed", range(5))
def test_eight_bits_are_within_half_a_step(seed: int) -> None:
    bits = torch.Generator().manual_seed(seed)
    vectors = torch.randn(50, 40, generator=bits) * torch.rand(40, generator=bits) * 10
    vectors[:, 3] = 1.5
    # Vectors that come later may lie outside of the range by the margin.
    later = vectors * 1.2
    step = 1.5 * (vectors.max(0).values - vectors.min(0).values) / 255
    for one in (VectorIndex(40, like=vectors), BruteIndex(40, like=vectors)):
        one.add(range(50), vectors)
        one.add(range(50, 100), later)
        error = (one.vectors(range(100)) - torch.cat([vectors, later])).abs()
        error[50:, 3] = 0  # a number that never changed has no margin
        assert (error <= step / 2 + 1e-4).all() and one.num_bytes == 100 * (40 + 16)
        query = torch.randn(40, generator=bits)
        found = dict(one.search(query, 100))
        assert [found[i] for i in range(100)] == pytest.approx((one.vectors(range(100)) @ query).tolist(), abs=1e-2)


def test_without_faiss_the_torch_index_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert kind_of_index().kind == "torch-brute"
    assert "faiss" in caplog.text


def dense_scores(late: str, chunks: list[ChunkKV], query: Query, num_tokens: int) -> dict[int, float]:
    """Straight from the definition, one einsum per chunk over all its tokens."""
    scores = {}
    for one in chunks:
        per_token = torch.einsum("lhsd,lhd->s", one.keys.double(), query.per_layer.double())
        if late == "tokens" and one.num_tokens > num_tokens:
            distance = (one.keys - one.keys.mean(2, keepdim=True)).pow(2).sum((0, 1, 3))
            per_token = per_token[distance.argsort(descending=True)[:num_tokens]]
        scores[one.chunk_id] = float(per_token.mean() if late == "mean" else per_token.max())
    return scores


@pytest.mark.parametrize("late", ["mean", "max", "tokens"])
@pytest.mark.parametrize("seed", range(6))
def test_key_similarity_equals_dense_attention_logits(late: str, seed: int) -> None:
    rng = random.Random(seed)
    chunks = [chunk(i, rng.randint(1, 9), seed) for i in range(40)]
    retriever = KeySimilarity(late, num_tokens=3)
    filled(retriever, chunks)
    gone = rng.sample(range(40), 8)
    retriever.remove([*gone, 999])
    until, exclude, query = float(rng.randint(20, 40)), rng.sample(range(40), 5), question(seed)
    dense = dense_scores(late, [one for one in chunks if one.chunk_id not in gone], query, 3)
    wanted = sorted((i for i in dense if i + 1 <= until and i not in exclude), key=lambda i: -dense[i])
    for top_k in (0, 1, 7, 100):
        hits = retriever.search(query, top_k, until, exclude)
        assert ids(hits) == wanted[:top_k]
        assert [hit.score for hit in hits] == pytest.approx([dense[i] for i in wanted[:top_k]], abs=1e-4)
        assert all((hit.start_seconds, hit.end_seconds) == (hit.chunk_id, hit.chunk_id + 1) for hit in hits)
    all_ids, all_scores = retriever.scores(query, until)
    assert all_ids.dtype == np.int64 and all_scores.dtype == np.float32
    assert sorted(all_ids.tolist()) == sorted(i for i in dense if i + 1 <= until)
    assert all_scores.tolist() == pytest.approx([dense[i] for i in all_ids.tolist()], abs=1e-4)


def test_key_similarity_on_some_layers_and_on_nothing() -> None:
    chunks, query = [chunk(i) for i in range(10)], question()
    some = filled(KeySimilarity(layers=[0, 2]), chunks)
    cut = Query(query.per_layer[[0, 2]], query.text)
    only = [ChunkKV(c.chunk_id, c.keys[[0, 2]], c.values, c.position_ids, 5, c.start_seconds, c.end_seconds) for c in chunks]
    assert some.search(query, 4, 99) == filled(KeySimilarity(), only).search(cut, 4, 99)
    assert some.num_bytes < filled(KeySimilarity(), chunks).num_bytes < filled(KeySimilarity("max"), chunks).num_bytes
    empty = KeySimilarity()
    assert empty.search(query, 4, 99) == [] and len(empty.scores(query, 99)[0]) == 0
    with pytest.raises(ConfigError, match="sum"):
        KeySimilarity("sum")


@pytest.mark.parametrize("make", [KeySimilarity, lambda: KeySimilarity("max"), PerLayer])
def test_a_chunk_without_tokens_is_never_found(make: type[Retriever]) -> None:
    retriever = filled(make(), [chunk(0, 0), chunk(1), chunk(2, 0)])
    if isinstance(retriever, KeySimilarity) and retriever.late == "mean":
        assert retriever.scores(question(), 9)[0].tolist() == [1]
    assert ids(retriever.search(question(), 5, 9)) == [1]
    retriever.remove([0, 1])
    assert retriever.search(question(), 5, 9) == []


@pytest.mark.parametrize("seed", range(6))
def test_per_layer_equals_a_dense_reference(seed: int) -> None:
    rng, query = random.Random(seed), question(seed)
    chunks = [chunk(i, rng.randint(1, 9), seed) for i in range(30)]
    retriever = PerLayer()
    filled(retriever, chunks)
    retriever.remove([3, 4, 999])
    exclude, until, top_k = [7, 8, 9], 25.0, 4
    left = [one for one in chunks if one.chunk_id not in (3, 4, 7, 8, 9) and one.end_seconds <= until]
    dense = torch.stack([torch.einsum("lhsd,lhd->ls", one.keys, query.per_layer).mean(1) for one in left])
    layers = retriever.search_layers(query, top_k, until, exclude)
    union: set[int] = set()
    for layer, hits in enumerate(layers):
        best = dense[:, layer].topk(top_k)
        assert ids(hits) == [left[row].chunk_id for row in best.indices]
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-5)
        union.update(ids(hits))
    mean = {one.chunk_id: float(dense[row].mean()) for row, one in enumerate(left)}
    hits = retriever.search(query, top_k, until, exclude)
    assert ids(hits) == sorted(union, key=lambda i: -mean[i])[:top_k]
    assert [hit.score for hit in hits] == pytest.approx([mean[i] for i in ids(hits)], abs=1e-5)
    assert len(layers) == LAYERS
    with pytest.raises(AdapterError, match="2 layers"):
        retriever.search(Query(query.per_layer[:2], ""), 3, until)


def test_baselines() -> None:
    chunks, query = [chunk(i) for i in range(20)], question()
    assert ids(filled(Recent(), chunks).search(query, 3, 15.0, [14, 12])) == [13, 11, 10]
    assert ids(filled(All(), chunks).search(query, 3, 4.0, [1])) == [3, 2, 0]
    assert filled(NoneRetriever(), chunks).search(query, 3, 15.0) == []
    spread = ids(filled(Uniform(), chunks).search(query, 4, 99.0))
    assert spread == [17, 12, 7, 2]
    assert ids(filled(Uniform(), chunks).search(query, 50, 99.0)) == list(range(19, -1, -1))
    for one in (Recent(), Uniform()):
        assert filled(one, chunks).search(query, 0, 99.0) == []
        one.remove([19, 19, 500])
        assert ids(one.search(query, 30, 99.0)) == list(range(18, -1, -1))


EVERY = [
    *(lambda name=name: create_retriever(name) for name in sorted(RETRIEVERS)),
    lambda: KeySimilarity("max"),
    lambda: KeySimilarity("tokens"),
    Temporal,
    lambda: Neighbours(KeySimilarity(), 1, 2),
    lambda: Combined(Temporal(), Neighbours(PerLayer())),
]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("seed", range(4))
def test_every_retriever_keeps_the_contract(make: type[Retriever], seed: int) -> None:
    rng, retriever = random.Random(seed), make()
    assert retriever.search(question(), 5, 100.0) == []
    filled(retriever, [chunk(i, seed=seed) for i in range(30)])
    gone = set(rng.sample(range(30), 6))
    bytes_before = retriever.num_bytes
    retriever.remove(gone)
    retriever.remove(gone)
    assert retriever.num_bytes < bytes_before or isinstance(retriever, NoneRetriever)
    query = question(seed, rng.choice(["what was at 12 s ?", "what is this ?", "between 5 and 25 s"]))
    for top_k in (0, 1, 6):
        until, exclude = float(rng.randint(0, 30)), set(rng.sample(range(30), 5))
        hits = retriever.search(query, top_k, until, exclude)
        assert len(hits) <= top_k or isinstance(retriever, All)
        assert len(set(ids(hits))) == len(hits)
        assert all(hit.end_seconds <= until and hit.chunk_id not in exclude | gone for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.chunk_id < 30 for hit in retriever.search(query, 5, math.inf))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("what moved ?", (0, 1, -1, 2)),
        ("What came AFTER it?", (0, 1, 2, 3)),
        ("and then?", (0, 1, 2, 3)),
        ("what was there before it?", (0, -1, -2, -3)),
        ("was it before or after?", (0, 1, -1, 2)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_come_with_the_best_hit_first(seed: int, text: str, steps: tuple[int, ...]) -> None:
    chunks, query = [chunk(2 * i, seed=seed) for i in range(20)], replace(question(seed), text=text)
    base = filled(KeySimilarity(), chunks)
    until, exclude = 35.0, {10, 20}
    order = [one.chunk_id for one in chunks if one.end_seconds <= until]
    expected: list[int] = []
    for hit in base.search(query, 8, until, exclude):
        at = order.index(hit.chunk_id)
        for place in (at + step for step in steps):
            if 0 <= place < len(order) and order[place] not in exclude and order[place] not in expected:
                expected.append(order[place])
    found = filled(Neighbours(KeySimilarity(), 1, 2, far=3), chunks).search(query, 8, until, exclude)
    assert ids(found) == expected[:8]


def test_names() -> None:
    assert {name: type(create_retriever(name)).__name__ for name in RETRIEVERS} == {
        "key_similarity": "KeySimilarity",
        "per_layer": "PerLayer",
        "recent": "Recent",
        "uniform": "Uniform",
        "all": "All",
        "none": "NoneRetriever",
    }
    late = create_retriever("key_similarity", late="tokens", num_tokens=2)
    assert isinstance(late, KeySimilarity) and late.num_tokens == 2
    with pytest.raises(ConfigError, match=r"'bm25'.*all, key_similarity, none, per_layer, recent, uniform"):
        create_retriever("bm25")
