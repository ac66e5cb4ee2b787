"""How fast the model side runs, each figure beside the limit that the machine showed in the same minutes.

Encoding and prefill are held against the fastest matrix product, decoding against the fastest read of memory: no step can be
faster than reading the weights once. Rounds are interleaved, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.frames import Chunk
from eval.report import table
from eval.scoring import median
from model_adapters.base import KVContext, ModelAdapter, TokenRun

SIDE, NUM_FRAMES, NUM_STEPS = 448, 8, 8
QUESTION = "What is happening now?"


class Bench:
    """One model with everything ready to be timed: eight frames of noise, their tokens, a context that holds them."""

    def __init__(self, adapter: ModelAdapter, side: int = SIDE) -> None:
        self.adapter = adapter
        frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 3, side, side), dtype=np.uint8)
        chunk = Chunk(0, frames, tuple(k / 2 for k in range(NUM_FRAMES)), 0.0, NUM_FRAMES / 2)
        self.picture = adapter.picture(chunk)
        visual = adapter.embed(self.picture)
        keep = torch.ones(len(visual.embeds), dtype=torch.bool)
        self.run: TokenRun = adapter.chunk_run(chunk, visual.grid, keep, visual)
        self.context = self.prefilled()

    def prefilled(self) -> KVContext:
        context = self.adapter.new_context(self.run.num_tokens + 256)
        self.adapter.extend(context, self.run)
        return context

    def steps(self) -> Iterator[str]:
        return self.adapter.generate(self.context.fork(), self.adapter.question_run(QUESTION), NUM_STEPS + 2)

    def seconds(self, work: Callable[[], object]) -> float:
        """On a CPU the processor's time per thread, which other programs on the machine do not stretch."""
        if self.adapter.device.type == "cpu":
            start = time.process_time()
            work()
            return (time.process_time() - start) / torch.get_num_threads()
        torch.accelerator.synchronize(self.adapter.device)
        start = time.perf_counter()
        work()
        torch.accelerator.synchronize(self.adapter.device)
        return time.perf_counter() - start

    def step_seconds(self, asked: str) -> float:
        """Median time of one decoded token, after the first two: with the second, a graph is made or taken up.

        asked: see `ModelAdapter.compile_steps`."""
        self.adapter.compile_steps(asked)
        stream = self.steps()
        next(stream, None)
        next(stream, None)
        return median([self.seconds(lambda: next(stream, None)) for _ in range(NUM_STEPS)])


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.inference_mode()
def measure(adapter: ModelAdapter, rounds: int = 5, side: int = SIDE, compile_step: str = "off") -> dict[str, Any]:
    """Figures and limits. *_flops: per call. bytes_per_step: weights and KV that one decoded token has to read.
    graph_step_seconds: of a token that is decoded by graphs, None where compile_step makes none."""
    bench = Bench(adapter, side)
    big = adapter.device.type == "cuda"
    left = torch.randn(*(2 * [8192 if big else 1024]), device=adapter.device).to(adapter.info.dtype)
    wide = torch.randn(*(2 * [16384 if big else 6144]), device=adapter.device).to(adapter.info.dtype)
    vector = wide[0].clone()
    work: dict[str, Callable[[], float]] = {
        "product": lambda: bench.seconds(lambda: left @ left),
        "encode": lambda: bench.seconds(lambda: adapter.embed(bench.picture)),
        "prefill": lambda: bench.seconds(bench.prefilled),
        "read": lambda: bench.seconds(lambda: wide @ vector),
        "decode": lambda: bench.step_seconds("off"),
    }
    if adapter.compile_steps(compile_step) != adapter.compile_steps("off"):
        work["graphs"] = lambda: bench.step_seconds(compile_step)
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, timed in work.items():
            found[name].append(timed())
    # The first round pays for what is set up once.
    best = {name: min(values[1:]) for name, values in found.items()}
    usual = {name: median(values[1:]) for name, values in found.items()}
    adapter.compile_steps("off")
    stream = bench.steps()
    next(stream, None)
    next(stream, None)
    step = flops(lambda: list(stream))
    kv_bytes = adapter.info.kv_bytes_per_token * bench.context.num_tokens
    # A decoded token multiplies every weight that it passes once.
    step_bytes = step // NUM_STEPS // 2 * adapter.info.dtype.itemsize + kv_bytes
    return {
        "num_frames": NUM_FRAMES,
        "num_tokens": bench.run.num_tokens,
        "side": side,
        "dtype": str(adapter.info.dtype).removeprefix("torch."),
        "peak_flops_per_second": 2 * left.shape[0] ** 3 / best["product"],
        "peak_bytes_per_second": wide.numel() * wide.element_size() / best["read"],
        "encode_flops": flops(lambda: adapter.embed(bench.picture)),
        "prefill_flops": flops(bench.prefilled),
        "bytes_per_step": step_bytes,
        "encode_seconds": usual["encode"],
        "prefill_seconds": usual["prefill"],
        "step_seconds": usual["decode"],
        "graph_step_seconds": usual.get("graphs"),
        "decoding": adapter.compile_steps(compile_step),
        "rounds": rounds,
    }


def print_speed(found: dict[str, Any], name: str) -> None:
    peak, read = found["peak_flops_per_second"], found["peak_bytes_per_second"]
    rows = []
    by_graphs = found["graph_step_seconds"]
    for words, amount, seconds, needed, limit in (
        ("encode, frames/s", found["num_frames"], found["encode_seconds"], found["encode_flops"], peak),
        ("prefill, tokens/s", found["num_tokens"], found["prefill_seconds"], found["prefill_flops"], peak),
        ("decode, tokens/s", 1, found["step_seconds"], found["bytes_per_step"], read),
        *([(f"… {found['decoding']}", 1, by_graphs, found["bytes_per_step"], read)] if by_graphs else []),
    ):
        most = amount * limit / needed
        rows.append([words, f"{amount / seconds:.1f}", f"{most:.1f}", f"{100 * amount / seconds / most:.0f} %"])
    print(f"Model side of {name}, {found['dtype']}: {found['num_frames']} frames of {found['side']} px a side,")
    print(f"{found['num_tokens']} tokens, median of {found['rounds']} interleaved rounds; in the same rounds")
    print(f"a matrix product ran at {peak / 1e9:.0f} GFLOP/s and memory was read at {read / 1e9:.1f} GB/s\n")
    print(table(["", "measured", "limit", "share"], rows))
