"""A library of encoded streams: the frozen tower runs once per chunk, and many training contexts are cut from the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.change import ChangeDetector
from data.world import World, make_world
from model_adapters.tiny.clips import SIDES, SPEC, draw, random_light, random_quality
from model_adapters.tiny.warmup import embed

CELLS = 16
"""Visual tokens of one chunk before dropping."""


@dataclass(frozen=True)
class EncodedStream:
    """A world and, for each of its seconds, the library row that holds its chunk and the cells that dropping keeps.

    rows: int [seconds]. keep: bool [seconds, 16]. partial: second -> row of a chunk whose only frame is its first.
    """

    world: World
    rows: np.ndarray
    keep: np.ndarray
    partial: dict[int, int]


PARTIALS = 3
"""Seconds per stream of which a one-frame chunk is kept as well."""
QUIET, QUIET_GAP_SECONDS = 0.15, (2, 16)
"""Share of streams with long gaps between the objects, and these gaps."""


class Library:
    """`num_streams` encoded worlds of `seconds` each, and the tower's output for all their chunks.

    streams: the worlds. embeds, deepstack: bfloat16 [rows, 16, D]. `refresh` replaces the oldest streams by new ones.
    """

    def __init__(self, visual: Any, num_streams: int, seconds: int, rng: np.random.Generator) -> None:
        self.visual = visual
        self.seconds = seconds
        self.rng = rng
        self.rows_per_stream = seconds + PARTIALS
        width = visual.config.out_hidden_size
        self.embeds = torch.zeros(num_streams * self.rows_per_stream, CELLS, width, dtype=torch.bfloat16)
        self.deepstack = torch.zeros_like(self.embeds)
        self.streams = [self._encode(slot) for slot in range(num_streams)]
        self._oldest = 0

    def refresh(self, num: int) -> None:
        """Replace the `num` oldest streams."""
        for _ in range(num):
            self.streams[self._oldest] = self._encode(self._oldest)
            self._oldest = (self._oldest + 1) % len(self.streams)

    @torch.no_grad()
    def _encode(self, slot: int) -> EncodedStream:
        rng = self.rng
        world = make_world(
            int(rng.integers(2**62)),
            self.seconds,
            side=int(rng.choice(SIDES)),
            num_needles=4,
            min_objects_for_distractors=int(rng.choice([0, 40])),
        )
        if rng.random() < QUIET:
            world = world.spread_out(rng, QUIET_GAP_SECONDS)
        chunks, keep, partial = _chunks(world, self.seconds, rng)
        row = slot * self.rows_per_stream
        with torch.autocast("cpu", torch.bfloat16):
            embeds, deepstack = embed(self.visual, torch.stack(chunks + list(partial.values())))
        self.embeds[row : row + self.rows_per_stream] = embeds.to(torch.bfloat16)
        self.deepstack[row : row + self.rows_per_stream] = deepstack.to(torch.bfloat16)
        stills = {second: row + self.seconds + i for i, second in enumerate(partial)}
        return EncodedStream(world, np.arange(row, row + self.seconds), keep, stills)


def _chunks(
    world: World, seconds: int, rng: np.random.Generator
) -> tuple[list[torch.Tensor], np.ndarray, dict[int, torch.Tensor]]:
    quality, light = random_quality(rng), random_light(rng)
    late = float(rng.uniform(0, 0.06)) if rng.random() < 0.3 else 0.0
    threshold = float(rng.uniform(0.02, 0.07)) if rng.random() < 0.85 else -1.0
    every = int(rng.choice([8, 16, 32, 1000]))
    detector = ChangeDetector(SPEC.cell, threshold, "last_kept" if rng.random() < 0.8 else "previous")
    chunks = [draw(world, [k + late, k + 0.5 + (late if rng.random() < 0.5 else 0.0)], quality, light) for k in range(seconds)]
    keep = np.stack([detector.keep(c, whole=k % every == 0).reshape(-1).numpy() for k, c in enumerate(chunks)])
    stills = {int(k): draw(world, [k + late] * 2, quality, light) for k in rng.choice(seconds, PARTIALS, replace=False)}
    return chunks, keep, stills
