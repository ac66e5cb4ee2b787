"""Codecs: errors inside the stated bound, positions exact, sizes as promised, and nothing decoded from a damaged packet."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from everyday import everyday
from test_memory_stores import same

from data.errors import ConfigError, MemoryBankError
from memory import MemoryBank
from memory.codecs import CODECS, Codec, create_codec, decoded
from memory.codecs.entropy import Entropy
from memory.codecs.integer import Integer, pack_nibbles, unpack_nibbles
from memory.layout import Packet, pack, unpack
from model_adapters.base import ChunkKV

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LOSSY = [Integer(8), Integer(4), Integer(8, 5), Integer(4, 7), Entropy(), Entropy(0.05), Entropy(20.0, 9)]


def shown(codec: Codec) -> str:
    return f"{codec.name} {getattr(codec, 'group', getattr(codec, 'coarseness', ''))}"


def random_chunk(seed: int, dtype: torch.dtype, num_tokens: int | None = None) -> ChunkKV:
    """Shapes, offsets per channel, outliers, constant stretches and zeros as the seed will have it."""
    rng, bits = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens = rng.choice([0, 1, 2, 3, 31, 32, 33, 70]) if num_tokens is None else num_tokens
    shape = (rng.randint(1, 3), rng.randint(1, 3), tokens, rng.choice([1, 2, 7, 32, 48]))
    both = []
    for _ in range(2):
        one = torch.randn(shape, generator=bits, dtype=torch.float64) * 10 ** rng.uniform(-3, 2)
        one += torch.randn(shape[3], generator=bits) * rng.choice([0, 1, 30])
        if rng.random() < 0.3 and one.numel():
            one.view(-1)[rng.randrange(one.numel())] = rng.choice([-1, 1]) * 6e4
        if rng.random() < 0.2:
            one[0] = rng.choice([0.0, 2.5])
        both.append(one.to(dtype))
    positions = torch.randint(0, rng.choice([1, 200, 2**15, 2**31, 2**40]), (rng.choice([1, 3]), tokens), generator=bits)
    return ChunkKV(seed, both[0], both[1], positions, tokens + 2, seed * 0.1, seed * 0.1 + 0.3)


def assert_inside(codec: Codec, packet: Packet, chunk: ChunkKV) -> ChunkKV:
    back = decoded(packet)
    assert torch.equal(back.position_ids, chunk.position_ids) and back.position_ids.dtype == torch.int64
    heads = [(c.chunk_id, c.span, c.start_seconds, c.end_seconds) for c in (back, chunk)]
    assert heads[0] == heads[1]
    for got, given, bound in zip((back.keys, back.values), (chunk.keys, chunk.values), codec.bound(packet), strict=True):
        assert got.dtype == given.dtype and got.shape == given.shape and got.is_contiguous()
        assert ((got.double() - given.double()).abs() <= bound.double()).all()
    return back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", LOSSY, ids=shown)
def test_errors_stay_inside_the_stated_bound(codec: Codec, dtype: torch.dtype) -> None:
    for seed in range(25):
        chunk = random_chunk(seed, dtype)
        assert_inside(codec, codec.encode(chunk), chunk)


@pytest.mark.parametrize("codec", LOSSY[:5], ids=shown)
def test_the_bound_is_no_excuse(codec: Codec) -> None:
    """Half a step of the definition, calculated apart from the codec; some number comes close to it."""
    noise = torch.randn(2, 3, 2, 40, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chunk = ChunkKV(0, noise[0], 5 * noise[1] + 2, torch.arange(40).repeat(3, 1), 40, 0.0, 1.0)
    packet = codec.encode(chunk)
    back = decoded(packet)
    for given, got, bound, axis in zip(
        (chunk.keys, chunk.values), (back.keys, back.values), codec.bound(packet), (2, 3), strict=True
    ):
        if isinstance(codec, Integer):
            groups = given.split(codec.group, dim=axis)
            ranges = [(g.amax(axis, keepdim=True) - g.amin(axis, keepdim=True)).expand_as(g) for g in groups]
            half = torch.cat(ranges, axis) / (2**codec.bits - 1) / 2
        else:
            half = 0.5 * 1.5 * given.std(2, correction=1).square().mean((1, 2)).sqrt()[:, None, None, None]
        assert torch.allclose(bound.double(), half.expand_as(bound), rtol=1e-3, atol=1e-6)
        errors = ((got - given).abs() / half.clamp(min=1e-12)).flatten()
        assert errors.max() > 0.9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_is_bit_equal(dtype: torch.dtype) -> None:
    for seed in range(25):
        chunk = random_chunk(seed, dtype)
        if chunk.keys.numel():
            chunk.keys.view(-1)[0], chunk.values.view(-1)[0] = torch.nan, torch.inf
        packet = create_codec("native").encode(chunk)
        assert same(decoded(packet), chunk) and packet.num_bytes == chunk.num_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", LOSSY[:4], ids=shown)
def test_encoding_a_second_time_changes_nothing(codec: Codec, dtype: torch.dtype) -> None:
    for seed in range(25):
        once = decoded(codec.encode(random_chunk(seed, dtype)))
        assert same(decoded(codec.encode(once)), once)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_take_the_bytes_that_are_promised(bits: int) -> None:
    for tokens, dim, group in ((64, 32, 32), (33, 48, 32), (1, 7, 3), (0, 8, 4)):
        keys = torch.randn(2, 3, tokens, dim, dtype=torch.bfloat16)
        chunk = ChunkKV(0, keys, keys, torch.arange(tokens).repeat(3, 1), tokens, 0.0, 1.0)
        codes = 2 * -(-2 * 3 * tokens * dim * bits // 8)
        ranges = 2 * 2 * 2 * 3 * (-(-tokens // group) * dim + tokens * -(-dim // group))
        assert Integer(bits, group).encode(chunk).num_bytes == codes + ranges + 3 * tokens


def test_alike_tokens_take_almost_nothing_and_others_what_theory_says() -> None:
    token = torch.randn(2, 2, 1, 48)
    alike = token.repeat(1, 1, 50, 1)
    chunk = ChunkKV(0, alike, alike, torch.arange(50).repeat(3, 1), 50, 0.0, 1.0)
    assert Entropy().encode(chunk).num_bytes < chunk.num_bytes / 60
    noise = torch.randn(2, 2, 2, 400, 48)
    chunk = ChunkKV(0, noise[0], noise[1], torch.arange(400).repeat(3, 1), 400, 0.0, 1.0)
    for coarseness in (0.5, 1.0, 1.5):
        packed = Entropy(coarseness).encode(chunk)
        edges = torch.arange(-40.5, 41.5) * coarseness
        shares = (torch.special.erf(edges / 2**0.5) / 2).diff()
        shares = shares[shares > 0]
        ideal = noise.numel() * float(-(shares * shares.log2()).sum()) / 8
        assert ideal < packed.num_bytes < 1.06 * ideal + 500


@pytest.mark.parametrize("name", ["int8", "int4", "entropy"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, wrong: float) -> None:
    for which in ("keys", "values"):
        chunk = random_chunk(4, torch.float32, 5)
        getattr(chunk, which).view(-1)[3] = wrong
        with pytest.raises(MemoryBankError, match="not finite"):
            create_codec(name).encode(chunk)


@pytest.mark.parametrize("name", list(CODECS))
def test_a_torn_or_foreign_packet_is_an_error_and_never_a_chunk_of_another_shape(name: str) -> None:
    chunk = random_chunk(6, torch.bfloat16, 33)
    packet = create_codec(name).encode(chunk)
    key = next(iter(packet.tensors))
    tensor = packet.tensors[key].flatten()
    wrong = [replace(packet, tensors={**packet.tensors, key: tensor[: len(tensor) * share // 4]}) for share in range(4)] + [
        replace(packet, tensors={}),
        replace(packet, codec="of tomorrow"),
        replace(packet, tensors={"payload": torch.zeros(999, dtype=torch.uint8)}, about=packet.about or [0]),
        replace(packet, tensors={**packet.tensors, "more": torch.zeros(3)}),
    ]
    abouts = [
        [],
        ["bfloat16"],
        ["pickle", [1, 1, 33, 7, 3]],
        ["bfloat16", [1, 1, -33, 7, 3], 32, 1],
        ["float32", [9, 9, 9, 9, 9], 0],
    ]
    wrong += [replace(packet, about=about) for about in abouts if name != "native"]
    for one in wrong:
        with pytest.raises(MemoryBankError):
            decoded(one)


@pytest.mark.parametrize("name", ["int8", "int4", "entropy"])
def test_flipped_bits_never_give_a_chunk_of_another_shape(name: str) -> None:
    chunk = random_chunk(6, torch.bfloat16, 33)
    packet = create_codec(name).encode(chunk)
    rng = random.Random(0)
    for _ in range(200):
        torn = packet.tensors["payload"].clone()
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        try:
            back = decoded(replace(packet, tensors={"payload": torn}))
        except MemoryBankError:
            continue
        assert back.keys.shape == chunk.keys.shape and back.position_ids.shape == chunk.position_ids.shape


@pytest.mark.parametrize("num", [0, 1, 2, 7, 100])
def test_two_half_bytes_to_a_byte(num: int) -> None:
    codes = torch.randint(0, 16, (num,), dtype=torch.uint8)
    packed = pack_nibbles(codes)
    assert len(packed) == (num + 1) // 2 and torch.equal(unpack_nibbles(packed, num), codes)
    assert all(int(packed[i // 2]) >> 4 * (i % 2) & 15 == int(code) for i, code in enumerate(codes))


def test_settings_that_make_no_sense() -> None:
    for make in (lambda: create_codec("zip"), lambda: Integer(5), lambda: Integer(4, 0), lambda: Entropy(0.0)):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("seed", everyday(range(4)))
def test_a_chunk_is_encoded_once_however_often_it_moves(tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    budgets = [rng.choice([0, 40_000]), rng.choice([0, 40_000, 100_000]), 200_000]
    bank = MemoryBank("cpu", *budgets, tmp_path, codec=name, slab_bytes=5000, segment_bytes=20_000)
    given: dict[int, ChunkKV] = {}
    for step in range(60):
        chunk = replace(random_chunk(step + 100 * seed, torch.bfloat16), chunk_id=step)
        given[step] = chunk
        for gone in bank.put(chunk):
            del given[gone]
        wanted = rng.sample(sorted(given), min(4, len(given)))
        tiers = [bank.tier(i) for i in wanted]
        for i, tier, got in zip(wanted, tiers, bank.get(wanted), strict=True):
            once = decoded(create_codec(name).encode(given[i]))
            assert same(got, given[i] if tier == "gpu" else once)
        bank.check_integrity()
    assert not bank.damaged and bank.stats()["codec"] == name
    bank.close()


@pytest.mark.parametrize("name", ["int8", "int4", "entropy"])
def test_what_a_codec_cannot_keep_is_kept_as_it_is_and_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    bank = MemoryBank("cpu", 0, 10**6, codec=name)
    chunk = random_chunk(4, torch.float32, 5)
    chunk.keys.view(-1)[3] = torch.nan
    bank.put(chunk)
    assert same(bank.get([4])[0], chunk) and "not finite" in caplog.text and bank.stats()["num_kept_native"] == 1
    bank.close()


@pytest.mark.parametrize("name", list(CODECS))
def test_packets_survive_a_file(name: str) -> None:
    for seed in range(10):
        packet = create_codec(name).encode(random_chunk(seed, torch.float16))
        packed = pack(packet)
        back = unpack(packed.layout, packed.data.clone(), packed.crc32)
        assert (back.head, back.codec, back.about) == (packet.head, packet.codec, packet.about)
        assert same(decoded(back), decoded(packet))
        with pytest.raises(MemoryBankError, match="checksum"):
            unpack(packed.layout, packed.data, packed.crc32 ^ 1)
        with pytest.raises(MemoryBankError, match="checksum"):
            unpack(packed.layout.replace(f"[{seed},", f"[{seed + 1},"), packed.data, packed.crc32)
