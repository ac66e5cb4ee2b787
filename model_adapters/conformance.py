"""What an adapter's conformance is checked on: a clip, the adapter's runs of it, and one stock forward over all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.errors import AdapterError
from data.frames import Chunk
from model_adapters.base import ChunkKV, TokenRun, VisualTokens
from model_adapters.cache import BufferContext
from model_adapters.references import Reference
from model_adapters.stock import StockAdapter

QUESTION = "What happened before the door was opened?"
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the largest value. float64 is not exact either: stock norms and rotary angles are computed in float32 always."""


@dataclass(frozen=True)
class StockPass:
    """What stock transformers made of the reference inputs in one forward. positions [P, S], embeds [S, D], logits [S, V]."""

    positions: torch.Tensor
    embeds: torch.Tensor
    logits: torch.Tensor


def clip(height: int, width: int, num_chunks: int = 3, fps: float = 2.0) -> list[Chunk]:
    """Pictures without hard edges, uint8 [2, 3, height, width] to a chunk, each frame another."""
    rng = np.random.default_rng(0)
    chunks = []
    for k in range(num_chunks):
        coarse = torch.from_numpy(rng.uniform(64, 192, (2, 3, 4, 4)))
        frames = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
        pts = (2 * k / fps, (2 * k + 1) / fps)
        chunks.append(Chunk(k, frames.round().to(torch.uint8).numpy(), pts, pts[0], pts[0] + 2 / fps))
    return chunks


def fitting_clip(adapter: StockAdapter, fps: float = 2.0) -> list[Chunk]:
    """A clip in a size that this adapter does not resize, wider than high where it has the choice."""
    for rows, columns in ((4, 6), (4, 4), (8, 14)):
        size = round(rows * adapter.cell), round(columns * adapter.cell)
        for _ in range(4):
            chunks = clip(*size, fps=fps)
            height, width = adapter.picture(chunks[0]).shape[-2:]
            if (height, width) == size:
                return chunks
            size = height, width
    raise AdapterError(f"{adapter.info.name} resizes every picture again and again; check its preprocessor_config.json")


class Conformance:
    """One adapter beside what stock transformers makes of the same clip: what the checks look at."""

    def __init__(self, adapter: StockAdapter, reference: Reference, fps: float = 2.0) -> None:
        self.adapter = adapter
        self.reference = reference
        self.chunks = chunks = fitting_clip(adapter, fps)
        self.inputs = reference.inputs(chunks, QUESTION)
        pictures = [adapter.picture(chunk) for chunk in chunks]
        if not torch.equal(pictures[0].cpu(), torch.from_numpy(chunks[0].frames)):
            # A family that resizes every picture: rounding there has a check of its own and must not be seen in the others.
            name = next(name for name in self.inputs if name.startswith("pixel_values"))
            values = torch.cat([adapter.pixels(picture) for picture in pictures])
            self.inputs[name] = values.reshape(self.inputs[name].shape)
        self.visuals = [adapter.embed(picture) for picture in pictures]
        self.runs = [self.run(chunk, visual) for chunk, visual in zip(chunks, self.visuals, strict=True)]
        self.bound = BOUNDS[adapter.info.dtype]
        self.stock = self.stock_pass()

    def run(self, chunk: Chunk, visual: VisualTokens) -> TokenRun:
        whole = torch.ones(len(visual.embeds), dtype=torch.bool)
        return self.adapter.chunk_run(chunk, visual.grid, whole, visual)

    @contextmanager
    def stock_attention(self) -> Iterator[None]:
        """The language model with transformers' own attention and mask."""
        config = self.adapter.language.config
        held = config._attn_implementation
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = held

    def stock_pass(self) -> StockPass:
        seen: dict[str, Any] = {}
        hook = self.adapter.language.register_forward_pre_hook(lambda _m, _a, given: seen.update(given), with_kwargs=True)
        try:
            with self.stock_attention(), torch.inference_mode():
                logits = self.adapter.model(**self.inputs, use_cache=False).logits[0]
        finally:
            hook.remove()
        embeds, positions = seen["inputs_embeds"][0], seen.get("position_ids")
        if positions is None:
            positions = torch.arange(len(embeds), device=embeds.device)[None]
        # Three axes come as [3, 1, S], or as [4, 1, S] behind an axis for packed text; one axis comes as [1, S].
        axes = self.adapter.info.num_position_axes
        return StockPass(positions[-axes:].reshape(axes, -1), embeds, logits)

    def watched(self) -> tuple[BufferContext, list[ChunkKV]]:
        """The clip prefilled chunk by chunk behind the sink, as ingest does it; and what was stored."""
        adapter = self.adapter
        context, stored = adapter.new_context(64), []
        for number, run in enumerate([adapter.sink_run(), *self.runs], start=-1):
            keys, values = adapter.extend(context, run)
            start, end = (0.0, 0.0) if number < 0 else (self.chunks[number].start_seconds, self.chunks[number].end_seconds)
            stored.append(ChunkKV(number, keys, values, run.position_ids, run.span, start, end))
        return context, stored

    def positions(self) -> torch.Tensor:
        """The positions [P, S] that the adapter gives to sink, chunks and question, as its language model gets them."""
        context = self.adapter.new_context(1)
        runs = [self.adapter.sink_run(), *self.runs, self.adapter.question_run(QUESTION)]
        place = self.adapter.placement.place
        placed = torch.cat([place(context.cursor, r.position_ids, r.span, r.is_video) for r in runs], 1)
        return self.adapter._batched(placed).reshape(placed.shape)

    def embeds(self) -> torch.Tensor:
        runs = [self.adapter.sink_run(), *self.runs, self.adapter.question_run(QUESTION)]
        return torch.cat([run.embeds for run in runs])
