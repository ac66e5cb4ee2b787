"""Reopening a stored memory: does its time grow with what is in it? And what do checksums cost when chunks are read?

Memories of several lengths are written with random KV of the model's own shapes, in large commits, which is fast; then they
are opened as sessions, by turns. KV has one token per chunk: the time to open does not depend on it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.efficiency import resident_bytes
from eval.flags import amount, whole
from eval.random_memory import CHUNK_SECONDS, random_chunk, random_record
from eval.report import hardware_words, table, write_json
from eval.scoring import median
from memory import open_memory
from memory.codecs.native import Native
from memory.files import passing_folder
from memory.layout import PackedChunk, checksum, pack, unpack
from memory.segment_file import read_block, write_segment
from memory.stored import Pending
from memory.upkeep import merge
from model_adapters.base import ChunkKV, ModelAdapter
from vstream.config import SessionConfig
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.remembered import identity_of
from vstream.session import StreamSession
from vstream.ui.timeline import bars_of

QUESTION = "when did the red circle appear ?"
CHUNKS_PER_COMMIT = 1800
NUM_DIFFERENT = 64
"""Chunks that are drawn; the others repeat their numbers under ids and times of their own."""
READ_TOKENS = (8, 64, 512)
READS = 30
STEPS = ("open", "first answer", "next answer", "timeline", "timeline again")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=amount(0.001), nargs="+", default=[1, 24], help="lengths of stream")
    parser.add_argument("--repeats", type=whole(1), default=7, help="how often each is opened")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the folder for temporary files")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write, open, measure, print; returns the result as JSON-ready values."""
    config = chosen_settings(args)
    adapter = chosen_model(args).load(config.gpu_bytes)
    with passing_folder(args.folder or Path(tempfile.gettempdir())) as place:
        rows = [write(place / f"{hours:g}h", adapter, config, hours) for hours in args.hours]
        for _ in range(args.repeats + 1):
            for row in rows:
                measure(place / f"{row['hours']:g}h", adapter, config, row)
        result = {"reopen": [summed(row) for row in rows], "checksums": checksums(adapter, place)}
    print_result(result)
    write_json(args.json, "reopen", result)
    return result


def write(folder: Path, adapter: ModelAdapter, config: SessionConfig, hours: float) -> dict[str, Any]:
    """A memory of so many hours. Returns the row that measurements go into."""
    num_chunks = round(hours * 3600 / CHUNK_SECONDS)
    drawn = [random_chunk(adapter.info, 0, i, num_tokens=1) for i in range(NUM_DIFFERENT)]
    began = time.perf_counter()
    memory = open_memory(folder, identity_of(adapter.info, config), write=True)
    with Progress(f"writing {hours:g} h", num_chunks, "chunks") as progress:
        for first in range(0, num_chunks, CHUNKS_PER_COMMIT):
            batch = [_pending(drawn[i % NUM_DIFFERENT], i) for i in range(first, min(num_chunks, first + CHUNKS_PER_COMMIT))]
            memory.commit(batch)
            merge(memory)
            progress.update(first + len(batch))
    row = {"hours": hours, "num_chunks": num_chunks, "num_bytes": memory.num_bytes, "num_segments": memory.num_segments}
    memory.close()
    return {**row, "write_seconds": time.perf_counter() - began, "times": {}}


def _pending(drawn: ChunkKV, chunk_id: int) -> Pending:
    start = chunk_id * CHUNK_SECONDS
    chunk = replace(drawn, chunk_id=chunk_id, start_seconds=start, end_seconds=start + CHUNK_SECONDS)
    return Pending(chunk, random_record(0, chunk, thumbnail_bytes=2000))


def measure(folder: Path, adapter: ModelAdapter, config: SessionConfig, row: dict[str, Any]) -> None:
    """Open one memory, ask it twice and draw its timeline twice, as the page does."""
    before = resident_bytes()
    marks = [time.perf_counter()]
    session = StreamSession.open(adapter, folder, config)
    marks.append(time.perf_counter())
    opened = resident_bytes()
    for _ in range(2):
        session.answer(QUESTION)
        marks.append(time.perf_counter())
    answered = resident_bytes()
    for _ in range(2):
        bars = bars_of(session.timeline, session.bank.tiers().get, steps=session.bank.steps())
        marks.append(time.perf_counter())
    row["num_index_bytes"] = session.retriever.num_bytes
    session.close()
    assert sum(bar.num_chunks for bar in bars) == row["num_chunks"]
    for name, start, end in zip(STEPS, marks, marks[1:], strict=False):
        row["times"].setdefault(name, []).append(end - start)
    row["times"].setdefault("rss to open", []).append(float(max(0, opened - before)))
    row["times"].setdefault("rss to answer", []).append(float(max(0, answered - opened)))


def summed(row: dict[str, Any]) -> dict[str, Any]:
    """Medians; the first opening of each pays for what is set up once, and is left out."""
    return {**{k: v for k, v in row.items() if k != "times"}, **{name: median(t[1:]) for name, t in row["times"].items()}}


def checksums(adapter: ModelAdapter, place: Path) -> list[dict[str, Any]]:
    """Reading chunks whose pages are warm, in parts: the read itself, the checksum, and turning bytes into a chunk."""
    rows = []
    for num_tokens in READ_TOKENS:
        packed: PackedChunk = pack(Native().encode(random_chunk(adapter.info, 0, 0, num_tokens)))
        path = place / f"read-{num_tokens}.safetensors"
        _, places = write_segment(path, {0: packed})
        times: dict[str, list[float]] = {"read": [], "checksum": [], "whole": []}
        for _ in range(READS + 1):
            start = time.perf_counter()
            block = read_block(path, places[0])
            read = time.perf_counter()
            checksum(packed.layout, block)
            checked = time.perf_counter()
            unpack(packed.layout, read_block(path, places[0]), packed.crc32)
            times["read"].append(read - start)
            times["checksum"].append(checked - read)
            times["whole"].append(time.perf_counter() - checked)
        found = {name: median(values[1:]) for name, values in times.items()}
        num_bytes = packed.data.numel()
        rows.append({"num_tokens": num_tokens, "num_bytes": num_bytes, **found, "share": found["checksum"] / found["whole"]})
    return rows


def print_result(result: dict[str, Any]) -> None:
    print(f"Reopening, medians, {hardware_words()}, {torch.get_num_threads()} threads")
    header = ["stream", "chunks", "on disk", "segments", "index in RAM", "RSS to open, to answer", *STEPS]
    rows = [
        [
            f"{row['hours']:g} h",
            row["num_chunks"],
            f"{row['num_bytes'] / 2**20:.0f} MiB",
            row["num_segments"],
            f"{row['num_index_bytes'] / 2**20:.1f} MiB",
            f"{row['rss to open'] / 2**20:.1f}, {row['rss to answer'] / 2**20:.1f} MiB",
            *(_ms(row[name]) for name in STEPS),
        ]
        for row in result["reopen"]
    ]
    print(table(header, rows))
    first, last = result["reopen"][0], result["reopen"][-1]
    ratios = ", ".join(f"{name} {last[name] / first[name]:.2f}" for name in STEPS)
    print(f"\n{last['hours']:g} h : {first['hours']:g} h: {ratios}")
    print("\nChecksums on read, pages warm")
    header = ["tokens", "bytes", "read", "checksum", "read, checked, unpacked", "share of checksum"]
    names = ("read", "checksum", "whole")
    lines = []
    for row in result["checksums"]:
        times = [_ms(row[name]) for name in names]
        lines.append([row["num_tokens"], row["num_bytes"], *times, f"{100 * row['share']:.0f} %"])
    print(table(header, lines))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
