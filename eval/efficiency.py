"""Speed and size in one run: ingest rate, latency against stream length, tokens, bytes per tier, resident memory.

What is compared is interleaved, since machines are noisy: medians and ratios are what to quote.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.frames import Chunk, Frame
from data.world import make_world
from eval.flags import amount, whole
from eval.model_speed import SIDE, measure, print_speed
from eval.report import hardware_words, table, write_json
from eval.scoring import median
from model_adapters.base import ModelAdapter, TokenRun
from model_adapters.registry import RANDOM
from retrieval.baselines import NoneRetriever
from vstream.answer import Answerer
from vstream.config import SessionConfig
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.session import StreamSession

WORLD_SEED = 2_000_000
QUESTION = "when did the {} appear ?"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes", type=amount(0.01), nargs="+", default=[1, 10, 60], help="stream lengths for the latency table"
    )
    parser.add_argument("--repeats", type=whole(1), default=15, help="questions per length and way to answer")
    parser.add_argument("--rounds", type=whole(1), default=5, help="rounds of the model side's table")
    parser.add_argument("--side", type=whole(28, 8192), default=SIDE, help="of the frames in the model side's table, in pixels")
    parser.add_argument("--stock-minutes", type=amount(0), default=10, help="longest stream that stock transformers re-reads")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the result as JSON-ready values."""
    config = chosen_settings(args)
    before = resident_bytes()
    choice = chosen_model(args)
    adapter = choice.load(config.gpu_bytes)
    loaded = resident_bytes()
    result: dict[str, Any] = {"rss_bytes": {"before_model": before, "with_model": loaded}}
    print(f"efficiency: {hardware_words()}\n")
    if adapter.info.name.startswith(RANDOM):
        # Weights that mean nothing have no session worth timing; trained ones end an answer before a step can be timed.
        result["model"] = measure(adapter, args.rounds, args.side, choice.compile_step)
        print_speed(result["model"], adapter.info.name)
        write_json(args.json, "efficiency", result)
        return result
    result["ingest"] = ingest_rates(adapter, config)
    result["latency"] = latencies(adapter, config, args)
    result["rss_bytes"]["at_the_end"] = resident_bytes()
    print_result(result, config)
    write_json(args.json, "efficiency", result)
    return result


def ingest_rates(adapter: ModelAdapter, config: SessionConfig, seconds: int = 60, rounds: int = 5) -> dict[str, Any]:
    """Frames per second with dropping off and on, chunk by chunk and with chunks that wait looked at together, by turns over
    the same minute of stream. CPU seconds beside them are what a busy machine does not stretch."""
    frames = list(make_world(1_999_999, seconds).frames(config.fps))
    drops = ("off", config.drop if config.drop != "off" else "pixel")
    ways = [(drop, waits) for drop in drops for waits in (False, True)]
    rates: dict[tuple[str, bool], list[tuple[float, float]]] = {way: [] for way in ways}
    kept: dict[str, float] = {}
    for _ in range(rounds):
        for (drop, waits), found in rates.items():
            with StreamSession(adapter, config.replace(drop=drop)) as session:
                start, cpu = time.perf_counter(), time.process_time()
                list(session.feed(frames, lambda waits=waits: waits))  # type: ignore[misc]
                session.finish()
                found.append((len(frames) / (time.perf_counter() - start), time.process_time() - cpu))
                kept[drop] = session.stats.num_kept_tokens / session.stats.num_seen_tokens
    return {
        f"{drop}{', together' if waits else ''}": {
            "frames_per_second": median([rate for rate, _ in found]),
            "times_real_time": median([rate for rate, _ in found]) / config.fps,
            "cpu_seconds": median([cpu for _, cpu in found]),
            "kept": kept[drop],
        }
        for (drop, waits), found in rates.items()
    }


def latencies(adapter: ModelAdapter, config: SessionConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time to first token and to the last, for each stream length and way to answer; the questions are interleaved."""
    rows: list[dict[str, Any]] = []
    sessions: list[tuple[float, StreamSession, list[Frame]]] = []
    for minutes in args.minutes:
        session = StreamSession(adapter, config)
        world = make_world(WORLD_SEED, round(minutes * 60), num_needles=6)
        frames: list[Frame] = []
        with Progress(f"watching {minutes:g} min", world.seconds) as progress:
            for frame in world.frames(config.fps):
                session.push(frame)
                if minutes <= args.stock_minutes:
                    frames.append(frame)
                progress.update(frame.pts_seconds)
        session.finish()
        sessions.append((minutes, session, frames))
        stats, bank = session.stats, session.bank
        rows.append(
            {
                "minutes": minutes,
                "num_seen_tokens": stats.num_seen_tokens,
                "num_kept_tokens": stats.num_kept_tokens,
                "num_stored_tokens": stats.num_stored_tokens,
                "bytes": {tier: bank.num_bytes(tier) for tier in ("gpu", "ram", "disk")},
                "index_bytes": session.retriever.num_bytes,
                "rss_bytes": resident_bytes(),
                "question": QUESTION.format(world.needles[0]),
                **{name: {"ttft": [], "total": []} for name in ("ours", "last window")},
            }
        )
    for _ in range(args.repeats + 1):
        for row, (_, session, _) in zip(rows, sessions, strict=True):
            for name in ("ours", "last window"):
                ttft, total, row[f"{name} context"] = ask(session, row["question"], name)
                row[name]["ttft"].append(ttft)
                row[name]["total"].append(total)
    for row, (_, session, frames) in zip(rows, sessions, strict=True):
        for name in ("ours", "last window"):
            # The first question of each kind pays for what is set up once.
            row[name] = {kind: median(values[1:]) for kind, values in row[name].items()}
        row["stock"] = reread(adapter, frames, row["question"]) if frames else None
        session.close()
    return rows


def ask(session: StreamSession, question: str, name: str) -> tuple[float, float, int]:
    """Seconds to the first token and to the last, and the tokens in context."""
    answerer = session.answerer
    if name == "last window":
        answerer = Answerer(session.adapter, session.config, session.bank, NoneRetriever(), session.turns)
    start = time.perf_counter()
    view = session.view()
    seen = time.perf_counter() - start
    *_, last = answerer.answer(question, session.ingest.sink, view)
    return seen + last.ttft_seconds, time.perf_counter() - start, last.num_context_tokens


def reread(adapter: ModelAdapter, frames: list[Frame], question: str) -> dict[str, Any]:
    """What stock transformers does for each question: tower and full forward over the whole video, then decoding."""
    start = time.perf_counter()
    pictures = np.stack([f.data for f in frames])
    whole = Chunk(0, pictures, tuple(f.pts_seconds for f in frames), 0.0, frames[-1].pts_seconds)
    visual = adapter.embed(adapter.picture(whole))
    runs: list[TokenRun] = [adapter.sink_run()]
    runs.append(adapter.chunk_run(whole, visual.grid, torch.ones(len(visual.embeds), dtype=torch.bool), visual))
    context = adapter.new_context(sum(run.num_tokens for run in runs) + 256)
    for run in runs:
        adapter.extend(context, run)
    first = math.nan
    for _ in adapter.generate(context, adapter.question_run(question), 16):
        if math.isnan(first):
            first = time.perf_counter() - start
    return {"ttft": first, "total": time.perf_counter() - start, "num_context_tokens": context.num_tokens}


def resident_bytes() -> int:
    """Memory of this process that is really in RAM. Linux; 0 elsewhere."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * resource.getpagesize()


def print_result(result: dict[str, Any], config: SessionConfig) -> None:
    rows = [
        [
            drop,
            f"{v['frames_per_second']:.0f}",
            f"{v['times_real_time']:.0f}×",
            f"{v['cpu_seconds']:.2f} s",
            f"{100 * v['kept']:.0f} %",
        ]
        for drop, v in result["ingest"].items()
    ]
    print(f"\nIngest at {config.fps:g} fps\n\n" + table(["dropping", "frames/s", "real time", "CPU time", "tokens kept"], rows))
    rows = []
    for row in result["latency"]:
        stock = row["stock"]
        rows.append(
            [
                f"{row['minutes']:g} min",
                f"{1000 * row['ours']['ttft']:.0f} / {1000 * row['ours']['total']:.0f} ms",
                f"{1000 * row['last window']['ttft']:.0f} / {1000 * row['last window']['total']:.0f} ms",
                f"{stock['ttft']:.2f} / {stock['total']:.2f} s" if stock else "–",
                row["ours context"],
                stock["num_context_tokens"] if stock else "–",
            ]
        )
    header = ["stream", "ours: first token / whole", "last window", "re-reading it all", "tokens in context", "of re-reading"]
    print("\nLatency of a question (median)\n\n" + table(header, rows))
    rows = [
        [
            f"{row['minutes']:g} min",
            row["num_seen_tokens"],
            row["num_kept_tokens"],
            *(mib(row["bytes"][tier]) for tier in ("gpu", "ram", "disk")),
            mib(row["index_bytes"]),
            mib(row["rss_bytes"]),
        ]
        for row in result["latency"]
    ]
    print("\nSize\n\n" + table(["stream", "visual tokens seen", "kept", "gpu tier", "ram", "disk", "index", "RSS"], rows))
    memory = result["rss_bytes"]
    print(f"\nRSS before the model {mib(memory['before_model'])}, with it {mib(memory['with_model'])}")
    first, last = result["latency"][0], result["latency"][-1]
    ratio = last["ours"]["ttft"] / first["ours"]["ttft"]
    print(f"TTFT of {last['minutes']:g} min : {first['minutes']:g} min of stream = {ratio:.2f}")


def mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
