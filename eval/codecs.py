"""Every codec over the same stored streams: bytes per token, time, error of the logits, and accuracy, pair by pair.

Each codec gets banks of its own, without a GPU tier, that are given the same chunks; the questions, the chunks that retrieval
chose for them and the window are the same for all. So a difference to `native` is the codec's alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.questions import WorldQuestion, questions_about
from data.world import make_world
from eval.flags import SEED, amount, whole
from eval.needle import delivered, moments_of
from eval.report import hardware_words, table, write_json
from eval.scoring import exact, median, rate
from memory import DiskStore, MemoryBank, RamStore
from memory.codecs import CODECS, Codec, create_codec, decoded
from memory.codecs.entropy import Entropy
from model_adapters.base import ChunkKV
from vstream.answer import Answerer, View
from vstream.config import SessionConfig, from_flags
from vstream.models import chosen_model
from vstream.progress import Progress
from vstream.recorded import Reel
from vstream.session import StreamSession

STORE_BYTES = 2**32
BF16_BYTES = 2


@dataclass
class Tally:
    """What was measured of one codec. Lists have one number per chunk or per question."""

    codec: Codec
    num_tokens: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    logit_errors: list[tuple[float, float]] = field(default_factory=list)
    """Mean and largest difference of the logits of an answer's first token."""
    right: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=whole(1), default=12)
    parser.add_argument("--seconds", type=whole(1), default=60, help="length of each stream")
    parser.add_argument("--moments", type=whole(1, 10_000), default=5, help="times per stream at which all families are asked")
    parser.add_argument("--first-seed", type=SEED, default=1_000_000, help="seeds of the streams; training draws others")
    parser.add_argument("--encode", choices=("h264", "vp9", "none"), default="none", help="how frames are delivered")
    parser.add_argument(
        "--coarseness", type=amount(0.001, 1000), nargs="*", default=[], help="also try the entropy-coded one with these steps"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = from_flags(args)
    adapter = chosen_model(args).load(config.gpu_bytes)
    tallies = {name: Tally(create_codec(name)) for name in CODECS}
    tallies |= {f"entropy {step:g}": Tally(Entropy(step)) for step in args.coarseness}
    num_undropped = 0
    with Progress("codecs", args.streams, "streams") as progress:
        for number in range(args.streams):
            with tempfile.TemporaryDirectory() as folder, StreamSession(adapter, config) as session:
                num_undropped += one_stream(session, tallies, args, args.first_seed + number, Path(folder))
            progress.update(number + 1)
    info = adapter.info
    native = num_undropped * info.num_layers * info.num_kv_heads * info.head_dim * 2 * BF16_BYTES
    result: dict[str, Any] = {
        "num_questions": len(tallies["native"].right),
        "num_undropped_tokens": num_undropped,
        "num_tokens": tallies["native"].num_tokens,
        "undropped_bf16_bytes": native,
        "codecs": {name: summary(tally, tallies["native"], native) for name, tally in tallies.items()},
    }
    print_result(result, config)
    write_json(args.json, "codecs", result)
    return result


def one_stream(session: StreamSession, tallies: dict[str, Tally], args: argparse.Namespace, seed: int, folder: Path) -> int:
    """Watch one stream, ask along, store its chunks with every codec. Returns its tokens if nothing had been dropped."""
    world, rng = make_world(seed, args.seconds), np.random.default_rng(seed)
    reel = Reel(session, delivered(world, args.encode, 10, folder, session.config.fps, jitter=0.0))
    banks = {name: MemoryBank(session.adapter.device, 0, STORE_BYTES, codec=tally.codec) for name, tally in tallies.items()}
    known: set[int] = set()
    for at in moments_of(world, args.moments):
        reel.watch_until(at)
        new = sorted(set(session.bank.chunk_ids()) - known)
        known.update(new)
        for chunk in session.bank.get(new):
            for name, tally in tallies.items():
                measure(tally, chunk)
                banks[name].put(chunk)
        for question in questions_about(world, float(at), rng):
            put(session, tallies, banks, question)
    chunks = session.bank.get(sorted(known))
    for name, tally in tallies.items():
        weigh(tally, chunks, folder / name.replace(" ", "-"))
        banks[name].close()
    stored = sum(chunk.num_tokens for chunk in chunks)
    return stored + sum(moment.num_seen_tokens - moment.num_kept_tokens for moment in session.timeline)


def measure(tally: Tally, chunk: ChunkKV) -> None:
    """Time one chunk there and back."""
    start = time.perf_counter()
    packet = tally.codec.encode(chunk)
    middle = time.perf_counter()
    decoded(packet)
    end = time.perf_counter()
    if chunk.num_tokens:
        tally.encode_seconds.append((middle - start) / chunk.num_tokens)
        tally.decode_seconds.append((end - middle) / chunk.num_tokens)


def weigh(tally: Tally, chunks: list[ChunkKV], folder: Path) -> None:
    """What the chunks really take up in slabs, and in segment files with all their headers."""
    ram = RamStore(STORE_BYTES, codec=tally.codec)
    disk = DiskStore(folder, STORE_BYTES, codec=tally.codec)
    for chunk in chunks:
        ram.put(chunk)
        disk.put(chunk)
    disk.flush()
    tally.num_tokens += sum(chunk.num_tokens for chunk in chunks)
    tally.ram_bytes += ram.capacity_bytes - ram.num_free_bytes
    tally.disk_bytes += sum(file.stat().st_size for file in folder.iterdir())
    ram.close()


def put(session: StreamSession, tallies: dict[str, Tally], banks: dict[str, MemoryBank], question: WorldQuestion) -> None:
    """One question, with the same hits for every codec."""
    view = session.view(question.at_seconds)
    logits = {}
    for name, tally in tallies.items():
        answerer = Answerer(session.adapter, session.config, banks[name], session.retriever, session.turns)
        *_, answer = answerer.answer(question.question, session.ingest.sink, view)
        tally.right.append(exact(answer.text, question.answer))
        tally.texts.append(answer.text)
        logits[name] = first_logits(session, banks[name], question.question, view)
        error = (logits[name] - logits["native"]).abs()
        tally.logit_errors.append((float(error.mean()), float(error.max())))


def first_logits(session: StreamSession, bank: MemoryBank, question: str, view: View) -> torch.Tensor:
    """float32 [vocabulary]: the logits from which an answer's first token is chosen."""
    adapter = session.adapter
    window = [kv.chunk_id for kv in view.window]
    hits = session.retriever.search(adapter.encode_question(question), session.config.top_k, view.until_seconds, window)
    chunks = bank.get([hit.chunk_id for hit in sorted(hits, key=lambda hit: hit.start_seconds)])
    partial = [view.partial] if view.partial else []
    context = adapter.new_context(1024)
    adapter.append(context, [session.ingest.sink, *chunks, *view.window, *partial])
    return adapter.logits(context, adapter.question_run(question))[-1]


def summary(tally: Tally, native: Tally, undropped_bytes: int) -> dict[str, Any]:
    """Ratios are of the bf16 bytes of the same streams without dropping."""
    found = rate(tally.right)
    return {
        "num_bytes": {"ram": tally.ram_bytes, "disk": tally.disk_bytes},
        "bytes_per_token": {"ram": tally.ram_bytes / tally.num_tokens, "disk": tally.disk_bytes / tally.num_tokens},
        "times_smaller": {"ram": undropped_bytes / tally.ram_bytes, "disk": undropped_bytes / tally.disk_bytes},
        "encode_seconds_per_token": median(tally.encode_seconds),
        "decode_seconds_per_token": median(tally.decode_seconds),
        "logit_error": {
            "mean": float(np.mean([mean for mean, _ in tally.logit_errors])),
            "max": max(largest for _, largest in tally.logit_errors),
        },
        "accuracy": {"right": found.right, "n": found.n, "words": str(found)},
        "won": sum(a and not b for a, b in zip(tally.right, native.right, strict=True)),
        "lost": sum(b and not a for a, b in zip(tally.right, native.right, strict=True)),
        "same_text": sum(a == b for a, b in zip(tally.texts, native.texts, strict=True)),
    }


def print_result(result: dict[str, Any], config: SessionConfig) -> None:
    print(f"codecs: {result['num_questions']} questions, drop={config.drop}; {hardware_words()}\n")
    print("\n".join([table(HEADER, list(rows(result))), ""]))
    kept = result["num_tokens"] / result["num_undropped_tokens"]
    print(f"Smaller than bf16 keys and values of the same streams without dropping; {100 * kept:.0f} % of tokens are kept.")


HEADER = ["codec", "bytes per token: RAM / disk", "smaller: RAM / disk", "encode / decode µs per token"]
HEADER += ["logit error: mean / max", "exact match in %", "won / lost / same words against native"]


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    for name, v in result["codecs"].items():
        yield [
            name,
            f"{v['bytes_per_token']['ram']:.0f} / {v['bytes_per_token']['disk']:.0f}",
            f"{v['times_smaller']['ram']:.1f}× / {v['times_smaller']['disk']:.1f}×",
            f"{1e6 * v['encode_seconds_per_token']:.0f} / {1e6 * v['decode_seconds_per_token']:.0f}",
            f"{v['logit_error']['mean']:.3f} / {v['logit_error']['max']:.1f}",
            v["accuracy"]["words"],
            f"{v['won']} / {v['lost']} / {v['same_text']}",
        ]
