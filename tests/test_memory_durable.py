"""A memory on disk: what comes back after closing, and who may open it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import (
    IDENTITY,
    MODEL,
    fill,
    held,
    record_of,
    segments,
    stored_bank,
    vectors_of,
)
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory import open_memory
from memory.identity import FORMAT_VERSION, Identity
from memory.manifest import MANIFEST, Manifest
from memory.rows import Gap
from memory.segment_file import segment_path
from memory.stored_records import StoredRecords
from memory.upkeep import MERGE_SEGMENTS, merge
from memory.vectors import Summaries, mean_key


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
        manifest.sum_schema(db)
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
