"""Does memory give back chunks as fast as this machine can copy them, and an answer from disk as fast as one from RAM?

Every round does all of it by turns, since machines are noisy: a plain copy of as many bytes, the checksums over as many, and
one gather into a destination that is there: from RAM, from disk with its pages in the system's cache, and after they were put
out of it. Then the first token of an answer about a short stream, and of one with as much in its context.
Medians and shares of the copy are what to quote.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.world import make_world
from eval.flags import amount, whole
from eval.random_memory import random_chunk
from eval.report import hardware_words, table, write_json
from eval.scoring import median
from memory import Bank, MemoryBank
from memory.layout import as_bytes, checksum
from model_adapters.base import ChunkKV
from retrieval.base import Retriever
from retrieval.baselines import All
from vstream.answer import Answerer, View
from vstream.config import from_flags
from vstream.models import chosen_model
from vstream.session import StreamSession

ROOM_BYTES = 2**34
WORLD_SEED = 1_600_000
RAM, WARM, COLD = "RAM", "disk, warm", "disk, cold"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunks", type=whole(1, 10_000), default=32, help="chunks in one gather")
    parser.add_argument(
        "--chunk-mib", type=amount(0.001, 1024), default=2, help="size of a chunk; 2: about 14 tokens of an 8B model"
    )
    parser.add_argument("--rounds", type=whole(1), default=9)
    parser.add_argument("--watched-seconds", type=whole(1), default=60, help="stream behind the questions for the latency")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = from_flags(args)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"gather": gathers(Path(folder) / "gather", args, config.kv_codec)}
        adapter = chosen_model(args).load(config.gpu_bytes)
        with StreamSession(adapter, config) as session:
            result["ttft_seconds"] = latencies(session, Path(folder) / "ask", args)
        with StreamSession(adapter, config.replace(top_k=args.chunks)) as session:
            result["large_ttft_seconds"] = large_latencies(session, Path(folder) / "large", args)
    result["kv_codec"] = config.kv_codec
    print_result(result, args)
    write_json(args.json, "reads", result)
    return result


def gathers(folder: Path, args: argparse.Namespace, codec: str) -> dict[str, dict[str, float]]:
    """Seconds and bytes per second of native keys and values, for each way to come by them."""
    tokens = max(1, round(args.chunk_mib * 2**20 / (2 * 36 * 8 * 128 * 2)))
    source = torch.randn(2, 36, 8, tokens, 128).to(torch.bfloat16)
    positions = torch.arange(tokens).repeat(3, 1)
    chunks = []
    for number in range(4 * args.chunks):
        keys, values = source.roll(number, dims=-1).unbind()
        chunks.append(ChunkKV(number, keys, values, positions, tokens, float(number), number + 1.0))
    wanted = [chunk.chunk_id for chunk in chunks[:: len(chunks) // args.chunks]][: args.chunks]
    num_bytes = args.chunks * 2 * as_bytes(chunks[0].keys).numel()
    plain, target = torch.zeros(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)

    def gather(bank: MemoryBank) -> None:
        at = 0
        for group in bank.stream(wanted):
            for tensor in (tensor for chunk in group for tensor in (chunk.keys, chunk.values)):
                target[at : at + tensor.numel() * tensor.element_size()] = as_bytes(tensor)
                at += tensor.numel() * tensor.element_size()
        assert at == num_bytes

    with closing(MemoryBank("cpu", 0, ROOM_BYTES, codec=codec)) as ram, closing(on_disk(folder, codec)) as disk:
        for chunk in chunks:
            ram.put(chunk)
            disk.put(chunk)
        ways: dict[str, Callable[[], object]] = {
            "plain copy": lambda: target.copy_(plain),
            "checksums alone": lambda: [checksum("", piece) for piece in plain.chunk(args.chunks)],
            RAM: lambda: gather(ram),
            WARM: lambda: gather(disk),
            COLD: lambda: gather(disk),
        }
        seconds = by_turns(ways, args.rounds, folder)
    copied = num_bytes / seconds["plain copy"]
    return {
        name: {"seconds": took, "bytes_per_second": num_bytes / took, "share_of_copy": num_bytes / took / copied}
        for name, took in seconds.items()
    }


def latencies(session: StreamSession, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median wall time from a question to its first token, with the retrieved chunks in each place."""
    world = make_world(WORLD_SEED, args.watched_seconds)
    list(session.feed(world.frames(session.config.fps)))
    session.finish()
    chunks = session.bank.get(session.bank.chunk_ids())
    question = f"which way did the {world.needles[0]} move ?"
    return first_tokens(session, folder, args, chunks, session.retriever, session.view(), question)


def large_latencies(session: StreamSession, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """The same with all of many large chunks in the context, drawn at random."""
    info = session.adapter.info
    num_tokens = max(1, round(args.chunk_mib * 2**20 / info.kv_bytes_per_token))
    positions = torch.arange(num_tokens).repeat(info.num_position_axes, 1)
    drawn = [random_chunk(info, 0, i, num_tokens) for i in range(args.chunks)]
    chunks = [replace(chunk, position_ids=positions, span=num_tokens) for chunk in drawn]
    everything = All()
    for chunk in chunks:
        everything.add(chunk)
    view = View(chunks[-1].end_seconds, chunks[-1].end_seconds, (), None)
    return first_tokens(session, folder, args, chunks, everything, view, "what is on screen now ?")


def first_tokens(
    session: StreamSession,
    folder: Path,
    args: argparse.Namespace,
    chunks: Sequence[ChunkKV],
    retriever: Retriever,
    view: View,
    question: str,
) -> dict[str, float]:
    """Median seconds to the first token of an answer, with the chunks in each place."""
    codec = session.config.kv_codec
    device = session.adapter.device

    def ask(bank: Bank) -> None:
        answerer = Answerer(session.adapter, session.config, bank, retriever, session.turns)
        tokens = answerer.answer(question, session.ingest.sink, view)
        next(tokens)
        tokens.close()  # type: ignore[attr-defined]

    with closing(MemoryBank(device, 0, ROOM_BYTES, codec=codec)) as ram, closing(on_disk(folder, codec)) as disk:
        for chunk in chunks:
            ram.put(chunk)
            disk.put(chunk)
        ways = {RAM: lambda: ask(ram), WARM: lambda: ask(disk), COLD: lambda: ask(disk)}
        return by_turns(ways, args.rounds, folder)


def on_disk(folder: Path, codec: str) -> MemoryBank:
    """A bank with a disk tier alone, whose segments are small: hardly a chunk waits in RAM to be written."""
    return MemoryBank("cpu", 0, 0, ROOM_BYTES, folder, codec=codec, segment_bytes=2**16)


def by_turns(ways: Mapping[str, Callable[[], object]], rounds: int, folder: Path) -> dict[str, float]:
    """Median seconds of each way. One round more than asked for: the first pays for what is set up once."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            if name == COLD:
                forget_pages(folder)
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(took[1:]) for name, took in seconds.items()}


def forget_pages(folder: Path) -> None:
    """Put the files below `folder` out of the system's cache."""
    for path in folder.rglob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def print_result(result: dict[str, Any], args: argparse.Namespace) -> None:
    what = f"{args.chunks} of {4 * args.chunks} chunks of {args.chunk_mib:g} MiB, {result['kv_codec']}"
    print(f"reads: {what}; {hardware_words()}\n")
    rows = []
    for name, v in result["gather"].items():
        rate = f"{v['bytes_per_second'] / 2**30:.2f} GiB/s"
        rows.append([name, f"{1000 * v['seconds']:.1f} ms", rate, f"{100 * v['share_of_copy']:.0f} %"])
    print(table(["from", "one gather", "rate", "share of the copy"], rows))
    for name, what in (("ttft_seconds", "what was retrieved of a short stream"), ("large_ttft_seconds", "as much as above")):
        ttft = result[name]
        rows = [[place, f"{1000 * took:.1f} ms", f"{took / ttft[RAM]:.2f}"] for place, took in ttft.items()]
        print(f"\nTime to the first token, with {what} in\n\n" + table(["from", "first token", "against RAM"], rows))
