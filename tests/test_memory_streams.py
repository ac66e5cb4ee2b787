"""Chunks read group by group for an answer are those that reading them all gives, and nothing of the reading is left behind."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from everyday import everyday
from stored import fill, stored_bank
from test_memory_stores import chunk, same

from memory import Bank, MemoryBank, PlainBank
from memory.codecs import CODECS, create_codec, decoded
from memory.reading import Staging, groups_of, one_ahead
from model_adapters.base import ChunkKV

NUM = 24
GROUP = 2500
"""Four chunks of `chunk`, in the native codec."""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory.reading.GROUP_BYTES", GROUP)


def banks(folder: Path, codec: str = "native") -> dict[str, Callable[[], Bank]]:
    def filled(bank: Bank) -> Bank:
        for i in range(NUM):
            bank.put(chunk(i))
        return bank

    def durable(**caches: int) -> Bank:
        bank = stored_bank(folder / f"durable-{len(caches)}", codec=codec, **caches)
        fill(bank, range(NUM))
        return bank

    return {
        "plain": lambda: filled(PlainBank()),
        "gpu": lambda: filled(MemoryBank("cpu", 10**6, 0, codec=codec)),
        "ram": lambda: filled(MemoryBank("cpu", 0, 10**6, codec=codec, slab_bytes=3000)),
        "disk": lambda: filled(MemoryBank("cpu", 0, 0, 10**6, folder / "disk", codec=codec, segment_bytes=6000)),
        "tiers": lambda: filled(MemoryBank("cpu", 4000, 6000, 10**6, folder / "tiers", codec=codec, segment_bytes=3000)),
        "durable": durable,
        "durable, cached": lambda: durable(gpu_bytes=4000, ram_bytes=6000),
    }


def expected(bank: Bank, number: int, codec: str) -> list[ChunkKV]:
    """A chunk as it may come back: as it was put, or as its codec gives it back."""
    return [chunk(number), decoded(create_codec(codec).encode(chunk(number)))]


def is_idle() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("memory reader")]


@pytest.mark.parametrize("codec", everyday(CODECS))
@pytest.mark.parametrize("where", list(banks(Path())))
def test_a_stream_is_the_chunks_one_by_one(tmp_path: Path, where: str, codec: str) -> None:
    rng, bank = random.Random(len(where)), banks(tmp_path, codec)[where]()
    for _ in range(6):
        wanted = sorted(rng.sample(range(NUM), rng.randint(0, NUM)))
        read = []
        for group in bank.stream([*wanted, 999]):
            # Looked at before the next is read: its memory may be used again.
            assert all(any(same(one, like) for like in expected(bank, one.chunk_id, codec)) for one in group)
            read += [one.chunk_id for one in group]
        assert read == wanted and is_idle()
        # What was kept in a faster tier on the way is its own, and no part of what was read into again and again.
        for one in bank.get(wanted):
            assert any(same(one, like) for like in expected(bank, one.chunk_id, codec))
        bank.check_integrity()
    bank.close()


@pytest.mark.parametrize("where", ["disk", "durable"])
def test_damage_in_the_middle_is_reported_and_skipped(tmp_path: Path, where: str) -> None:
    bank = banks(tmp_path)[where]()
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    read = [(one.chunk_id, same(one, chunk(one.chunk_id))) for group in bank.stream(range(NUM)) for one in group]
    assert len(bank.damaged) == 1 and all(right for _, right in read)
    assert sorted([*bank.damaged, *(i for i, _ in read)]) == list(range(NUM))
    assert bank.gaps == [bank.gaps[0]] and bank.get(bank.damaged) == []
    bank.close()


@pytest.mark.parametrize("where", ["disk", "durable"])
def test_a_file_that_is_gone_is_reported_like_damage(tmp_path: Path, where: str) -> None:
    bank = banks(tmp_path)[where]()
    sorted(tmp_path.rglob("*.safetensors"))[0].unlink()
    read = [one.chunk_id for group in bank.stream(range(NUM)) for one in group]
    assert bank.damaged and sorted([*read, *bank.damaged]) == list(range(NUM))
    bank.close()


@pytest.mark.parametrize("where", ["ram", "disk", "durable, cached"])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_what_is_left_early_leaves_nothing_behind(
    tmp_path: Path, where: str, num_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Staging]] = []

    class Watched(Staging):
        def __init__(self, num_bytes: int, pin: bool) -> None:
            super().__init__(num_bytes, pin)
            made.append(weakref.ref(self))

    monkeypatch.setattr("memory.reading.Staging", Watched)
    bank = banks(tmp_path)[where]()
    with closing(bank.stream(range(NUM))) as groups:
        for _ in range(num_groups):
            next(groups)
        assert bank.stats()["num_pinned"] == NUM and not is_idle()
    assert is_idle() and bank.stats()["num_pinned"] == 0
    assert len(made) == 2 and all(staging() is None for staging in made)
    bank.check_integrity()
    assert all(same(one, chunk(one.chunk_id)) for one in bank.get(range(NUM)))
    bank.close()


def test_groups_are_neighbours_of_bounded_size() -> None:
    sizes = dict.fromkeys(range(20), 700) | {5: 9000}
    groups = groups_of(range(21), sizes)
    assert [i for group in groups for i in group] == list(range(21))
    assert all(sum(sizes.get(i, 0) for i in group) <= GROUP or len(group) == 1 for group in groups)
    assert [5] in groups and groups_of([], sizes) == [[]]


def test_one_is_read_ahead_and_errors_come_where_their_result_would() -> None:
    started: list[int] = []
    second = threading.Event()

    def read(number: int) -> int:
        started.append(number)
        if number == 1:
            second.set()
        if number == 2:
            raise OSError("gone")
        return 10 * number

    results = one_ahead(read, range(4))
    assert next(results) == 0 and second.wait(10), "the next is read while the first is used"
    assert next(results) == 10
    with pytest.raises(OSError, match="gone"):
        next(results)
    assert is_idle() and 3 not in started


def test_staging_is_used_again_and_never_handed_out_twice() -> None:
    staging = Staging(1000, pin=False)
    first, second, third = staging.take(300), staging.take(300), staging.take(400)
    large = staging.take(501)
    pointers = {one.untyped_storage().data_ptr() for one in (first, second)}
    assert len(pointers) == 1 and not pointers & {one.untyped_storage().data_ptr() for one in (third, large)}
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all() and first.data_ptr() % 8 == second.data_ptr() % 8 == 0
    staging.reset()
    assert staging.take(200).data_ptr() == first.data_ptr()
    assert torch.equal(first[:200], staging._memory[:200])
