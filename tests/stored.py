"""Small stored memories of random chunks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from test_memory_stores import chunk, same

from memory import DurableBank, open_memory
from memory.identity import Identity
from memory.records import ChunkRecord
from memory.stored import StoredMemory
from memory.stored_vectors import StoredVectors
from memory.thinning import Distinct, Thinning
from memory.vectors import Summaries
from model_adapters.base import ChunkKV

MODEL = {
    "fingerprint": "feed",
    "family": "random",
    "dtype": "float32",
    "num_layers": 2,
    "num_kv_heads": 3,
    "head_dim": 4,
    "num_position_axes": 3,
}
"""Of the chunks of `test_memory_stores.chunk`."""
IDENTITY = Identity("random", MODEL, {"fps": 2.0, "chunk_seconds": 0.1, "drop": "pixel"})


def record_of(one: ChunkKV) -> ChunkRecord:
    keep = np.random.default_rng(one.chunk_id).random((1, 3, 3)) < 0.5
    last = one.end_seconds - 0.02
    picture = bytes([255, 216, one.chunk_id % 256])
    return ChunkRecord(one.chunk_id, one.start_seconds, one.end_seconds, last, one.num_tokens, keep, picture)


def stored_bank(folder: Path, gpu_bytes: int = 0, ram_bytes: int = 0, **options: Any) -> DurableBank:
    """Opened for writing, or with write=False for reading."""
    write = options.pop("write", True)
    lag = {"lag_seconds": options.pop("lag_seconds")} if "lag_seconds" in options else {}
    with ExitStack() as opened:
        memory = open_memory(folder, options.pop("identity", IDENTITY), write=write, **options)
        opened.callback(memory.close)
        bank = DurableBank(memory, "cpu", gpu_bytes, ram_bytes, write=write, **lag)
        opened.pop_all()
    return bank


def vectors_of(memory: StoredMemory) -> dict[int, np.ndarray]:
    """The vector of every stored chunk, from its file or made again."""
    ids = memory.manifest.ids_up_to()
    stored = StoredVectors.newest(memory.vectors, ids)
    again = list(memory.without_vector(ids, stored))
    found: dict[int, np.ndarray] = {}
    for block in [*([Summaries.of(again)] if again else []), *stored.summaries()]:
        new = dict(zip(block.chunk_ids.tolist(), block.mean_keys, strict=True))
        assert len(new) == len(block) and not new.keys() & found.keys(), "one vector each"
        found |= new
    return found


def fill(bank: DurableBank, ids: range) -> None:
    """Put random chunks and wait until they are on disk."""
    for i in ids:
        one = chunk(i)
        bank.put(one, record_of(one))
    bank.writer.flush()


THINNING = Thinning(Distinct())


def held(bank: DurableBank, ids: range) -> bool:
    got = bank.get(ids)
    return [one.chunk_id for one in got] == list(ids) and all(same(one, chunk(one.chunk_id)) for one in got)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.safetensors"))


def pulling_the_plug(point: str) -> Callable[[str], None]:
    """A fault at one marked point."""

    def fault(reached: str) -> None:
        if reached == point:
            raise OSError(errno.EIO, "pulled the plug")

    return fault


def wait_until_written(bank: DurableBank) -> None:
    with bank.writer._changed:
        assert bank.writer._changed.wait_for(lambda: bank.writer.error is None, timeout=60)
    bank.writer.flush()


def wait_until_within_lag(bank: DurableBank, num_unwritten: int) -> None:
    """Until so many chunks at least are not waited for any more, and what waits is within the writer's lag."""
    writer = bank.writer

    def within() -> bool:
        return writer.num_unwritten >= num_unwritten and writer.stats()["lag_seconds"] <= writer.lag_seconds + 1e-9

    with writer._changed:
        assert writer._changed.wait_for(within, timeout=60)


def after(i: int, step: int) -> ChunkKV:
    """A random chunk as it is when it has been thinned so often."""
    one = chunk(i)
    for number in range(1, step + 1):
        one = THINNING.thin(one, number, chunk(i).num_tokens)
    return one
