"""What the timeline draws of a stored memory: asked for in parts, it is what the manifest holds as a whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from stored import record_of, stored_bank
from test_memory_stores import chunk

from memory.stored_records import StoredRecords


def drawn(records: StoredRecords) -> list[tuple[object, ...]]:
    return [(m.chunk_id, m.start_seconds, m.end_seconds, m.num_seen_tokens, m.num_kept_tokens) for m in records.moments()]


@pytest.mark.parametrize("seed", range(4))
def test_moments_and_tiers_follow_what_is_stored_and_forgotten(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    bank = stored_bank(tmp_path / "m", gpu_bytes=2000, ram_bytes=3000)
    records = StoredRecords(bank.memory.manifest)
    expected: list[tuple[object, ...]] = []
    next_id = 0
    for _ in range(30):
        action = rng.choice(["put", "put", "flush", "forget", "get", "look"])
        if action == "put":
            one = chunk(next_id)
            record = record_of(one)
            bank.put(one, record)
            records.add(record)
            counts = (record.num_seen_tokens, record.num_kept_tokens)
            expected.append((next_id, record.start_seconds, record.end_seconds, *counts))
            next_id += 1
        elif action == "flush":
            bank.writer.flush()
        elif action == "get" and next_id:
            bank.get([rng.randrange(next_id)])
        elif action == "forget":
            start = rng.uniform(0, 3)
            gone = bank.forget(start, start + 0.15)
            records.remove(gone)
            expected = [moment for moment in expected if moment[0] not in gone]
        else:
            assert drawn(records) == expected
        assert bank.tiers() == {i: bank.tier(i) for i in bank.chunk_ids()}
    bank.writer.flush()
    moments = records.moments()
    assert drawn(records) == drawn(StoredRecords(bank.memory.manifest)) == expected and len(moments) == len(expected)
    assert [m.chunk_id for m in moments[1::2]] == [row[0] for row in expected[1::2]]
    if expected:
        assert moments[-1].chunk_id == expected[-1][0] and next(iter(moments)) == moments[0]
    with pytest.raises(IndexError):
        moments[len(moments)]
    bank.close()
