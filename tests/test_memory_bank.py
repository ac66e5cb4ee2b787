"""The bank against its plain twin on random operations, its rules one by one, and its behaviour under faults."""

from __future__ import annotations

import logging
import random
import threading
from pathlib import Path

import pytest
import torch
from conftest import check_banks
from test_memory_stores import DTYPES, chunk, same

from data.errors import ConfigError, MemoryBankError
from memory import Bank, MemoryBank, PlainBank
from memory.base import add_span

SIZE = chunk(0).num_bytes
RAM = SIZE + 192
"""What one chunk takes up in RAM at most."""
DISK = SIZE + 1024


@pytest.mark.parametrize("seed", range(16))
def test_random_operations_against_the_plain_twin(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    budgets = [rng.choice([0, rng.randint(1, 6) * one]) for one in (SIZE, RAM)]
    disk = rng.choice([0, rng.randint(2, 12) * DISK]) if any(budgets) else 9 * DISK
    bank = MemoryBank("cpu", *budgets, disk, tmp_path / "m", slab_bytes=rng.choice([500, 5000]), segment_bytes=3 * DISK)
    plain = PlainBank()
    dtype, gone, holds = rng.choice(DTYPES), set(), []
    for step in range(80):
        roll = rng.random()
        ids = [rng.randrange(step + 1) for _ in range(rng.randint(0, 5))]
        if roll < 0.6:
            one = chunk(step, rng.choice([1, 5, 5, 9]), dtype, seed)
            plain.put(one)
            gone.update(bank.put(one))
        elif roll < 0.9:
            got = bank.get(ids)
            expected = plain.get([i for i in ids if i not in gone])
            assert len(got) == len(expected) and all(map(same, got, expected))
        elif holds and roll < 0.95:
            holds.pop()[0].__exit__(None, None, None)
        else:
            hold = bank.pinned(ids)
            hold.__enter__()
            holds.append((hold, {i: bank.tier(i) for i in ids if bank.tier(i)}))
        bank.check_integrity()
        assert all(bank.tier(i) == tier for _, tiers in holds for i, tier in tiers.items()), "a pinned chunk was moved"
        assert bank.chunk_ids() == [i for i in plain.chunk_ids() if i not in gone]
        assert all(bank.span(i) == plain.span(i) for i in bank.chunk_ids())
        lost: list[tuple[float, float]] = []
        for i in gone:
            lost = add_span(lost, plain.span(i))
        assert bank.gaps == lost
    while holds:
        holds.pop()[0].__exit__(None, None, None)
    bank.check_integrity()
    assert not bank.damaged and bank.stats()["num_pinned"] == 0
    bank.close()
    bank.close()
    assert not (tmp_path / "m").exists()


def test_chunks_go_down_by_use_and_come_up_when_read(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 2 * SIZE, 2 * RAM, 20 * DISK, tmp_path)
    for i in range(6):
        assert bank.put(chunk(i)) == []
    assert [bank.tier(i) for i in range(6)] == ["disk", "disk", "ram", "ram", "gpu", "gpu"]
    assert same(bank.get([0])[0], chunk(0))
    assert [bank.tier(i) for i in range(6)] == ["gpu", "disk", "disk", "ram", "ram", "gpu"]
    bank.check_integrity()
    bank.get([5])
    bank.put(chunk(6))
    assert bank.tier(0) == "ram" and bank.tier(5) == "gpu", "the least recently used went down"
    assert bank.num_bytes("gpu") == 2 * SIZE and bank.num_bytes("disk") > 0
    assert not bank.gaps
    bank.check_integrity()
    bank.close()


def test_the_oldest_goes_first_and_leaves_one_gap() -> None:
    bank = MemoryBank("cpu", 0, 3 * RAM)
    dropped = [i for n in range(8) for i in bank.put(chunk(n))]
    assert dropped == [0, 1, 2, 3, 4] and bank.chunk_ids() == [5, 6, 7]
    assert bank.gaps == [(0.0, chunk(4).end_seconds)]
    assert bank.put(chunk(4)) == [4], "a chunk older than all the others is itself the one to go"
    assert bank.stats()["num_dropped"] == 6
    assert bank.tier(0) is None and bank.get([0, 7, 0])[0].chunk_id == 7
    bank.check_integrity()
    bank.close()


def test_pinned_chunks_stay_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bank = MemoryBank("cpu", 2 * SIZE, 0)
    bank.put(chunk(0))
    bank.put(chunk(1))
    with caplog.at_level(logging.WARNING), bank.pinned([0, 1, 99]), bank.pinned([1]):
        assert bank.put(chunk(2)) == [2] and bank.put(chunk(3)) == [3]
        assert [one.chunk_id for one in bank.get([1, 0])] == [1, 0]
        bank.check_integrity()
    assert len(caplog.records) == 1, "said once, not for every chunk"
    assert bank.put(chunk(4)) == [0] and bank.chunk_ids() == [1, 4]
    assert bank.gaps == [(0.0, chunk(0).end_seconds), (chunk(2).start_seconds, chunk(3).end_seconds)]
    bank.check_integrity()


def test_one_request_does_not_push_out_its_own_chunks(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 2 * SIZE, 0, 20 * DISK, tmp_path)
    for i in range(8):
        bank.put(chunk(i))
    got = bank.get([0, 1, 2, 3])
    assert [one.chunk_id for one in got] == [0, 1, 2, 3]
    assert [bank.tier(i) for i in range(4)] == ["gpu", "gpu", "disk", "disk"]
    bank.check_integrity()
    bank.close()


def test_chunks_that_fit_nowhere_and_settings_that_make_no_sense(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", SIZE // 2, 10)
    assert bank.put(chunk(0)) == [0] and bank.gaps == [bank_span(0)]
    bank.check_integrity()
    bigger_below = MemoryBank("cpu", SIZE // 2, 2 * RAM)
    bigger_below.put(chunk(0))
    assert bigger_below.tier(0) == "ram"
    with pytest.raises(ConfigError, match="disk_bytes"):
        MemoryBank("cpu", 0, 0, 100, None)
    with pytest.raises(ConfigError, match="-1"):
        MemoryBank("cpu", -1, 10)
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MemoryBankError, match="cannot be used"):
            MemoryBank("cpu", 0, 0, 10**6, folder)


@pytest.mark.parametrize("bank", [MemoryBank("cpu", 10**6, 0), PlainBank()])
def test_twins_refuse_the_same_things(bank: Bank) -> None:
    bank.put(chunk(0))
    with pytest.raises(MemoryBankError, match="already"):
        bank.put(chunk(0))
    with pytest.raises(KeyError):
        bank.span(7)
    assert bank.tier(7) is None and bank.num_bytes("disk") == 0 and bank.stats()["num_chunks"] == 1
    bank.check_integrity()
    bank.close()
    with pytest.raises(MemoryBankError, match="closed"):
        bank.put(chunk(1))
    with pytest.raises(MemoryBankError, match="closed"):
        bank.get([0])


def test_damage_is_reported_skipped_and_forgotten(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 0, 0, 40 * DISK, tmp_path, segment_bytes=3 * DISK)
    for i in range(9):
        bank.put(chunk(i))
    files = sorted(next(tmp_path.iterdir()).iterdir())
    broken = bytearray(files[0].read_bytes())
    at = bytes(broken).index(chunk(1).keys.contiguous().numpy().tobytes())
    broken[at + 7] ^= 0x10
    files[0].write_bytes(broken)
    files[1].unlink()
    got = bank.get(range(9))
    assert [one.chunk_id for one in got] == [0, 2, 6, 7, 8] and all(same(one, chunk(one.chunk_id)) for one in got)
    assert bank.damaged == [1, 3, 4, 5] and bank.chunk_ids() == [0, 2, 6, 7, 8]
    assert bank.gaps == [bank_span(1), (chunk(3).start_seconds, chunk(5).end_seconds)]
    assert bank.stats()["num_damaged"] == 4
    bank.check_integrity()
    with bank.pinned([0, 6]):
        assert len(bank.get([0, 1, 6])) == 2
    bank.check_integrity()
    bank.close()
    assert list(tmp_path.iterdir()) == [], "its private folder is gone, the given one is not"


def test_a_disk_that_fails_leaves_the_bank_whole(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 2 * SIZE, 0, 100 * DISK, tmp_path, segment_bytes=2 * DISK)
    for i in range(4):
        bank.put(chunk(i))
    spill = next(tmp_path.iterdir())
    spill.rename(tmp_path / "away")
    with pytest.raises(MemoryBankError, match="cannot be written"):
        for i in range(4, 9):
            bank.put(chunk(i))
    bank.check_integrity()
    (tmp_path / "away").rename(spill)
    held = bank.chunk_ids()
    assert held[:4] == [0, 1, 2, 3] and all(same(one, chunk(one.chunk_id)) for one in bank.get(held))
    bank.put(chunk(20))
    bank.check_integrity()
    bank.close()


def test_one_thread_puts_while_others_read(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 3 * SIZE, 3 * RAM, 8 * DISK, tmp_path, segment_bytes=2 * DISK)
    stop, wrong = threading.Event(), []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            ids = rng.sample(range(80), 4)
            with bank.pinned(ids):
                known = [i for i in ids if bank.tier(i)]
                got = bank.get(ids)
                if not all(same(one, chunk(one.chunk_id)) for one in got) or not set(known) <= {one.chunk_id for one in got}:
                    wrong.append(ids)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for reader in readers:
        reader.start()
    for i in range(80):
        bank.put(chunk(i))
    stop.set()
    for reader in readers:
        reader.join()
    bank.check_integrity()
    assert not wrong and not bank.damaged
    bank.close()


@pytest.mark.parametrize("seed", range(20))
def test_gaps_merge_like_sets_of_slots(seed: int) -> None:
    rng = random.Random(seed)
    spans: list[tuple[float, float]] = []
    slots: set[int] = set()
    for _ in range(30):
        slot = rng.randrange(40)
        slots.add(slot)
        spans = add_span(spans, (slot * 0.1, (slot + 1) * 0.1))
        starts = [s for s in sorted(slots) if s - 1 not in slots]
        ends = [s + 1 for s in sorted(slots) if s + 1 not in slots]
        assert spans == [(pytest.approx(a * 0.1), pytest.approx(b * 0.1)) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("make", [lambda: MemoryBank("cpu", 10**6, 0), PlainBank], ids=["tiers", "plain"])
def test_no_test_ends_with_a_bank_whose_books_are_wrong(make) -> None:
    bank = make()
    bank.put(chunk(0))
    check_banks()
    chunks = bank._chunks if isinstance(bank, PlainBank) else bank._tiers.entries
    chunks[7] = chunks.pop(0)
    with pytest.raises(AssertionError):
        check_banks()
    with pytest.raises(AssertionError):
        bank.close()
    with pytest.raises(MemoryBankError, match="closed"):  # all the same
        bank.get([0])
    check_banks()


def bank_span(chunk_id: int) -> tuple[float, float]:
    return (chunk(chunk_id).start_seconds, chunk(chunk_id).end_seconds)


def test_values_come_back_on_the_device_that_was_asked_for() -> None:
    bank = MemoryBank(torch.device("cpu"), 0, 10**6)
    bank.put(chunk(0))
    first, second = bank.get([0, 0])
    first.keys.zero_()
    assert same(second, chunk(0)) and same(bank.get([0])[0], chunk(0)), "what RAM hands out is a copy"
    bank.close()
