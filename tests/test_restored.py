"""Retrievers over stored vectors: they find what a retriever finds that was there when the chunks came."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
from stored import fill, record_of, stored_bank
from test_memory_stores import chunk

from data.errors import ConfigError
from memory import DurableBank
from memory.thinning import pooled
from memory.vectors import VectorFile
from model_adapters.base import ChunkKV, Query
from retrieval import RETRIEVERS, create_retriever
from retrieval.base import Hit, Retriever
from retrieval.compose import compose_retriever
from retrieval.key_similarity import KeySimilarity
from retrieval.restored import Restored

NUM = 30
CHUNKS = [chunk(i, num_tokens=0 if i == 5 else 4) for i in range(NUM)]
NAMES = [*sorted(RETRIEVERS), "composed"]


def query(seed: int, text: str = "what was on screen at 1 s ?") -> Query:
    return Query(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)), text)


def make(name: str) -> Retriever:
    return compose_retriever("key_similarity") if name == "composed" else create_retriever(name)


def put(bank: DurableBank, chunks: list[ChunkKV]) -> None:
    """Until they are on disk."""
    for one in chunks:
        bank.put(one, record_of(one))
    assert bank.writer is not None
    bank.writer.flush()


def places(hits: list[Hit]) -> list[tuple[int, float, float]]:
    return [(hit.chunk_id, hit.start_seconds, hit.end_seconds) for hit in hits]


def assert_alike(left: Retriever, right: Retriever, seeds: range) -> None:
    for seed in seeds:
        for until in (1e9, 1.55):
            mine, theirs = (one.search(query(seed), 6, until, [3]) for one in (left, right))
            assert places(mine) == places(theirs)
            assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_restored_and_added_find_the_same(name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory.vectors.BLOCK_BYTES", 500)  # a few records
    rng = random.Random(seed)
    num_stored = rng.randint(1, NUM)
    with_rest = stored_bank(tmp_path / "m")
    put(with_rest, CHUNKS[:num_stored])
    reading = stored_bank(tmp_path / "m", write=False)
    put(with_rest, CHUNKS[num_stored:])
    added, seen = make(name), make(name)
    # Who reads sees what was there when it was opened; who writes adds the rest, which may be on disk before it is asked.
    writes, reads = (Restored(make(name), bank.memory, num_stored - 1) for bank in (with_rest, reading))
    for one in CHUNKS:
        added.add(one)
    for one in CHUNKS[:num_stored]:
        seen.add(one)
    for one in CHUNKS[num_stored:]:
        writes.add(one)
    assert_alike(writes, added, range(3))
    assert_alike(reads, seen, range(3))
    gone = rng.sample(range(NUM), 4)
    for retriever in (added, writes, seen, reads):
        retriever.remove(gone)
    assert_alike(writes, added, range(3, 6))
    assert_alike(reads, seen, range(3, 6))
    with_rest.close()
    reading.close()


def test_nothing_is_read_before_the_first_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = stored_bank(tmp_path / "m")
    put(bank, CHUNKS[:4])
    reads = []
    blocks = VectorFile.blocks
    monkeypatch.setattr(VectorFile, "blocks", lambda self, first=0: reads.append(first) or blocks(self, first))
    restored = Restored(KeySimilarity(), bank.memory, until_chunk_id=3)
    restored.add(CHUNKS[4])
    assert restored.num_bytes > 0 and not reads
    for seed in range(2):
        assert {hit.chunk_id for hit in restored.search(query(seed), 9, 1e9)} == {0, 1, 2, 3, 4}
    assert restored.index is not None and restored.index.num_ram_bytes < restored.num_bytes < 3000, "no vectors in RAM"
    bank.close()


@pytest.mark.parametrize("asked_before", [False, True])
def test_what_was_thinned_is_found_once(tmp_path: Path, asked_before: bool) -> None:
    bank = stored_bank(tmp_path / "m")
    put(bank, CHUNKS[:4])
    restored = Restored(KeySimilarity(), bank.memory, until_chunk_id=3)
    if asked_before:
        restored.search(query(0), 9, 1e9)
    for _ in range(2):
        restored.remove([2])
        restored.add(pooled(CHUNKS[2]))
        assert sorted(hit.chunk_id for hit in restored.search(query(0), 9, 1e9)) == [0, 1, 2, 3]
    bank.close()


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_full_index_leaves_to_the_disk_what_is_there(
    tmp_path: Path, asked_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Then nothing is pooled, and answers stay those of an index without a limit."""
    chunks = [chunk(i) for i in range(90)]
    bank, added = stored_bank(tmp_path / "m"), compose_retriever("key_similarity")
    put(bank, chunks[:10])
    capacity = 9000
    restored = Restored(compose_retriever("key_similarity", index_bytes=capacity), bank.memory, until_chunk_id=9)
    for one in chunks[:10]:
        added.add(one)
    if asked_before:
        restored.search(query(0), 3, 1e9)
    assert restored.index is not None
    for one in chunks[10:]:
        put(bank, [one])
        for retriever in (restored, added):
            retriever.add(one)
        assert restored.index.num_ram_bytes <= capacity
    assert_alike(restored, added, range(5))
    assert restored.index.num_pooled == 0 and "full" not in caplog.text
    assert len(added.search(query(0, "?"), 1000, 1e9)) == len(restored.search(query(0, "?"), 1000, 1e9)) == 90
    bank.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_damaged_vectors_are_made_again_or_reported_and_skipped(
    tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank = stored_bank(tmp_path / "m")
    put(bank, CHUNKS)
    restored = Restored(KeySimilarity(), bank.memory, until_chunk_id=NUM - 1)
    everything = {one.chunk_id for one in CHUNKS if one.num_tokens}
    if when == "after":
        assert {hit.chunk_id for hit in restored.search(query(0), 99, 1e9)} == everything
    path = bank.memory.vectors.path
    size = path.stat().st_size // NUM
    content = bytearray(path.read_bytes())
    content[7 * size + 100] ^= 1
    path.write_bytes(content[: 28 * size + 5])
    expected = KeySimilarity()
    for one in CHUNKS:
        expected.add(one)
    if when == "after":
        expected.remove([7, 28, 29])
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            assert_alike(restored, expected, range(seed, seed + 1))
    assert caplog.text.count("3 index vectors are damaged") == (when == "after"), "said once, and only where none is left"
    bank.close()


def test_what_is_forgotten_is_not_searched_in_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory.vectors.BLOCK_BYTES", 500)  # a few records
    bank, expected = stored_bank(tmp_path / "m"), KeySimilarity()
    put(bank, CHUNKS)
    restored = Restored(KeySimilarity(), bank.memory, until_chunk_id=NUM - 1)
    restored.search(query(0), 99, 1e9)
    before = bank.memory.vectors
    gone = bank.forget(0.35, 0.95)
    restored.remove(gone)
    for one in CHUNKS:
        expected.add(one)
    expected.remove(gone)
    assert gone and bank.memory.vectors is not before
    assert_alike(restored, expected, range(4))
    bank.close()


def test_a_reader_finds_what_is_left_after_somebody_else_has_forgotten(tmp_path: Path) -> None:
    writer, expected = stored_bank(tmp_path / "m"), KeySimilarity()
    put(writer, CHUNKS)
    reader = stored_bank(tmp_path / "m", write=False)
    gone = writer.forget(0.35, 0.95)
    restored = Restored(KeySimilarity(), reader.memory, until_chunk_id=NUM - 1)
    for one in CHUNKS:
        expected.add(one)
    expected.remove(gone)
    assert_alike(restored, expected, range(4))
    assert restored.index is not None and restored.index.num_ram_bytes == 0, "none had to be made again"
    reader.close()
    writer.close()


def test_what_needs_every_token_is_refused(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(2))
    for late in ("max", "tokens"):
        with pytest.raises(ConfigError, match="every token"):
            Restored(KeySimilarity(late), bank.memory, 9).search(query(0), 3, 1e9)
    bank.close()
