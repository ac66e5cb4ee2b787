"""A memory on disk: what comes back after closing, who may open it, and what faults do to it."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import IDENTITY, MODEL, fill, record_of, stored_bank, vectors_of
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory import DurableBank, open_memory
from memory.identity import FORMAT_VERSION, Identity
from memory.library import describe
from memory.manifest import MANIFEST, Manifest
from memory.rows import Gap
from memory.segment_file import segment_path
from memory.stored_records import StoredRecords
from memory.thinning import Distinct, Thinning
from memory.upkeep import MERGE_SEGMENTS, merge, rewrite
from memory.vectors import Summaries, mean_key
from model_adapters.base import ChunkKV

MIB = 2**20


def held(bank: DurableBank, ids: range) -> bool:
    got = bank.get(ids)
    return [one.chunk_id for one in got] == list(ids) and all(same(one, chunk(one.chunk_id)) for one in got)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.safetensors"))


# What comes back


def test_what_was_put_is_there_after_closing(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(20))
    assert held(bank, range(20)) and bank.tier(3) == "disk"
    bank.close()
    for write in (False, True):
        again = stored_bank(tmp_path / "m", write=write)
        assert again.chunk_ids() == list(range(20)) and held(again, range(20))
        assert again.span(7) == (chunk(7).start_seconds, chunk(7).end_seconds)
        records = StoredRecords(again.memory.manifest)
        for i in (0, 7, 19):
            left, right = records.get(i), record_of(chunk(i))
            assert replace(left, keep=0) == replace(right, keep=0) and np.array_equal(left.keep, right.keep)
        assert again.memory.notices == []
        again.close()


def test_chunks_that_are_not_committed_yet_are_read_like_any_other(tmp_path: Path) -> None:
    gate = threading.Event()
    bank = stored_bank(tmp_path / "m", lag_seconds=100, fault=lambda point: gate.wait(30) if point == "rows.begun" else None)
    for i in range(10):
        bank.put(chunk(i), record_of(chunk(i)))
    assert bank.stats()["writer"]["num_committed"] == 0 and bank.writer.pending_seconds == pytest.approx(1.0)
    assert held(bank, range(10)) and bank.chunk_ids() == list(range(10)) and bank.span(4) == (0.4, 0.5)
    with pytest.raises(MemoryBankError, match="already"):
        bank.put(chunk(3))
    gate.set()
    bank.writer.flush()
    assert held(bank, range(10)) and bank.stats()["writer"]["num_committed"] == 10
    bank.close()


def test_the_writer_stays_within_its_lag_and_the_stream_waits_for_it(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", lag_seconds=0.5)
    for i in range(60):
        bank.put(chunk(i), record_of(chunk(i)))
        assert bank.writer.pending_seconds <= 0.5 + 1e-9
    stats = bank.stats()["writer"]
    assert stats["worst_lag_seconds"] <= 0.5 + 1e-9 and stats["num_unwritten"] == 0
    bank.close()


def test_gpu_and_ram_are_caches_of_what_was_used_last(tmp_path: Path) -> None:
    size = chunk(0).num_bytes
    bank = stored_bank(tmp_path / "m", 2 * size, 3 * (size + 192))
    fill(bank, range(12))
    assert [bank.tier(i) for i in (11, 10, 9, 8, 7)] == ["gpu", "gpu", "ram", "ram", "ram"]
    assert {bank.tier(i) for i in range(7)} == {"disk"} and bank.gaps == []
    assert held(bank, range(0, 2)) and bank.tier(0) == "gpu" and bank.tier(1) == "gpu", "what is read is cached"
    with bank.pinned([3, 4]):
        assert {bank.tier(3), bank.tier(4)} <= {"gpu", "ram"}
        for i in range(12, 18):
            assert bank.put(chunk(i), record_of(chunk(i))) == []
        assert {bank.tier(3), bank.tier(4)} <= {"gpu", "ram"}
    assert bank.chunk_ids() == list(range(18)) and held(bank, range(18))
    assert bank.stats()["num_read_disk"] > 0
    bank.close()


def test_small_segments_are_merged_and_nothing_changes(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", segment_bytes=20_000)
    fill(bank, range(40))
    before = len(segments(tmp_path / "m"))
    while merge(bank.memory):
        pass
    assert len(segments(tmp_path / "m")) < max(before, 12) and len(bank.memory.manifest.unwanted()) == 0
    assert held(bank, range(40)) and bank.memory.num_segments == len(segments(tmp_path / "m")) < MERGE_SEGMENTS
    bank.close()


def test_vectors_are_those_of_the_chunks_and_are_made_again_where_damaged(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(9))
    bank.close()
    vectors = tmp_path / "m" / "vectors-0000.f32"
    broken = bytearray(vectors.read_bytes())
    broken[len(broken) // 2] ^= 4
    for content in (vectors.read_bytes(), bytes(broken), broken[: len(broken) // 3], b""):
        vectors.write_bytes(content)
        memory = open_memory(tmp_path / "m", IDENTITY)
        found = vectors_of(memory)
        assert sorted(found) == list(range(9))
        assert all(np.array_equal(found[i], mean_key(chunk(i)).numpy()) for i in range(9))
        memory.close()


def test_files_are_private(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir(mode=0o755)
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(3))
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m").iterdir()}
    assert set(modes.values()) == {0o600} and f"{MANIFEST}-wal" in modes
    bank.close()


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memory import MemoryBank

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bank = MemoryBank("cpu", 2000, 2000, 10**6)
    for i in range(20):
        bank.put(chunk(i))
    bank.close()
    assert list(tmp_path.iterdir()) == []


# Who may open it


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Identity("other", {**MODEL, "fingerprint": "beef"}, IDENTITY.settings), "fingerprint is feed there and beef here"),
        (Identity("random", {**MODEL, "dtype": "bfloat16"}, IDENTITY.settings), "dtype is float32 there and bfloat16 here"),
        (Identity("random", MODEL, {**IDENTITY.settings, "fps": 1.0}), "fps is 2.0 there and 1.0 here"),
        (Identity("random", MODEL, {**IDENTITY.settings, "drop": "off"}), "drop is pixel there and off here"),
    ],
)
def test_another_model_or_other_settings_are_refused_by_name(tmp_path: Path, other: Identity, named: str) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(2))
    bank.close()
    for write in (True, False):
        with pytest.raises(MemoryBankError, match=named) as caught:
            open_memory(tmp_path / "m", other, write=write)
        assert "\n" not in str(caught.value)
    open_memory(tmp_path / "m", write=False).close()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(5))
    with pytest.raises(MemoryBankError, match="being written by somebody else"):
        stored_bank(tmp_path / "m")
    readers = [stored_bank(tmp_path / "m", write=False) for _ in range(3)]
    fill(bank, range(5, 8))
    for reader in readers:
        assert held(reader, range(8)), "a reader sees what was committed since"
        with pytest.raises(MemoryBankError, match="for reading only"):
            reader.put(chunk(9))
        with pytest.raises(MemoryBankError, match="for reading only"):
            reader.forget(0, 1)
        reader.close()
    bank.close()
    stored_bank(tmp_path / "m").close()


def test_folders_that_hold_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").write_text("x")
    (tmp_path / "half").mkdir()
    segment_path(tmp_path / "half", 0).write_text("x")
    for name, words in (("file", "is a file"), ("other", "holiday.jpg"), ("half", "copied by half")):
        with pytest.raises(MemoryBankError, match=words):
            open_memory(tmp_path / name, IDENTITY, write=True)
    for name in ("missing", "other", "file"):
        with pytest.raises(MemoryBankError, match="no memory"):
            open_memory(tmp_path / name)
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["holiday.jpg"], "nothing was written into it"
    (tmp_path / "empty").mkdir()
    stored_bank(tmp_path / "empty").close()


def test_format_versions(tmp_path: Path) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(4))
    bank.close()
    manifest = Manifest(tmp_path / "m", write=True)
    with manifest.changing() as db:
        manifest.set_meta(db, "format_version", FORMAT_VERSION + 1)
    manifest.close()
    for write in (True, False):
        with pytest.raises(MemoryBankError, match="newer than this program"):
            open_memory(tmp_path / "m", IDENTITY, write=write)

    # A made-up older version, in which the key of a sitting had another name.
    manifest = Manifest(tmp_path / "m", write=True)
    with manifest.changing() as db:
        db.execute("ALTER TABLE sittings RENAME COLUMN source_key TO key")
        manifest.set_meta(db, "format_version", 0)
    manifest.close()
    with pytest.raises(MemoryBankError, match="too old"):
        open_memory(tmp_path / "m", IDENTITY, write=True)

    def rename(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE sittings RENAME COLUMN key TO source_key")

    def stopped(db: sqlite3.Connection) -> None:
        rename(db)
        raise MemoryBankError("stopped half-way")

    steps = {0: rename, 1: lambda db: None}
    with pytest.raises(MemoryBankError, match="must be brought to"):
        open_memory(tmp_path / "m", IDENTITY, migrations=steps)
    with pytest.raises(MemoryBankError, match="half-way"):
        open_memory(tmp_path / "m", IDENTITY, write=True, migrations={**steps, 0: stopped})
    memory = open_memory(tmp_path / "m", IDENTITY, write=True, migrations=steps)
    assert memory.manifest.meta("format_version") == str(FORMAT_VERSION) and memory.manifest.last_sitting() is None
    memory.close()
    bank = stored_bank(tmp_path / "m", write=False)
    assert held(bank, range(4))
    bank.close()


# Faults


def test_damaged_and_missing_segments_are_reported_and_skipped(tmp_path: Path) -> None:
    for i in range(6):
        bank = stored_bank(tmp_path / "m")
        fill(bank, range(3 * i, 3 * i + 3))
        while bank.memory.manifest.segments() and any(not merged for _, merged in bank.memory.manifest.segments().values()):
            small = [n for n, (_, merged) in bank.memory.manifest.segments().items() if not merged]
            rewrite(bank.memory, small)
        bank.close()
    files = segments(tmp_path / "m")
    assert len(files) == 6
    content = bytearray(files[0].read_bytes())
    content[content.index(chunk(1).keys.contiguous().numpy().tobytes()) + 9] ^= 1
    files[0].write_bytes(content)
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-200])
    bank = stored_bank(tmp_path / "m")
    got = bank.get(range(18))
    assert all(same(one, chunk(one.chunk_id)) for one in got)
    lost = sorted(set(range(18)) - {one.chunk_id for one in got})
    assert {1, 3, 4, 5} <= set(lost) and set(lost) <= {1, 3, 4, 5, 6, 7, 8} and len(lost) > 4
    assert sorted(bank.damaged) == lost and bank.tier(1) is None and not set(lost) & set(bank.chunk_ids())
    assert bank.stats()["num_damaged"] == len(lost) and bank.stats()["gap_seconds"] > 0
    fill(bank, range(18, 20))
    assert held(bank, range(9, 20))
    bank.close()


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_in_the_manifest_are_never_believed(tmp_path: Path, seed: int) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(12))
    bank.close()
    path = tmp_path / "m" / MANIFEST
    content, rng = path.read_bytes(), np.random.default_rng(seed)
    said = 0
    for _ in range(60):
        broken = bytearray(content)
        for _ in range(3):
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        for leftover in (f"{MANIFEST}-wal", f"{MANIFEST}-shm"):
            (tmp_path / "m" / leftover).unlink(missing_ok=True)
        got, records, memory = [], [], None
        try:
            memory = open_memory(tmp_path / "m", IDENTITY)
            for i in range(12):
                record = StoredRecords(memory.manifest).get(i)
                records += [record] if record else []
                said += record is None
                got.append(memory.get(i))
        except KeyError:
            said += 1
        except MemoryBankError as error:
            assert "\n" not in str(error)
            said += 1
        if memory:
            memory.close()
        assert all(same(one, chunk(one.chunk_id)) for one in got), "what is read without an error is right"
        for record in records:
            right = record_of(chunk(record.chunk_id))
            assert replace(record, keep=0) == replace(right, keep=0) and np.array_equal(record.keep, right.keep)
    assert said, "some of the damage was in what is read"


def test_a_full_disk_is_said_the_stream_goes_on_and_it_recovers(tmp_path: Path) -> None:
    full = threading.Event()

    def fault(point: str) -> None:
        if full.is_set() and point in ("segment.half", "vectors.half"):
            raise OSError(errno.ENOSPC, "No space left on device")

    bank = stored_bank(tmp_path / "m", 0, 10 * MIB, lag_seconds=0.3, fault=fault)
    fill(bank, range(5))
    full.set()
    for i in range(5, 15):
        bank.put(chunk(i), record_of(chunk(i)))
    with pytest.raises(MemoryBankError, match="No space left"):
        bank.writer.flush()
    wait_until_within_lag(bank, num_unwritten=6)
    assert "No space left" in bank.stats()["writer"]["error"]
    assert held(bank, range(15)) and bank.chunk_ids() == list(range(15)), "the stream goes on in RAM"
    full.clear()
    for i in range(15, 18):
        bank.put(chunk(i), record_of(chunk(i)))
    wait_until_written(bank)
    assert bank.stats()["writer"]["error"] is None and held(bank, range(18))
    unwritten = bank.stats()["writer"]["num_unwritten"]
    bank.close()
    again = stored_bank(tmp_path / "m", write=False)
    there = again.chunk_ids()
    assert set(range(5)) < set(there) and 17 in there and len(there) == 18 - unwritten
    assert {gap.reason for gap in again.memory.manifest.gaps()} == {"not written"}
    assert all(same(one, chunk(one.chunk_id)) for one in again.get(there))
    again.close()


def test_a_file_system_that_takes_no_more_bytes(tmp_path: Path) -> None:
    """No hook: the kernel itself refuses to let files grow."""
    bank = stored_bank(tmp_path / "m", 0, 10 * MIB, lag_seconds=0.3)
    fill(bank, range(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        for i in range(5, 9):
            bank.put(chunk(i), record_of(chunk(i)))
        with pytest.raises(MemoryBankError, match="cannot be"):
            bank.writer.flush()
        assert held(bank, range(9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    bank.put(chunk(9), record_of(chunk(9)))
    wait_until_written(bank)
    assert held(bank, range(10))
    bank.close()
    again = stored_bank(tmp_path / "m")
    assert {0, 1, 2, 3, 4, 9} <= set(again.chunk_ids())
    assert all(same(one, chunk(one.chunk_id)) for one in again.get(again.chunk_ids()))
    again.close()


def pulling_the_plug(point: str) -> Callable[[str], None]:
    """A fault at one marked point."""

    def fault(reached: str) -> None:
        if reached == point:
            raise OSError(errno.EIO, "pulled the plug")

    return fault


def wait_until_written(bank: DurableBank) -> None:
    with bank.writer._changed:
        assert bank.writer._changed.wait_for(lambda: bank.writer.error is None, timeout=60)
    bank.writer.flush()


def wait_until_within_lag(bank: DurableBank, num_unwritten: int) -> None:
    """Until so many chunks at least are not waited for any more, and what waits is within the writer's lag."""
    writer = bank.writer

    def within() -> bool:
        return writer.num_unwritten >= num_unwritten and writer.stats()["lag_seconds"] <= writer.lag_seconds + 1e-9

    with writer._changed:
        assert writer._changed.wait_for(within, timeout=60)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    def fault(point: str) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    with pytest.raises(MemoryBankError, match="Read-only file system"):
        stored_bank(tmp_path / "m", fault=fault)
    with pytest.raises(MemoryBankError, match="choose another folder"):
        stored_bank(Path("/proc/nowhere/m"))
    fill(bank := stored_bank(tmp_path / "m"), range(3))
    bank.close()
    fault_bank = stored_bank(tmp_path / "m", 0, MIB, fault=fault)
    fault_bank.put(chunk(3), record_of(chunk(3)))
    with pytest.raises(MemoryBankError, match="Read-only file system"):
        fault_bank.writer.flush()
    assert held(fault_bank, range(4))
    fault_bank.close()
    again = stored_bank(tmp_path / "m")
    assert again.chunk_ids() == [0, 1, 2] and held(again, range(3))
    again.close()


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


THINNING = Thinning(Distinct())


def after(i: int, step: int) -> ChunkKV:
    """A random chunk as it is when it has been thinned so often."""
    one = chunk(i)
    for number in range(1, step + 1):
        one = THINNING.thin(one, number, chunk(i).num_tokens)
    return one


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


# Forgetting


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


def test_a_copy_of_the_folder_is_the_memory(tmp_path: Path) -> None:
    fill(bank := stored_bank(tmp_path / "m"), range(3))
    fill(bank, range(3, 6))
    bank.close()
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    bank = stored_bank(tmp_path / "copy", write=False)
    assert held(bank, range(6))
    bank.close()
    segments(tmp_path / "copy")[-1].unlink()
    bank = stored_bank(tmp_path / "copy", write=False)
    got = bank.get(range(6))
    assert 0 < len(got) < 6 and all(same(one, chunk(one.chunk_id)) for one in got)
    bank.close()


def test_summaries_say_what_a_chunk_is(tmp_path: Path) -> None:
    some = Summaries.of([chunk(0), chunk(1, num_tokens=0)])
    assert some.num_tokens.tolist() == [5, 0] and not some.mean_keys[1].any()
    assert np.allclose(some.mean_keys[0].reshape(2, 3, 4), chunk(0).keys.mean(2).numpy(), atol=1e-6)
    assert json.dumps(IDENTITY.settings) == json.dumps(Identity.from_json(IDENTITY.to_json()).settings)
    assert Gap(0.0, 1.0, "paused") == Gap(0.0, 1.0, "paused", 0.0)
