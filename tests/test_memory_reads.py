"""Reading several chunks at once gives what reading each gives, and writing them into a context what joining them gives."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_memory_stores import chunk, same

from data.errors import MemoryBankError
from memory.codecs import decoded
from memory.layout import Packet, checksum
from memory.segment_file import Place, read_blocks
from memory.segments import DiskStore
from model_adapters.cache import BufferContext


@pytest.mark.parametrize("num", [0, 1, 63, 5_000, 300_001])
def test_checksums_are_the_crc32_that_any_zlib_makes(num: int) -> None:
    """So that a memory opens wherever it was written."""
    data = random.Random(num).randbytes(num)
    expected = zlib.crc32(data, zlib.crc32("läyout".encode()))
    assert (
        checksum("läyout", torch.frombuffer(bytearray(data), dtype=torch.uint8) if num else torch.empty(0).byte()) == expected
    )


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_the_bytes_of_the_file(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "segment"
    content = rng.randbytes(20_000)
    path.write_bytes(content)
    cuts = sorted(rng.sample(range(20_001), 700))
    places = [Place(a, b - a) for a, b in pairwise(cuts)]
    for num in (0, 1, 5, 699):
        chosen = rng.sample(places, num) + places[:2]
        blocks = read_blocks(path, chosen)
        assert [block.numpy().tobytes() for block in blocks] == [content[p.offset : p.offset + p.num_bytes] for p in chosen]
    for wrong in ([Place(19_990, 11)], [Place(19_000, 500), Place(19_500, 501)]):
        with pytest.raises(MemoryBankError, match="too short"):
            read_blocks(path, wrong)
    with pytest.raises(MemoryBankError, match="cannot be read"):
        read_blocks(tmp_path / "none", places[:1])


def test_a_gather_is_the_chunks_one_by_one_without_the_damaged_segment(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", 10**6, segment_bytes=9000)
    for number in range(20):
        store.put(chunk(number))
    wanted = [17, 3, 4, 5, 0, 12]
    assert store.gather([18, 19]) == {}, "what waits in RAM needs no reading"
    store.flush()
    found = store.gather(wanted)
    assert set(found) == set(wanted)
    for number, packet in found.items():
        assert isinstance(packet, Packet) and same(decoded(packet), chunk(number)) and same(store.get(number), chunk(number))
    file = sorted((tmp_path / "kv").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-1])
    assert sorted(store.together(0)) == [0, 1, 2, 3] and set(store.gather(wanted)) == set(wanted) - {0, 3}
    assert same(store.get(0), chunk(0)), "whole itself"


@pytest.mark.parametrize("seed", range(5))
def test_writes_into_a_context_are_what_joining_gives(seed: int) -> None:
    torch.manual_seed(seed)
    context = BufferContext((2, 4, 6), torch.float32, [torch.device("cpu")] * 3)
    expected: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], [], []]
    for number in range(8):
        keys, values = torch.randn(2, 3, 2, number % 4, 6)
        if number == 4 and seed % 2:
            # Layers of different lengths, as where each has chunks of its own.
            context.reserve(2)
            one = torch.randn(2, 2, 2, 6)
            context.write_layer(1, one[0], one[1])
            expected[1].append((one[0], one[1]))
        context.write(keys, values)
        for layer in range(3):
            expected[layer].append((keys[layer], values[layer]))
    for index, layer in enumerate(context.layers):
        joined = [torch.cat(list(several), dim=1) for several in zip(*expected[index], strict=True)]
        assert all(torch.equal(found, whole) for found, whole in zip(layer.held(), joined, strict=True))
