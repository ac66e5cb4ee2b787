"""Pictures for training: chunks of random worlds, worn the way encoders, scalers and cameras wear them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from data.world import COLORS, DIRECTIONS, PAIRS, SHAPES, Background, Stay, World
from model_adapters.preprocess import PixelSpec, resize
from model_adapters.tiny.config import PREPROCESSOR

SPEC = PixelSpec(
    patch_size=PREPROCESSOR["patch_size"],
    merge_size=PREPROCESSOR["merge_size"],
    temporal_patch_size=PREPROCESSOR["temporal_patch_size"],
    min_pixels=PREPROCESSOR["size"]["shortest_edge"],
    max_pixels=PREPROCESSOR["size"]["longest_edge"],
    mean=tuple(PREPROCESSOR["image_mean"]),
    std=tuple(PREPROCESSOR["image_std"]),
)
SIDES = (96, 112, 128, 128, 144, 160, 192, 240, 320)
STILL = len(DIRECTIONS)
"""Direction label of a chunk that shows one instant twice, as a question in the middle of a chunk does."""


def random_background(rng: np.random.Generator) -> Background:
    return Background(tuple(int(v) for v in rng.integers(0, 61, 3)), float(rng.uniform(-25, 25)), int(rng.integers(2**31)))


def worn(picture: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """uint8 [3, H, W] after one round of JPEG with halved colour resolution: near enough to H.264 and VP9."""
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def draw(world: World, times: list[float], quality: int | None, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [len(times), 3, 128, 128]: the world's pictures at these stream times, worn if `quality` is given."""
    pictures = [world.frame(t) for t in times]
    if quality is not None:
        pictures = [worn(p, rng, quality) for p in pictures]
    return resize(torch.from_numpy(np.stack(pictures)), SPEC)


def random_quality(rng: np.random.Generator) -> int | None:
    return int(rng.integers(35, 96)) if rng.random() < 0.6 else None


def labelled_clip(rng: np.random.Generator) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """One chunk, uint8 [2, 3, 128, 128], and its labels (colour, shape, direction); the last index of each means none."""
    color, shape = PAIRS[int(rng.integers(len(PAIRS)))]
    length = int(rng.integers(2, 5))
    stay = Stay(
        color=color,
        shape=shape,
        direction=list(DIRECTIONS)[int(rng.integers(4))],
        radius=float(rng.uniform(0.15, 0.23)),
        mid_x=float(rng.uniform(0.31, 0.69)),
        mid_y=float(rng.uniform(0.31, 0.69)),
        speed=float(rng.uniform(0.10, 0.16)),
        start_seconds=0,
        end_seconds=length,
    )
    kind = rng.random()
    stays = () if kind < 0.06 else (stay,)
    world = World(length, stays, random_background(rng), side=int(rng.choice(SIDES)))
    t = float(rng.integers(0, length)) + (float(rng.uniform(0, 0.06)) if rng.random() < 0.3 else 0.0)
    later = t if kind > 0.9 else t + float(rng.uniform(0.42, 0.5)) if rng.random() < 0.3 else t + 0.5
    clip = draw(world, [t, min(later, length - 0.001)], random_quality(rng), rng)
    if not stays:
        return clip, (len(COLORS), len(SHAPES), STILL)
    direction = STILL if later == t else list(DIRECTIONS).index(stay.direction)
    return clip, (list(COLORS).index(color), SHAPES.index(shape), direction)
