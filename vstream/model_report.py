"""What a model is and what a stream costs with it: memory for weights, KV per token and hour, and what fits into each tier."""

from __future__ import annotations

import numpy as np
import torch

from data.change import num_cells
from data.errors import AdapterError
from data.frames import Chunk
from model_adapters.base import ModelAdapter
from model_adapters.registry import Budget, gib, preset_for
from retrieval.chunk_index import chunk_bytes
from vstream.config import SessionConfig
from vstream.models import ModelChoice, preset_line

HEIGHT, WIDTH = 720, 1280
"""The picture that costs are told for."""
DROP_RATIOS = (0.0, 0.5, 0.8)
Row = tuple[str, bool, str]
"""Name, whether it works, and the detail."""


def model_rows(choice: ModelChoice, config: SessionConfig) -> list[Row]:
    """What `doctor` prints of a model. What cannot be loaded is a row; what can be told without loading it still is."""
    rows: list[Row] = []
    preset = preset_for(choice.model)
    if preset is not None:
        rows.append(("preset", True, preset_line(preset)))
    try:
        budget = choice.needs()
        rows.append(("weights", True, weights_line(budget)))
        adapter = choice.load(config.gpu_bytes)
    except AdapterError as error:
        return [*rows, ("model", False, str(error))]
    rows.insert(0, ("model", True, describe(adapter)))
    rows.append(("decoding", True, adapter.compile_steps(choice.compile_step)))
    visual, text = chunk_tokens(adapter, config)
    kept = [text + visual * (1 - ratio) for ratio in DROP_RATIOS]
    hourly = [adapter.info.kv_bytes_per_token * tokens * 3600 / config.chunk_seconds for tokens in kept]
    dropped = ", ".join(f"{ratio:.0%}" for ratio in DROP_RATIOS[1:])
    rows.append(
        (
            "kv",
            True,
            f"{adapter.info.kv_bytes_per_token} bytes per token; {visual} visual and {text} text tokens per chunk of"
            f" {config.chunk_seconds:g} s of {WIDTH}x{HEIGHT} at {config.fps:g} fps",
        )
    )
    rows.append(("kv per hour", True, f"{gib(hourly[0])}; with {dropped} dropped {', '.join(map(gib, hourly[1:]))}"))
    for tier in ("gpu", "ram", "disk"):
        num_bytes = getattr(config, f"{tier}_bytes")
        spans = [span(3600 * num_bytes / per_hour) for per_hour in hourly]
        rows.append((f"{tier} holds", True, f"{spans[0]} in {gib(num_bytes)}; with {dropped} dropped {', '.join(spans[1:])}"))
    per_hour = (
        chunk_bytes(adapter.info.num_layers, adapter.info.num_kv_heads * adapter.info.head_dim) * 3600 / config.chunk_seconds
    )
    holds = (
        f"{span(3600 * config.index_bytes / per_hour)} in {gib(config.index_bytes)}; then a stored memory is searched on disk"
    )
    rows.append(("index holds", True, f"{holds}, and without one vectors get coarser"))
    return rows


def describe(adapter: ModelAdapter) -> str:
    """One line: what a model is."""
    info = adapter.info
    return (
        f"{info.name}: {info.family}, {info.num_layers} layers, {info.num_kv_heads} KV heads of {info.head_dim},"
        f" {str(info.dtype).removeprefix('torch.')} on {adapter.device}"
    )


def weights_line(budget: Budget) -> str:
    """One line: what the weights take and what is free."""
    kind = "as stored" if budget.dtype is None else f"in {str(budget.dtype).removeprefix('torch.')}"
    return (
        f"{budget.num_parameters / 1e6:,.1f} million parameters, {gib(budget.weight_bytes)} {kind};"
        f" {gib(budget.free_bytes)} free on {budget.where}; {budget.kv_bytes_per_token} bytes of KV per token"
    )


def chunk_tokens(adapter: ModelAdapter, config: SessionConfig) -> tuple[int, int]:
    """(visual, text) tokens of one chunk in which nothing is dropped."""
    num_frames = round(config.fps * config.chunk_seconds)
    times = tuple(i / config.fps for i in range(num_frames))
    chunk = Chunk(0, np.zeros((num_frames, 3, HEIGHT, WIDTH), np.uint8), times, 0.0, config.chunk_seconds)
    picture = adapter.picture(chunk)
    grid = (len(picture) // adapter.frames_per_slot, *num_cells(picture, adapter.cell))
    visual = grid[0] * grid[1] * grid[2]
    run = adapter.chunk_run(chunk, grid, torch.ones(visual, dtype=torch.bool), None)
    return visual, run.num_tokens - visual


def span(seconds: float) -> str:
    """A length of time as a person reads it."""
    unit, name = next(u for u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= u[0] or u[0] == 1)
    return f"{seconds / unit:.1f} {name}"
