"""Thinning against a brute-force memory that does the same by the book, and its policies against their definitions."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_memory_stores import chunk, same

from data.errors import ConfigError, MemoryBankError
from memory import MemoryBank
from memory.codecs import create_codec, decoded
from memory.thinning import SUMMARY, Ages, Distinct, Evenly, Thinning, create_thinning, pooled
from model_adapters.base import ChunkKV

THINNING = Thinning(Evenly(), (0.5, 0.2, SUMMARY), (0.4, 0.3, 0.2, 0.1))


def rows(of: ChunkKV) -> list[tuple[float, ...]]:
    """One row of numbers per token: keys, values and positions."""
    return [
        (*of.keys[:, :, i].flatten().tolist(), *of.values[:, :, i].flatten().tolist(), *of.position_ids[:, i].tolist())
        for i in range(of.num_tokens)
    ]


@pytest.mark.parametrize("policy", [Evenly(), Distinct()])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 9, 40])
def test_what_is_left_was_there_in_this_order(policy: Evenly | Distinct, num_tokens: int) -> None:
    whole = chunk(1, num_tokens)
    assert sorted(policy.order(whole).tolist()) == list(range(num_tokens))
    for share in (0.9, 0.5, 0.01):
        thin = Thinning(policy, (share,), (0.5, 0.5)).thin(whole, 1, num_tokens)
        assert thin.num_tokens == min(num_tokens, max(1, round(share * num_tokens)))
        left = iter(rows(whole))
        assert all(any(row == one for one in left) for row in rows(thin)), "a subsequence of what was there"
        assert (thin.chunk_id, thin.span, thin.start_seconds, thin.end_seconds) == (
            whole.chunk_id, whole.span, whole.start_seconds, whole.end_seconds,
        )  # fmt: skip


def test_distinct_keeps_the_odd_key_and_the_large_value() -> None:
    keys, values = torch.ones(2, 2, 8, 4), torch.ones(2, 2, 8, 4)
    keys[:, :, 5] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    values[:, :, 5] = 3
    assert int(Distinct().order(ChunkKV(0, keys, values, torch.zeros(3, 8, dtype=torch.long), 8, 0.0, 1.0))[0]) == 5


@pytest.mark.parametrize("num_tokens", [2, 5, 16, 33])
def test_evenly_leaves_no_hole(num_tokens: int) -> None:
    order = Evenly().order(chunk(0, num_tokens)).tolist()
    for num in range(1, num_tokens + 1):
        kept = sorted(order[:num])
        holes = [b - a for a, b in zip([-1, *kept], [*kept, num_tokens], strict=True)]
        assert max(holes) <= 2 * -(-num_tokens // num) + 1


def test_one_token_for_all_is_found_as_all_were() -> None:
    whole = chunk(3, 7)
    one = pooled(whole)
    assert one.num_tokens == 1 and torch.allclose(one.keys[:, :, 0], whole.keys.mean(2))
    assert torch.allclose(one.values[:, :, 0], whole.values.mean(2)) and one.position_ids[:, 0].equal(whole.position_ids[:, 3])
    assert same(pooled(one), one) and same(pooled(chunk(3, 0)), chunk(3, 0))


class ByTheBook:
    """One tier of RAM, without slabs, files or codecs: the oldest of the step furthest over its share is thinned."""

    def __init__(self, capacity: int, thinning: Thinning) -> None:
        self.capacity, self.thinning = capacity, thinning
        self.held: dict[int, tuple[int, ChunkKV, int]] = {}

    def put(self, new: ChunkKV) -> list[int]:
        gone = []
        # Room is asked for with alignment of every part: what a store promises to take at most.
        while sum(self.size_in_slab(one) for _, one, _ in self.held.values()) + self.most(new) > self.capacity:
            used = [sum(one.num_bytes for s, one, _ in self.held.values() if s == step) for step in range(4)]
            over = [u / share for u, share in zip(used, self.thinning.byte_shares, strict=True)]
            step = max(range(4), key=lambda s: (over[s], s))
            oldest = min((one.start_seconds, i) for i, (s, one, _) in self.held.items() if s == step)[1]
            if step == 3:
                gone.append(oldest)
                del self.held[oldest]
            else:
                _, one, num = self.held[oldest]
                self.held[oldest] = (step + 1, self.thinning.thin(one, step + 1, num), num)
        self.held[new.chunk_id] = (0, new, new.num_tokens)
        return gone

    def size_in_slab(self, one: ChunkKV) -> int:
        parts = (one.keys, one.values, one.position_ids)
        return sum(-(-t.numel() * t.element_size() // 64) * 64 for t in parts)

    def most(self, one: ChunkKV) -> int:
        return -(-(one.num_bytes + 3 * 63) // 64) * 64


@pytest.mark.parametrize("seed", range(6))
def test_ram_thins_by_the_book(seed: int) -> None:
    rng = random.Random(seed)
    book = ByTheBook(64 * 250, THINNING)
    bank = MemoryBank("cpu", 0, 64 * 250, thinning=THINNING, slab_bytes=640)
    for number in range(70):
        new = chunk(number, rng.choice([3, 8, 20]))
        assert bank.put(new) == book.put(new)
        assert bank.chunk_ids() == sorted(book.held)
        bank.check_integrity()
        for one in bank.get(bank.chunk_ids()):
            step, expected, _ = book.held[one.chunk_id]
            assert same(one, expected) and bank.step(one.chunk_id) == step
    assert {step for step, _, _ in book.held.values()} == {0, 1, 2, 3} and bank.gaps[0][0] == 0.0
    bank.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "int4", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_disk_keeps_to_its_budget_and_the_past_gets_coarser(tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    budget = 70_000 if name == "native" else 30_000
    bank = MemoryBank("cpu", 0, rng.choice([0, 9000]), budget, tmp_path, codec=name, thinning=THINNING, segment_bytes=9000)
    known: dict[int, ChunkKV] = {}
    for number in range(160):
        new = replace(chunk(number, rng.choice([8, 20, 30])), position_ids=torch.arange(3).repeat(1, 1))
        new = replace(new, position_ids=torch.arange(new.keys.shape[2]).repeat(3, 1))
        known[number] = new
        with bank.pinned([number // 2]):
            before = bank.get([number // 2])
            for gone in bank.put(new):
                del known[gone]
            assert all(same(a, b) for a, b in zip(before, bank.get([number // 2]), strict=False)), (
                "what is pinned stays as it is"
            )
        for thin in bank.take_thinned():
            assert thin.num_tokens <= known[thin.chunk_id].num_tokens
            known[thin.chunk_id] = thin
        bank.check_integrity()
        assert bank.num_bytes("disk") <= budget
        assert bank.chunk_ids() == sorted(known)
    for one in bank.get(bank.chunk_ids()):
        # Encoded anew at every step, from what the step before had left.
        expected = known[one.chunk_id]
        assert one.num_tokens == expected.num_tokens and torch.equal(one.position_ids, expected.position_ids)
        if name == "native" or not bank.step(one.chunk_id):
            assert same(one, decoded(create_codec(name).encode(expected)))
    steps = [bank.step(i) for i in bank.chunk_ids()]
    assert steps[-1] == 0 and max(steps) == 3 if name == "native" else max(steps) > 0
    assert bank.stats()["num_at_step"] == [steps.count(step) for step in range(max(steps) + 1)]
    half = len(steps) // 2
    assert sum(steps[:half]) > sum(steps[half:]), "the older, the thinner"
    assert not bank.damaged
    bank.close()


def test_a_damaged_chunk_is_reported_when_its_turn_comes(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 0, 0, 40_000, tmp_path, thinning=THINNING, segment_bytes=5000)
    for number in range(6):
        bank.put(chunk(number, 20))
    file = min(next(tmp_path.iterdir()).glob("*.safetensors"))
    broken = bytearray(file.read_bytes())
    broken[-5] ^= 1
    file.write_bytes(broken)
    for number in range(6, 40):
        bank.put(chunk(number, 20))
        bank.check_integrity()
    assert len(bank.damaged) == 1 and bank.damaged[0] not in bank.chunk_ids() and bank.stats()["num_damaged"] == 1
    bank.close()


def test_a_disk_that_fails_while_thinning_changes_nothing(tmp_path: Path) -> None:
    bank = MemoryBank("cpu", 0, 0, 40_000, tmp_path, thinning=THINNING, segment_bytes=5000)
    number = 0
    while not bank.stats()["num_thinned"]:
        bank.put(chunk(number, 20))
        number += 1
    spill = next(tmp_path.iterdir())
    held = {one.chunk_id: one for one in bank.get(bank.chunk_ids())}
    spill.rename(tmp_path / "away")
    with pytest.raises(MemoryBankError, match=r"cannot be (written|read)"):
        for later in range(number, number + 30):
            bank.put(chunk(later, 20))
            held[later] = chunk(later, 20)
    (tmp_path / "away").rename(spill)
    bank.check_integrity()
    assert not set(bank.chunk_ids()) - set(held)
    bank.put(chunk(999, 20))
    bank.check_integrity()
    bank.close()


@pytest.mark.parametrize("seed", range(5))
def test_turns_are_those_of_a_sorted_list(seed: int) -> None:
    rng = random.Random(seed)
    ages, held = Ages((0.5, 0.25, 0.25)), {}
    for number in range(60):
        if held and rng.random() < 0.3:
            gone = rng.choice(sorted(held))
            ages.discard(gone)
            del held[gone]
        held[number] = (rng.randrange(3), rng.random(), rng.randint(1, 9))
        ages.add(number, *held[number])
        ages.check_integrity()
        pins = set(rng.sample(sorted(held), min(2, len(held))))
        over = [sum(b for s, _, b in held.values() if s == step) / share for step, share in enumerate(ages.byte_shares)]
        wanted = sorted((i for i in held if i not in pins), key=lambda i: (-over[held[i][0]], -held[i][0], held[i][1]))
        assert list(ages.turns(pins)) == [(held[i][0], i) for i in wanted]


def test_shares_that_make_no_sense() -> None:
    for tokens, shares in (((0.5, 0.7), (0.4, 0.3, 0.3)), ((0.5,), (0.5, 0.6)), ((0.5,), (1.0,)), ((1.0,), (0.5, 0.5))):
        with pytest.raises(ConfigError, match="shares"):
            Thinning(Evenly(), tokens, shares)
    with pytest.raises(ConfigError, match="not known"):
        create_thinning("badly")
    assert create_thinning("off") is None
