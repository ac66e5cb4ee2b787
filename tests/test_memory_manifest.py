"""What a manifest that is damaged, of an older format, or taken away does to the memory that goes on with it: nothing wrong,
and no end of the stream."""

from __future__ import annotations

import math
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from stored import fill, held, record_of, stored_bank, vectors_of
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory import DurableBank, open_memory
from memory.identity import FORMAT_VERSION
from memory.library import META, describe, verify
from memory.manifest import MANIFEST, Manifest
from memory.meta import SCHEMA_SUM
from memory.notes import Note, Notes
from memory.rebuild import rebuild
from memory.rewriting import rewrite
from memory.rows import CHUNK_COLUMNS, ChunkRow, Gap, Sitting
from memory.stored import ROW_BYTES
from memory.stored_records import NUM_CHECKED, StoredRecords
from memory.thinning import Distinct, Thinning
from memory.upkeep import drop_kv, forget_span
from vstream.remembered import join

SMALL = {"segment_bytes": 8_000, "disk_bytes": 120_000, "thinning": Thinning(Distinct()), "lag_seconds": 0.1}
"""So little room that what is written merges, thins out and drops what is old."""


PAGE_BYTES = 4096


def spoil(folder: Path, *statements: str) -> None:
    """Change what is in a manifest behind its back, as damage would."""
    db = sqlite3.connect(folder / MANIFEST)
    db.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        assert db.execute(statement).rowcount > 0, statement
    db.commit()
    db.close()


def made(folder: Path, num_chunks: int = 30, **options) -> Path:
    bank = stored_bank(folder, **options)
    for i in range(num_chunks):
        bank.put(chunk(i), record_of(chunk(i)))
    bank.close()
    return folder


def written_on(folder: Path) -> DurableBank:
    """Opened again and fed until all that is old has moved; the writer is alive and what is new is there."""
    bank = stored_bank(folder, **SMALL)
    for i in range(40, 70):
        bank.put(chunk(i), record_of(chunk(i)))
    bank.writer.flush()
    assert held(bank, range(66, 70)) and bank.stats()["writer"]["error"] is None
    return bank


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chunks SET end_seconds = end_seconds + 4 WHERE chunk_id IN (2, 11, 29)",
        "UPDATE chunks SET chunk_id = chunk_id + 1024 WHERE chunk_id = 12",
        "UPDATE segments SET segment = segment + 4096 WHERE segment = (SELECT min(segment) FROM segments)",
        "UPDATE segments SET merged = 'x' WHERE segment = (SELECT max(segment) FROM segments)",
        "UPDATE segments SET merged = 800 WHERE segment = (SELECT max(segment) FROM segments)",
    ],
)
def test_a_damaged_entry_never_ends_the_stream_that_goes_on(tmp_path: Path, damage: str) -> None:
    folder = made(tmp_path / "m", **SMALL)
    spoil(folder, damage)
    bank = written_on(folder)
    bank.forget(0.5, 1.5)
    bank.close()
    assert verify(folder).num_good > 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_end_no_stream_with_anything_but_a_line(tmp_path: Path, seed: int) -> None:
    base, rng = made(tmp_path / "base", **SMALL), np.random.default_rng(seed)
    memory = open_memory(base, write=True)
    memory.begin_sitting(Sitting(0.0, 0.0, "source", "key", 1.0), [Gap(5.0, 6.0, "paused", 3.0)])
    memory.close()
    for _ in range(30):
        folder = tmp_path / "m"
        shutil.copytree(base, folder)
        content = bytearray((folder / MANIFEST).read_bytes())
        for at in rng.choice(np.flatnonzero(np.frombuffer(content, np.uint8)), 2):
            content[at] ^= 1 << int(rng.integers(8))
        (folder / MANIFEST).write_bytes(content)
        check_that_it_ends_in_a_line(folder)
        rebuild(folder)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("column", CHUNK_COLUMNS[1:])
def test_a_column_of_another_type_ends_no_stream(tmp_path: Path, column: str) -> None:
    """A flipped bit may make anything of a number, whatever the column is for."""
    base = made(tmp_path / "base", **SMALL)
    for value in ("'late'", "x'ff'", "NULL", "1e300", str(-(2**62))):
        folder = tmp_path / "m"
        shutil.copytree(base, folder)
        spoil(folder, f"UPDATE chunks SET {column} = {value} WHERE chunk_id IN (3, 20, 33)")
        check_that_it_ends_in_a_line(folder)
        rebuild(folder)
        assert verify(folder).whole
        shutil.rmtree(folder)


def check_that_it_ends_in_a_line(folder: Path) -> None:
    """Using a damaged memory goes well, or is told in one line; no thread dies of it."""
    died: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, died.append
    try:
        used(folder)
    except MemoryBankError as error:
        assert "\n" not in str(error)
    finally:
        threading.excepthook = before
    assert not died


def used(folder: Path) -> None:
    """All that a stream does with a memory: it goes on, reads, writes, ages, forgets, and is looked at."""
    bank = stored_bank(folder, **SMALL)
    try:
        join(bank.memory, 0.1, "source", "key", "", 3.0)
        bank.get(bank.chunk_ids())
        for i in range(40, 52):
            bank.put(chunk(i), record_of(chunk(i)))
        bank.writer.flush()
        bank.forget(2.0, 2.2)
        bank.stats()
        bank.memory.manifest.moments()
    finally:
        bank.close()
    verify(folder)
    describe(folder)


def test_a_segment_with_a_number_to_come_is_damage(tmp_path: Path) -> None:
    """And not a fault of the process that finds it."""
    folder = made(tmp_path / "m", 6)
    bank = stored_bank(folder, **SMALL)  # which would leave out what has no file
    spoil(folder, "UPDATE segments SET segment = 1000000 WHERE segment = (SELECT min(segment) FROM segments)")
    with pytest.raises(MemoryBankError, match=r"a segment has a number to come.*memory rebuild"):
        bank.check_integrity()
    with pytest.raises(MemoryBankError, match="a number to come"):
        bank.close()
    rebuild(folder)
    stored_bank(folder, **SMALL).close()


def test_rows_out_of_order_are_told_before_anything_is_forgotten(tmp_path: Path) -> None:
    """And not taken for the ends of a span: what lies between them would go, or nothing be found there."""
    folder = made(tmp_path / "m", **SMALL)
    memory = open_memory(folder, write=True)
    kept = memory.manifest.ids_of_all()
    found = memory.manifest.ids_of_all
    memory.manifest.ids_of_all = lambda where="", values=(): (
        found(where, values)[::-1] if "<" in where else found(where, values)
    )
    with pytest.raises(MemoryBankError, match=r"out of order.*memory rebuild"):
        forget_span(memory, 0.5, 2.2)
    assert found() == kept
    memory.close()


def test_a_memory_of_which_no_bank_can_be_made_is_let_go_of(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 6)
    db = sqlite3.connect(folder / MANIFEST)
    ((page,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'gaps'").fetchall()
    db.close()
    with (folder / MANIFEST).open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(bytes([255]) * PAGE_BYTES)
    threads = threading.active_count()
    memory = open_memory(folder, write=True)
    with pytest.raises(MemoryBankError, match="rebuild"):
        DurableBank(memory, "cpu", 0, 0)
    memory.close()
    assert threading.active_count() == threads
    rebuild(folder)
    assert verify(folder).whole


def test_tables_that_are_not_as_declared_are_damage(tmp_path: Path) -> None:
    """SQLite goes on with any declaration that it can read, such as one of another type."""
    folder = made(tmp_path / "m", 6)
    memory = open_memory(folder, write=True)
    Notes(memory.manifest).put([Note("watch", 0, "made with the first note")], 9)
    memory.close()
    open_memory(folder).close()
    declared = "UPDATE sqlite_master SET sql = replace(sql, 'chunk_id INTEGER', 'chunk_id INUEGER') WHERE name = 'chunks'"
    spoil(folder, declared)
    for write in (False, True):
        with pytest.raises(MemoryBankError, match="its tables are not as declared"):
            open_memory(folder, write=write)
    assert rebuild(folder).num_chunks == 6 and verify(folder).whole


def test_a_size_that_is_wrong_in_the_manifest_costs_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 6)
    spoil(folder, "UPDATE segments SET num_bytes = num_bytes + (1 << 40) WHERE segment = 0")
    bank = stored_bank(folder, disk_bytes=10_000_000)
    fill(bank, range(6, 9))
    assert held(bank, range(9)) and any("not as long as they were" in notice for notice in bank.memory.notices)
    bank.close()
    memory = open_memory(folder, write=True)
    assert memory.notices == [] and memory.num_bytes < 10_000_000
    memory.close()


def test_the_newest_row_that_is_right_is_where_it_goes_on(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 12)
    spoil(folder, "UPDATE chunks SET last_pts_seconds = 1e300 WHERE chunk_id = 11")
    bank = stored_bank(folder)
    newest = [row for row in bank.memory.manifest.newest(math.inf, 0.25) if isinstance(row, ChunkRow)]
    assert [row.chunk_id for row in newest] == [10, 9, 8]
    # What is watched again from there takes the damaged one's place; what is right cannot be replaced.
    bank.put(chunk(11), record_of(chunk(11)))
    for i in (10, 11):
        with pytest.raises(MemoryBankError, match="already in the memory"):
            bank.put(chunk(i), record_of(chunk(i)))
    bank.writer.flush()
    assert held(bank, range(12))
    bank.close()
    assert verify(folder).whole


def test_a_gap_or_a_sitting_that_is_damaged_is_left_out_and_told(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 4)
    memory = open_memory(folder, write=True)
    memory.begin_sitting(Sitting(0.0, 0.0, "one", "one", 1.0), [])
    memory.begin_sitting(Sitting(9.0, 9.0, "two", "two", 2.0), [Gap(0.4, 9, "paused", 3)])
    memory.begin_sitting(Sitting(20.0, 9.0, "two", "two", 3.0), [Gap(15.0, 16.0, "not written"), Gap(-0.0, 1, "forgotten")])
    memory.close()
    assert verify(folder).whole
    spoil(folder, "UPDATE sittings SET offset_seconds = 8.0 WHERE start_seconds = 20")
    spoil(folder, "UPDATE gaps SET start_seconds = 'x' WHERE reason = 'not written'")
    verdict = verify(folder)
    assert not verdict.whole and "2 entries about gaps" in verdict.problems[0]
    memory = open_memory(folder)
    assert memory.manifest.gaps() == [Gap(0.0, 1.0, "forgotten"), Gap(0.4, 9.0, "paused", 3.0)]
    assert [sitting.start_seconds for sitting in memory.manifest.sittings()] == [0.0, 9.0]
    assert memory.manifest.last_sitting() is None, "where the newest is damaged, an older one tells nothing about now"
    memory.close()
    found = rebuild(folder)
    assert any("2 entries about gaps" in words for words in found.lost) and verify(folder).whole


def test_spans_that_touch_are_one_gap_and_pauses_are_not(tmp_path: Path) -> None:
    memory = open_memory(made(tmp_path / "m", 2), write=True)
    sitting = Sitting(0.0, 0.0, "one", "one", 1.0)
    spans = [(0, 1), (2, 3), (1, 2), (7, 8), (2.5, 4)]
    memory.begin_sitting(sitting, [Gap(start, end, "dropped") for start, end in spans] + [Gap(4, 5, "not written")])
    memory.begin_sitting(sitting, [Gap(10, 11, "paused", 5), Gap(11, 12, "paused", 6)])
    assert memory.manifest.gaps() == [
        Gap(0.0, 4.0, "dropped"),
        Gap(4.0, 5.0, "not written"),
        Gap(7.0, 8.0, "dropped"),
        Gap(10.0, 11.0, "paused", 5.0),
        Gap(11.0, 12.0, "paused", 6.0),
    ]
    memory.close()


def test_a_long_past_that_was_dropped_is_one_gap(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", segment_bytes=4_000, disk_bytes=90_000, lag_seconds=0.1)
    for i in range(120):
        bank.put(chunk(i), record_of(chunk(i)))
    bank.writer.flush()
    dropped = [gap for gap in bank.memory.manifest.gaps() if gap.reason == "dropped"]
    assert len(dropped) == 1 and dropped[0].start_seconds == 0.0 and dropped[0].end_seconds > 2
    bank.close()


@pytest.mark.parametrize("disk_bytes", [1, 70_000, 75_000, 90_000])
def test_a_quota_that_is_smaller_than_what_waits_is_kept_too(tmp_path: Path, disk_bytes: int) -> None:
    gate, folder = threading.Event(), tmp_path / "m"
    stored_bank(folder).close()
    empty = bytes_on_disk(folder)
    bank = stored_bank(folder, disk_bytes=disk_bytes, lag_seconds=100, fault=lambda point: gate.wait(30) and None)
    for i in range(40):
        bank.put(chunk(i), record_of(chunk(i)))
    gate.set()
    bank.writer.flush()
    left = bank.chunk_ids()
    assert left == list(range(40))[40 - len(left) :] and (left or disk_bytes < 90_000), "the newest are there"
    assert all(same(one, chunk(one.chunk_id)) for one in bank.get(left))
    dropped = [gap for gap in bank.memory.manifest.gaps() if gap.reason == "dropped"]
    assert [(gap.start_seconds, gap.end_seconds) for gap in dropped] == [(0.0, chunk(39 - len(left)).end_seconds)]
    bank.close()
    # The manifest grows by pages, and keeps the rows of one commit until the next one.
    assert bytes_on_disk(folder) <= max(disk_bytes + 2 * PAGE_BYTES, empty + 40 * ROW_BYTES) and verify(folder).whole


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def of_version_1(folder: Path) -> Path:
    """A memory as the first format had it: gaps and sittings without checksums."""
    memory = open_memory(made(folder, 4), write=True)
    memory.begin_sitting(Sitting(0.0, 0.0, "one", "one", 1.0), [Gap(1.0, 2.0, "dropped"), Gap(3.0, 4.0, "paused", 5.0)])
    with memory.manifest.changing() as db:
        for table in ("gaps", "sittings"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN crc32")
        memory.manifest.set_meta(db, "format_version", 1)
        db.execute("DELETE FROM meta WHERE name = ?", (SCHEMA_SUM,))
    memory.close()
    return folder


@pytest.mark.parametrize("way", ["write", "verify", "rebuild"])
def test_a_memory_of_the_first_format_is_read_and_brought_up(tmp_path: Path, way: str) -> None:
    folder = of_version_1(tmp_path / "m")
    gaps, sittings = [Gap(1.0, 2.0, "dropped"), Gap(3.0, 4.0, "paused", 5.0)], [Sitting(0.0, 0.0, "one", "one", 1.0)]
    bank = stored_bank(folder, write=False)
    assert bank.memory.manifest.number("format_version") == 1 and held(bank, range(4))
    assert (bank.memory.manifest.gaps(), bank.memory.manifest.sittings()) == (gaps, sittings)
    bank.close()
    if way == "write":
        stored_bank(folder).close()
    elif way == "verify":
        assert verify(folder).whole
    else:
        assert rebuild(folder).lost == []
    bank = stored_bank(folder)
    assert bank.memory.manifest.number("format_version") == FORMAT_VERSION and held(bank, range(4))
    assert (bank.memory.manifest.gaps(), bank.memory.manifest.sittings()) == (gaps, sittings)
    fill(bank, range(4, 6))
    bank.close()
    assert verify(folder).whole


def test_a_manifest_that_is_taken_away_is_not_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    bank = stored_bank(folder, 0, 10**6)
    fill(bank, range(5))
    (folder / MANIFEST).unlink()
    for i in range(5, 9):
        bank.put(chunk(i), record_of(chunk(i)))
    with pytest.raises(MemoryBankError, match=f"was taken away while it was open.*memory rebuild {folder}"):
        bank.writer.flush()
    assert held(bank, range(9)), "the stream goes on in RAM"
    bank.close()
    assert rebuild(folder).num_chunks >= 5 and verify(folder).whole


def test_a_memory_in_the_place_of_one_that_was_removed_is_left_alone(tmp_path: Path) -> None:
    bank = stored_bank(tmp_path / "m", 0, 10**6)
    fill(bank, range(3))
    shutil.rmtree(tmp_path / "m")
    other = stored_bank(tmp_path / "m")
    fill(other, range(100, 110))
    for i in range(3, 6):
        bank.put(chunk(i), record_of(chunk(i)))
    with pytest.raises(MemoryBankError, match="was taken away while it was open"):
        bank.writer.flush()
    bank.close()
    other.close()
    found = verify(tmp_path / "m")
    assert found.whole and found.num_good == 10, found
    again = stored_bank(tmp_path / "m")
    assert again.memory.notices == [] and held(again, range(100, 110))
    again.close()


@pytest.mark.parametrize("name", META)
def test_what_only_a_writer_needs_is_verified_too(tmp_path: Path, name: str) -> None:
    memory = open_memory(made(tmp_path / "m", 3), write=True)
    Notes(memory.manifest).put([Note("watch", i, f"it rains {i}") for i in range(2)], most=9)
    memory.close()
    assert verify(tmp_path / "m").whole
    db = sqlite3.connect(tmp_path / "m" / MANIFEST)
    db.execute("UPDATE meta SET crc32 = crc32 + 1 WHERE name = ?", (name,))
    db.commit()
    if name in ("format_version", "identity", "vectors", "num_vectors"):
        with pytest.raises(MemoryBankError, match=f"has no right {name}"):
            verify(tmp_path / "m")
    else:
        assert [words for words in verify(tmp_path / "m").problems if f"has no right {name}" in words]
    db.execute("UPDATE meta SET crc32 = crc32 - 1 WHERE name = ?", (name,))
    db.execute("UPDATE notes SET content = 'it snows' WHERE number = 1")
    db.commit()
    db.close()
    assert [words for words in verify(tmp_path / "m").problems if words.startswith("1 notes")]
    found = rebuild(tmp_path / "m")
    assert [words for words in found.lost if words.startswith("1 notes")] and verify(tmp_path / "m").whole
    manifest = Manifest(tmp_path / "m", write=False)
    assert [note.content for note in Notes(manifest).of("watch")] == ["it rains 0"], "a rebuilding keeps what is watched for"
    manifest.close()


def test_who_writes_meanwhile_makes_nothing_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two looks of a reader, a writer may merge, forget, or let KV go."""
    bank = stored_bank(tmp_path / "m")
    for i in range(9):
        fill(bank, range(i, i + 1))
    check = Manifest.check

    def busy(manifest: Manifest) -> list[str]:
        rewrite(bank.memory, bank.memory.manifest.segments_by_age()[3:])
        return check(manifest)

    row, turn = Manifest.row, iter(range(99))

    def busier(manifest: Manifest, chunk_id: int) -> ChunkRow | None:
        found = row(manifest, chunk_id)
        if manifest is not bank.memory.manifest and next(turn) == 1:
            drop_kv(bank.memory, bank.memory.manifest.segments_by_age()[0])
            bank.forget(0.05, 0.15)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "check", busy)
        patched.setattr(Manifest, "row", busier)
        found = verify(tmp_path / "m")
    assert found.whole, found
    bank.close()


@pytest.mark.parametrize("is_open", [True, False])
def test_index_vectors_that_are_taken_away_are_made_anew(tmp_path: Path, is_open: bool) -> None:
    folder = tmp_path / "m"
    bank = stored_bank(folder)
    fill(bank, range(5))
    if not is_open:
        bank.close()
    (folder / "vectors-0000.f32").unlink()
    if not is_open:
        bank = stored_bank(folder)
    fill(bank, range(5, 8))
    rewrite(bank.memory, bank.memory.manifest.segments_by_age())
    bank.close()
    bank = stored_bank(folder, write=False)
    assert held(bank, range(8)) and sorted(vectors_of(bank.memory)) == list(range(8))
    assert (folder / "vectors-0000.f32").stat().st_mode & 0o777 == 0o600
    bank.close()


def test_records_that_never_reach_the_disk_do_not_hold_up_the_others(tmp_path: Path) -> None:
    manifest = Manifest(made(tmp_path / "m", 200), write=False)
    records = StoredRecords(manifest)
    lost = range(1000, 1000 + 3 * NUM_CHECKED)
    for i in [*lost, *range(200)]:
        records.add(record_of(chunk(i)))
    assert len(records._fresh) < 2 * len(lost), "only what is not in the manifest stays in RAM"
    assert all(same_id(records, i) for i in [*lost, *range(200)])
    records.remove(lost)
    for i in range(10):
        records.add(record_of(chunk(i)))
    assert len(records._fresh) <= 10
    manifest.close()


def same_id(records: StoredRecords, chunk_id: int) -> bool:
    found = records.get(chunk_id)
    return found is not None and found.chunk_id == chunk_id
