"""A memory on disk under its quota: old chunks go, or thin out in steps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stored import (
    THINNING,
    after,
    fill,
    held,
    pulling_the_plug,
    record_of,
    segments,
    stored_bank,
    vectors_of,
)
from test_memory_stores import chunk, same

from memory.library import describe
from memory.rewriting import rewrite
from memory.segment_file import segment_path
from memory.stored_records import StoredRecords
from memory.vectors import mean_key
from model_adapters.base import ChunkKV


def test_the_quota_lets_the_oldest_kv_go_and_keeps_time_and_picture(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", disk_bytes=400_000, segment_bytes=20_000)
    dropped = []
    for i in range(300):
        dropped += bank.put(chunk(i), record_of(chunk(i)))
    bank.writer.flush()
    assert bank.num_bytes("disk") <= 400_000 + 20_000
    dropped += bank.put(chunk(300), record_of(chunk(300)))
    bank.writer.flush()
    there = bank.chunk_ids()
    assert 0 not in there and 300 in there and there == list(range(there[0], 301))
    # What the last commit dropped is told by the next put.
    assert sorted(dropped) == list(range(len(dropped))) and 0 < len(dropped) <= there[0]
    assert held(bank, range(there[0], 301)) and bank.gaps[0][0] == 0.0
    bank.close()
    again = stored_bank(tmp_path / "m", write=False)
    assert StoredRecords(again.memory.manifest).get(0).thumbnail == record_of(chunk(0)).thumbnail
    assert again.tier(0) is None and {gap.reason for gap in again.memory.manifest.gaps()} == {"dropped"}
    again.close()


@pytest.mark.slow
def test_a_full_quota_thins_old_chunks_in_steps_and_reopening_knows_them(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", 0, 60_000, disk_bytes=400_000, segment_bytes=20_000, thinning=THINNING)
    dropped: list[int] = []
    left: dict[int, ChunkKV] = {}
    for i in range(330):
        dropped += bank.put(chunk(i), record_of(chunk(i)))
        left |= {one.chunk_id: one for one in bank.take_thinned()}
        assert bank.memory.num_bytes <= 400_000 + 20_000
    bank.writer.flush()
    left |= {one.chunk_id: one for one in bank.take_thinned()}
    ids, steps = bank.chunk_ids(), bank.steps()
    assert set(steps.values()) == {1, 2} and max(steps) < max(ids) and dropped, (
        "some are thinned, some are gone, the newest whole"
    )
    assert bank.stats()["num_thinned"] == len(steps)
    every = [steps.get(i, 0) for i in ids]
    assert bank.stats()["num_at_step"] == [every.count(step) for step in range(max(every) + 1)]
    for reopened in (False, True):
        if reopened:
            bank.close()
            bank = stored_bank(tmp_path / "m", write=False)
        assert bank.steps() == steps and all(bank.step(i) == steps.get(i, 0) for i in ids)
        assert all(same(one, after(one.chunk_id, steps.get(one.chunk_id, 0))) for one in bank.get(ids))
        vectors = vectors_of(bank.memory)
        assert sorted(vectors) == ids
        for i in ids:
            # What was too small to shrink keeps the vector that it had.
            shrunk = left[i] if i in left else chunk(i)
            assert np.array_equal(vectors[i], mean_key(shrunk).numpy())
    assert describe(tmp_path / "m").num_thinned == Counter(steps.values())
    bank.close()


@pytest.mark.parametrize(
    "point", ["vectors.synced", "thin.written", "rewrite.written", "rewrite.committed", "unwanted.deleting"]
)
def test_an_interrupted_thinning_is_either_undone_or_finished(tmp_path: Path, point: str) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(10))
    bank.close()

    bank = stored_bank(tmp_path / "m", fault=pulling_the_plug(point))
    with pytest.raises(OSError, match="pulled the plug"):
        rewrite(bank.memory, bank.memory.manifest.segments_by_age(), thinning=THINNING)
    bank.close()
    again = stored_bank(tmp_path / "m")
    step = int(point in ("rewrite.committed", "unwanted.deleting"))
    assert {again.step(i) for i in range(10)} == {step}
    assert [one.chunk_id for one in again.get(range(10))] == list(range(10))
    assert all(same(one, after(one.chunk_id, step)) for one in again.get(range(10)))
    assert sorted(vectors_of(again.memory)) == list(range(10))
    assert len(segments(tmp_path / "m")) == again.memory.num_segments, "no file is left over"
    again.close()


def test_what_is_damaged_is_not_thinned_into_something_that_looks_whole(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(10))
    row = bank.memory.manifest.row(4)
    path = segment_path(tmp_path / "m", row.segment)
    content = bytearray(path.read_bytes())
    at = content.find(chunk(4).values.contiguous().numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    left = rewrite(bank.memory, bank.memory.manifest.segments_by_age(), thinning=THINNING)
    assert 4 not in {one.chunk_id for one in left}
    assert [one.chunk_id for one in bank.get(range(10))] == [i for i in range(10) if i != 4] and bank.damaged == [4]
    bank.close()
