"""The stores one by one: bit-equal round trips, space that is reused, files that are private, damage that is seen."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest
import torch

from data.errors import MemoryBankError
from memory.base import Store
from memory.segments import DiskStore
from memory.slabs import SlabPool
from memory.stores import DeviceStore, RamStore
from model_adapters.base import ChunkKV

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def chunk(chunk_id: int, num_tokens: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0) -> ChunkKV:
    random_bits = torch.Generator().manual_seed(1000 * seed + chunk_id)
    keys, values = torch.randn(2, 2, 3, num_tokens, 4, generator=random_bits).to(dtype)
    positions = torch.randint(0, 2**40, (3, num_tokens), generator=random_bits)
    return ChunkKV(chunk_id, keys, values, positions, num_tokens + 2, chunk_id * 0.1, (chunk_id + 1) * 0.1)


def same(left: ChunkKV, right: ChunkKV) -> bool:
    """Bit for bit, NaN included."""
    pairs = [(left.keys, right.keys), (left.values, right.values), (left.position_ids, right.position_ids)]
    alike = all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
    heads = [(c.chunk_id, c.span, c.start_seconds, c.end_seconds) for c in (left, right)]
    bits = all(a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)) for a, b in pairs if a.numel())
    return alike and bits and heads[0] == heads[1]


def stores(folder: Path) -> list[Store]:
    return [
        DeviceStore(torch.device("cpu"), 10**6),
        RamStore(10**6, slab_bytes=1000, pin=False),
        DiskStore(folder / "kv", 10**6, segment_bytes=6000),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_round_trip_is_bit_equal(tmp_path: Path, dtype: torch.dtype, kind: int) -> None:
    store = stores(tmp_path)[kind]
    given = [chunk(i, num_tokens, dtype) for i, num_tokens in enumerate((5, 1, 0, 40, 7))]
    given[0].keys[0, 0, 0, 0] = torch.nan
    for one in given:
        store.put(one)
        assert same(store.get(one.chunk_id), one), "readable right after put"
        store.check_integrity()
    assert all(same(store.get(one.chunk_id), one) for one in given)
    assert store.num_payload_bytes == sum(one.num_bytes for one in given)
    for one in given:
        store.remove(one.chunk_id)
        assert one.chunk_id not in store
        store.check_integrity()
    assert store.num_payload_bytes == 0
    with pytest.raises(KeyError):
        store.get(0)
    store.close()
    store.close()


@pytest.mark.parametrize("seed", range(10))
def test_slabs_hand_out_every_byte_and_merge_what_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    pool = SlabPool(64 * 50, slab_bytes=64 * rng.randint(5, 20))
    held: list[list] = []
    for _ in range(150):
        wanted = 64 * rng.randint(0, 15)
        if wanted <= pool.num_free_bytes and rng.random() < 0.6:
            held.append(pool.allocate(wanted))
            assert sum(extent.num_bytes for extent in held[-1]) == wanted
        elif held:
            pool.free(held.pop(rng.randrange(len(held))))
        pool.check_integrity(extent for extents in held for extent in extents)
    for extents in held:
        pool.free(extents)
    assert pool.num_free_bytes == pool.capacity_bytes
    pool.allocate(pool.capacity_bytes)
    with pytest.raises(ValueError, match="64 bytes asked"):
        pool.allocate(64)


def test_ram_reuses_space_and_reports_what_it_holds() -> None:
    store = RamStore(16_000, slab_bytes=4000, pin=False)
    assert store.num_bytes == 0
    num_held = []
    for i in range(50):
        while not store.has_room(chunk(i).num_bytes):
            store.remove(min(store.chunk_ids()))
        store.put(chunk(i))
        store.check_integrity()
        num_held.append(store.num_bytes)
    assert num_held == sorted(num_held) and num_held[-1] <= 16_000
    assert num_held[-1] == num_held[25], "no slab is added while freed space is there"
    assert all(same(store.get(i), chunk(i)) for i in store.chunk_ids())


def test_device_store_copies_nothing_but_ballast() -> None:
    store = DeviceStore(torch.device("cpu"), 10**6)
    store.put(one := chunk(1))
    assert store.get(1).keys.data_ptr() == one.keys.data_ptr()
    buffer = torch.zeros(2, 3, 1000, 4)
    store.put(ChunkKV(2, buffer[:, :, :5], buffer[:, :, :5], one.position_ids, 5, 0.2, 0.3))
    assert store.get(2).keys.untyped_storage().nbytes() == 2 * 3 * 5 * 4 * 4


def test_disk_files_are_private_and_go_with_their_last_chunk(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", 10**6, segment_bytes=2 * (chunk(0).num_bytes + 1024))
    for i in range(5):
        store.put(chunk(i))
    files = sorted((tmp_path / "kv").iterdir())
    assert len(files) == 2 and store.num_pending_bytes == store.footprint(chunk(0).num_bytes)
    assert stat.S_IMODE((tmp_path / "kv").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert store.num_bytes == sum(file.stat().st_size for file in files) + store.num_pending_bytes
    assert all(file.stat().st_size <= 2 * store.footprint(chunk(0).num_bytes) for file in files)
    store.remove(0)
    assert len(list((tmp_path / "kv").iterdir())) == 2
    store.remove(1)
    assert list((tmp_path / "kv").iterdir()) == files[1:]
    store.flush()
    assert store.num_pending_bytes == 0 and same(store.get(4), chunk(4))
    store.check_integrity()


def test_disk_rewrites_segments_that_are_mostly_dead(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", 10**6, segment_bytes=60_000)
    for i in range(20):
        store.put(chunk(i, num_tokens=20))
    store.flush()
    assert not store.reclaim()
    before = store.num_bytes
    for i in range(20):
        if i % 4:
            store.remove(i)
    assert store.num_bytes == before
    while store.reclaim():
        store.check_integrity()
    assert store.num_bytes < before / 2
    assert all(same(store.get(i), chunk(i, num_tokens=20)) for i in range(0, 20, 4))


@pytest.mark.parametrize("seed", range(5))
def test_any_flipped_byte_is_seen(tmp_path: Path, seed: int) -> None:
    store = DiskStore(tmp_path / "kv", 10**6)
    for i in range(3):
        store.put(chunk(i))
    store.flush()
    (file,) = (tmp_path / "kv").iterdir()
    rng, content = random.Random(seed), file.read_bytes()
    for _ in range(60):
        broken = bytearray(content)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        for i in range(3):
            try:
                read = store.get(i)
            except MemoryBankError as error:
                assert file.name in str(error)
            else:
                assert same(read, chunk(i)), "what is read without an error is right"


def test_disk_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MemoryBankError, match="choose another folder"):
        DiskStore(tmp_path / "file", 10**6)
    store = DiskStore(tmp_path / "kv", 10**6)
    store.put(chunk(0))
    store.flush()
    with pytest.raises(MemoryBankError, match="already holds segments"):
        DiskStore(tmp_path / "kv", 10**6)


def test_a_failed_write_loses_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", 10**6, segment_bytes=3000)
    store.put(chunk(0))
    (tmp_path / "kv").rename(tmp_path / "away")
    with pytest.raises(MemoryBankError, match="cannot be written"):
        for i in range(1, 5):
            store.put(chunk(i))
    (tmp_path / "away").rename(tmp_path / "kv")
    store.check_integrity()
    assert all(same(store.get(i), chunk(i)) for i in store.chunk_ids()) and 0 in store
    store.flush()
    assert same(store.get(0), chunk(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_round_trip_through_pinned_ram_from_and_to_the_gpu() -> None:
    store = RamStore(10**6, slab_bytes=1000)
    for i, dtype in enumerate(DTYPES):
        store.put(chunk(i, 50, dtype).to("cuda"))
        assert same(store.get(i, torch.device("cuda")).to("cpu"), chunk(i, 50, dtype))
