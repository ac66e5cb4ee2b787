"""What faults do to a memory on disk: damage, a full disk, a folder that cannot be written."""

from __future__ import annotations

import errno
import resource
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import (
    IDENTITY,
    fill,
    held,
    record_of,
    segments,
    stored_bank,
    wait_until_within_lag,
    wait_until_written,
)
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory import open_memory
from memory.manifest import MANIFEST
from memory.rewriting import rewrite
from memory.stored_records import StoredRecords

MIB = 2**20


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
