"""Forgetting a span of a memory on disk: nothing of it is left in any file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored import (
    THINNING,
    after,
    fill,
    held,
    pulling_the_plug,
    record_of,
    stored_bank,
    vectors_of,
    wait_until_within_lag,
    wait_until_written,
)
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory import MemoryBank, PlainBank
from memory.manifest import Manifest
from memory.notes import Note, Notes
from memory.reference import REFERENCE, Reference, keep_reference
from memory.rewriting import rewrite
from memory.rows import Gap
from memory.stored import Pending
from memory.upkeep import merge
from memory.vectors import mean_key

MIB = 2**20


def contents_of(folder: Path) -> dict[str, bytes]:
    """All files of a memory at one time: the writer may be merging segments meanwhile."""
    while True:
        try:
            return {path.name: path.read_bytes() for path in folder.iterdir()}
        except FileNotFoundError:
            continue


def test_forgetting_leaves_no_trace_in_any_file(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", 0, MIB, segment_bytes=20_000)
    fill(bank, range(40))
    while merge(bank.memory):
        pass
    secret = record_of(chunk(13)).thumbnail + b"a face that nobody may see any more"
    one = chunk(40)
    bank.put(one, replace(record_of(one), thumbnail=secret))
    bank.writer.flush()
    marks = [secret, *(mean_key(chunk(i)).numpy().tobytes() for i in (12, 13, 40))]
    marks += [chunk(i).values.contiguous().numpy().tobytes() for i in (12, 13, 40)]
    files = "".join(p.name for p in (tmp_path / "m").iterdir())
    contents = contents_of(tmp_path / "m")
    assert all(any(mark in content for content in contents.values()) for mark in marks), files
    assert bank.forget(1.25, 1.35) == [12, 13] and bank.forget(4.0, 9.0) == [40]
    for name, content in contents_of(tmp_path / "m").items():
        assert not any(mark in content for mark in marks), f"{name} still holds what was forgotten"
    left = [i for i in range(40) if i not in (12, 13)]
    assert bank.chunk_ids() == left and all(same(a, chunk(i)) for a, i in zip(bank.get(left), left, strict=True))
    assert bank.get([12, 13, 40]) == [] and bank.tier(13) is None
    assert sorted(vectors_of(bank.memory)) == left
    assert bank.forget(100, 200) == []
    with pytest.raises(MemoryBankError, match="no span"):
        bank.forget(5, 5)
    bank.close()
    again = stored_bank(tmp_path / "m")
    assert again.chunk_ids() == left and [g for g in again.memory.manifest.gaps() if g.reason == "forgotten"]
    fill(again, range(50, 53))
    assert again.chunk_ids() == [*left, 50, 51, 52]
    again.close()


def test_what_only_a_cache_holds_is_forgotten_too(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", MIB, MIB, lag_seconds=0.25)
    fill(bank, range(4))
    commit, error = bank.memory.commit, MemoryBankError("the disk is full")

    def full(batch: Sequence[Pending], gaps: Sequence[Gap] = ()) -> None:
        raise error

    bank.memory.commit = full  # type: ignore[method-assign]
    for i in range(4, 12):
        bank.put(chunk(i), record_of(chunk(i)))
    wait_until_within_lag(bank, 5)
    bank.memory.commit = commit  # type: ignore[method-assign]
    wait_until_written(bank)
    assert not bank.memory.manifest.holds(6) and held(bank, range(12)), "the stream went on in RAM"
    assert bank.forget(0.35, 0.75) == [3, 4, 5, 6, 7] and bank.get(range(3, 8)) == []
    bank.check_integrity()
    bank.close()


def test_who_reads_in_another_process_forgets_too(tmp_path: Path) -> None:
    """And has no more of a chunk than the disk has left, whatever its caches had before."""
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(6))
    reader = stored_bank(tmp_path / "m", 10**6, 10**6, write=False)
    assert held(reader, range(6)) and set(reader.tiers().values()) == {"gpu"}
    fill(bank, range(6, 8))
    assert held(reader, range(8)) and reader.gaps == []
    start, end = bank.span(2)
    bank.forget(start + 0.01, end - 0.01)
    assert [one.chunk_id for one in reader.get(range(8))] == [0, 1, 3, 4, 5, 6, 7]
    assert reader.gaps == [(start, end)] and 2 not in reader.chunk_ids()
    rewrite(bank.memory, bank.memory.manifest.segments_by_age(), thinning=THINNING)
    left = set(range(8)) - {2}
    assert all(same(one, after(one.chunk_id, 1)) for one in reader.get(range(8))) and reader.steps().keys() == left
    reader.close()
    bank.close()


def test_what_is_forgotten_without_end_leaves_a_gap_that_ends(tmp_path: Path) -> None:
    for bank in (PlainBank("cpu"), MemoryBank("cpu", MIB, 0), stored_bank(tmp_path / "m", MIB)):
        for i in range(5):
            bank.put(chunk(i))
        assert bank.forget(0.15, math.inf) == [1, 2, 3, 4]
        assert bank.gaps == [(chunk(1).start_seconds, chunk(4).end_seconds)], bank
        bank.close()


def test_notes_about_a_span_whose_chunks_have_gone_are_forgotten(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(3))
    secret = "somebody came in whom nobody may know of"
    Notes(bank.memory.manifest).put([Note("alert", 0, secret, 50.0, 51.0), Note("alert", 1, "kept", 60.0, 61.0)], most=9)
    assert bank.forget(50.5, 52.0) == [] and [note.content for note in Notes(bank.memory.manifest).of("alert")] == ["kept"]
    assert not any(secret.encode() in content for content in contents_of(tmp_path / "m").values())
    bank.close()


def test_a_forgetting_that_has_no_room_to_be_finished_is_told_and_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(manifest: Manifest) -> bool:
        raise MemoryBankError("database or disk is full")

    bank = stored_bank(tmp_path / "m", MIB)
    fill(bank, range(6))
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "compact", full)
        assert bank.forget(0.35, 0.45) == [3, 4] and bank.get([3, 4]) == [], "nothing is read of it any more"
        assert "disk is full" in str(bank.stats()["notices"])
        bank.close()
        again = stored_bank(tmp_path / "m", MIB)
        assert [words for words in again.memory.notices if "stay in the manifest" in words]
        assert not [words for words in again.memory.notices if "was finished" in words]
    assert again.memory.manifest.number("forgetting") == 1
    assert again.forget(50.0, 60.0) == [] and again.memory.manifest.number("forgetting") == 0
    again.close()


def test_a_forgetting_that_failed_leaves_no_copy_of_what_the_next_one_forgets(tmp_path: Path) -> None:
    bank, failed = stored_bank(tmp_path / "m"), []
    fill(bank, range(4))
    rewrite(bank.memory, bank.memory.manifest.segments_by_age(), thinning=THINNING)
    fill(bank, range(4, 8))

    def fault(point: str) -> None:
        if point == "rewrite.begun" and not failed:
            failed.append(point)
            raise OSError("pulled the plug")

    bank.memory.fault = fault
    with pytest.raises(MemoryBankError, match="pulled the plug"):
        bank.forget(0.35, 0.45)
    assert bank.forget(0.0, 0.05) == [0]
    mark = after(0, 1).values.contiguous().numpy().tobytes()
    assert not [name for name, content in contents_of(tmp_path / "m").items() if mark in content]
    assert bank.chunk_ids() == list(range(1, 8))
    bank.close()


def test_a_damaged_row_in_a_span_is_forgotten_with_it(tmp_path: Path) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(9))
    with bank.memory.manifest.changing() as db:
        db.execute("UPDATE chunks SET start_seconds = 1e9, end_seconds = 2e9 WHERE chunk_id = 4")
    assert bank.forget(0.25, 0.65) == [2, 3, 4, 5, 6]
    mark = chunk(4).values.contiguous().numpy().tobytes()
    assert not any(mark in content for content in contents_of(tmp_path / "m").values())
    assert bank.memory.manifest.ids_of_all() == [0, 1, 7, 8]
    bank.close()


def test_a_picture_that_was_half_left_off_with_is_gone(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(3))
    keep_reference(bank.memory, Reference({"picture": torch.arange(9)}), 2)
    bank.close()
    # As a kill in the middle of writing leaves it.
    left = (tmp_path / "m" / REFERENCE).with_suffix(".part")
    left.write_bytes((tmp_path / "m" / REFERENCE).read_bytes()[:-9])
    again = stored_bank(tmp_path / "m")
    again.forget(0.0, 0.3)
    again.close()
    assert not left.exists() and not (tmp_path / "m" / REFERENCE).exists()


@pytest.mark.parametrize(
    "point", ["vectors.renamed", "rewrite.written", "rewrite.committed", "unwanted.deleting", "forget.compacting"]
)
def test_an_interrupted_forgetting_is_either_undone_or_finished(tmp_path: Path, point: str) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(10))
    bank.close()

    bank = stored_bank(tmp_path / "m", fault=pulling_the_plug(point))
    with pytest.raises(MemoryBankError, match="pulled the plug"):
        bank.forget(0.35, 0.45)
    bank.close()
    again = stored_bank(tmp_path / "m")
    whole = point in ("vectors.renamed", "rewrite.written")
    left = [i for i in range(10) if whole or i not in (3, 4)]
    assert again.chunk_ids() == left and all(same(one, chunk(one.chunk_id)) for one in again.get(left))
    mark = chunk(4).values.contiguous().numpy().tobytes()
    found = any(mark in path.read_bytes() for path in (tmp_path / "m").iterdir())
    assert found == whole, "finished to the last byte, or as if it had not begun"
    assert sorted(vectors_of(again.memory)) == left
    again.close()
