"""Real file systems, full or read-only: nothing is lost, nothing wrong is answered, and it goes on when room returns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored import IDENTITY, THINNING, after, fill, record_of, segments, stored_bank, wait_until_written
from test_memory_stores import chunk, same
from test_remembered import QUESTION, WORLD, run

from data.errors import MemoryBankError
from memory import DurableBank, open_memory
from memory.identity import FORMAT_VERSION
from memory.library import verify
from memory.manifest import Manifest
from memory.rebuild import rebuild
from memory.rewriting import rewrite

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def take_all(disk: Path) -> Path:
    """Fill what is left of a disk. Returns the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def stored(folder: Path, num_chunks: int = 40, **options) -> DurableBank:
    bank = stored_bank(folder, 0, 10 * MIB, lag_seconds=0.5, **options)
    fill(bank, range(num_chunks))
    return bank


def check(bank: DurableBank) -> list[int]:
    """What is there is right, thinned or whole. Returns its ids."""
    ids, steps = bank.chunk_ids(), bank.steps()
    got = bank.get(ids)
    assert [one.chunk_id for one in got] == ids and bank.damaged == []
    assert all(same(one, chunk(one.chunk_id)) or same(one, after(one.chunk_id, steps.get(one.chunk_id, 0))) for one in got)
    return ids


@pytest.mark.parametrize("disk_bytes", [2**62, 200_000], ids=["committing", "thinning"])
def test_a_stream_goes_on_in_ram_and_is_written_again(disk: Path, disk_bytes: int) -> None:
    bank = stored(disk / "m", disk_bytes=disk_bytes, segment_bytes=10_000, thinning=THINNING)
    before, ballast = check(bank), take_all(disk)
    for i in range(40, 90):
        bank.put(chunk(i), record_of(chunk(i)))
    with pytest.raises(MemoryBankError, match="free some space"):
        bank.writer.flush()
    assert "\n" not in bank.writer.error
    assert set(range(40, 90)) <= set(check(bank)), "all of it is in RAM"
    reader = stored_bank(disk / "m", write=False)
    assert set(check(reader)) <= {*before, *range(40, 90)}
    reader.close()
    ballast.unlink()
    for i in range(90, 100):
        bank.put(chunk(i), record_of(chunk(i)))
    wait_until_written(bank)
    bank.close()
    assert verify(disk / "m").whole
    again = stored_bank(disk / "m", write=False)
    there = check(again)
    reasons = {gap.reason for gap in again.memory.manifest.gaps()}
    assert {*range(95, 100)} <= set(there) and "not written" in reasons
    # On a disk without a quota only what could not be written is missing, and that is said.
    assert disk_bytes < MIB or (set(before) <= set(there) and reasons == {"not written"})
    again.close()


def test_forgetting_and_merging_happen_whole_or_not_at_all(disk: Path) -> None:
    bank = stored(disk / "m", segment_bytes=20_000)
    ids = bank.chunk_ids()
    mark = chunk(13).values.contiguous().numpy().tobytes()
    ballast = take_all(disk)
    with pytest.raises(MemoryBankError, match="free some space"):
        bank.forget(1.25, 1.35)
    with pytest.raises(OSError, match="No space left"):
        rewrite(bank.memory, bank.memory.manifest.segments_by_age())
    assert check(bank) == ids
    bank.close()
    again = stored_bank(disk / "m", write=False)
    assert check(again) == ids and any(mark in path.read_bytes() for path in segments(disk / "m"))
    again.close()
    ballast.unlink()
    bank = stored_bank(disk / "m", segment_bytes=20_000)
    assert bank.forget(1.25, 1.35) == [12, 13]
    rewrite(bank.memory, bank.memory.manifest.segments_by_age())
    assert check(bank) == [i for i in ids if i not in (12, 13)]
    bank.close()
    assert not any(mark in path.read_bytes() for path in (disk / "m").iterdir()) and verify(disk / "m").whole


def test_a_migration_and_a_rebuilding_happen_whole_or_not_at_all(disk: Path) -> None:
    stored(disk / "m").close()
    manifest = Manifest(disk / "m", write=True)
    with manifest.changing() as db:
        manifest.set_meta(db, "format_version", FORMAT_VERSION - 1)
    manifest.close()

    def grow(db) -> None:
        db.execute("CREATE TABLE later (content BLOB)")
        db.execute("INSERT INTO later VALUES (zeroblob(200000))")

    ballast = take_all(disk)
    with pytest.raises(MemoryBankError, match="free some space"):
        open_memory(disk / "m", IDENTITY, write=True, migrations={FORMAT_VERSION - 1: grow})
    ballast.unlink()
    memory = open_memory(disk / "m", IDENTITY, write=True, migrations={FORMAT_VERSION - 1: grow})
    assert memory.manifest.number("format_version") == FORMAT_VERSION and memory.notices == []
    memory.close()
    ballast = take_all(disk)
    with pytest.raises(MemoryBankError, match="free some space"):
        rebuild(disk / "m")
    ballast.unlink()
    assert verify(disk / "m").whole
    found = rebuild(disk / "m")
    assert (found.num_chunks, found.num_bare, found.lost) == (40, 0, [])
    bank = stored_bank(disk / "m", write=False)
    assert check(bank) == list(range(40))
    bank.close()


def test_the_commands_on_a_full_disk(disk: Path, random_folder, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--model", random_folder, "--max-new-tokens", 4, "--json")
    code, out, _ = run(capsys, "ask", WORLD, QUESTION, *shared)
    expected = json.loads(out)["answer"]
    made = stored(disk / "other")
    made.close()
    ballast = take_all(disk)
    # No room for a new memory is told before anything is watched; in one that is there the stream goes on in RAM.
    code, out, err = run(capsys, "ask", WORLD, QUESTION, "--memory", disk / "m", *shared)
    assert code == 2 and not out and err.strip().count("\n") == 0 and "free some space" in err
    code, out, err = run(capsys, "memory", "forget", disk / "other", 0, 1)
    assert code == 2 and not out and err.count("\n") == 1 and "free some space" in err
    for args in (("ls", disk), ("info", disk / "other"), ("verify", disk / "other")):
        assert run(capsys, "memory", *args)[0] == 0
    code, out, err = run(capsys, "memory", "export", disk / "other", disk / "copy")
    assert code == 2 and err.count("\n") == 1
    ballast.unlink()
    code, out, _ = run(capsys, "ask", WORLD, QUESTION, "--memory", disk / "m", *shared)
    assert code == 0 and json.loads(out)["answer"] == expected, "what was begun is no hindrance"
    assert run(capsys, "memory", "export", disk / "other", disk / "copy")[0] == 0
    assert verify(disk / "copy").whole
    ballast = take_all(disk)
    assert run(capsys, "memory", "delete", disk / "other")[0] == 0, "deleting needs no room"
    assert not (disk / "other").exists()


@pytest.mark.slow
def test_the_commands_on_a_read_only_disk(disk: Path, random_folder, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--model", random_folder, "--max-new-tokens", 4)
    assert run(capsys, "ask", WORLD, QUESTION, "--memory", disk / "m", *shared)[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for args in (("ls", disk), ("info", disk / "m"), ("verify", disk / "m")):
        assert run(capsys, "memory", *args)[0] == 0
    assert run(capsys, "ask", f"memory:{disk / 'm'}", QUESTION, *shared)[0] == 0, "what is there can be asked about"
    assert run(capsys, "memory", "export", disk / "m", disk.parent / "copy")[0] == 0
    assert verify(disk.parent / "copy").num_good == 12
    out = disk.parent / "said.vtt"
    for args in (
        ("ask", WORLD, QUESTION, "--memory", disk / "m", *shared),
        ("ask", WORLD, QUESTION, "--memory", disk / "new", *shared),
        ("watch", WORLD, "--when", "a red circle appears", "--memory", disk / "m", *shared),
        ("comment", WORLD, "--out", out, "--memory", disk / "m", *shared),
        ("memory", "forget", disk / "m", 0, 1),
        ("memory", "pin", disk / "m"),
        ("memory", "rebuild", disk / "m"),
        ("memory", "delete", disk / "m"),
        ("memory", "export", disk / "m", disk / "copy"),
    ):
        code, printed, err = run(capsys, *args)
        lines = [line for line in err.splitlines() if "reads no background" not in line]
        assert code == 2 and not printed and len(lines) == 1, (args, code, printed, err)
        assert "Read-only" in err or "not writable" in err, err
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert verify(disk / "m").whole
