"""Pictures for training: chunks of random worlds, worn the way encoders, scalers and cameras wear them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Light:
    """How bright a stream is: down to 1 - `depth` and back, once per `period_seconds`."""

    depth: float = 0.0
    period_seconds: float = 60.0
    phase: float = 0.0

    def gain(self, t: float) -> float:
        """What every level of the picture at stream time `t` is multiplied with."""
        return 1 - self.depth * (1 - math.cos(2 * math.pi * (t / self.period_seconds + self.phase))) / 2


FULL_LIGHT = Light()


def random_light(rng: np.random.Generator) -> Light:
    """Full light for half of all streams; dusk, clouds and slow fades for the others."""
    if rng.random() < 0.5:
        return FULL_LIGHT
    return Light(float(rng.uniform(0.1, 0.5)), float(np.exp(rng.uniform(np.log(20), np.log(600)))), float(rng.random()))


def random_background(rng: np.random.Generator) -> Background:
    return Background(tuple(int(v) for v in rng.integers(0, 61, 3)), float(rng.uniform(-25, 25)), int(rng.integers(2**31)))


def worn(picture: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [3, H, W] after one round of JPEG with halved colour resolution: near enough to H.264 and VP9."""
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def lit(picture: np.ndarray, gain: float) -> np.ndarray:
    """uint8 [3, H, W], every level multiplied with `gain`."""
    return picture if gain == 1 else np.rint(picture * np.float32(gain)).astype(np.uint8)


def draw(world: World, times: list[float], quality: int | None, light: Light) -> torch.Tensor:
    """uint8 [len(times), 3, 128, 128]: the world's pictures at these stream times in this light, worn if `quality` is given."""
    pictures = [lit(world.frame(t), light.gain(t)) for t in times]
    if quality is not None:
        pictures = [worn(p, quality) for p in pictures]
    return resize(torch.from_numpy(np.stack(pictures)), SPEC)


def random_quality(rng: np.random.Generator) -> int | None:
    return int(rng.integers(35, 96)) if rng.random() < 0.6 else None


@dataclass(frozen=True)
class Clip:
    """One chunk in the light it was drawn in. times: of its two pictures. labels: (colour, shape, direction); the last index
    of each means none."""

    world: World
    times: list[float]
    quality: int | None
    light: Light
    labels: tuple[int, int, int]

    def pictures(self, light: Light | None = None) -> torch.Tensor:
        """uint8 [2, 3, 128, 128], in another `light` if one is given."""
        return draw(self.world, self.times, self.quality, light or self.light)


def random_clip(rng: np.random.Generator) -> Clip:
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
    times, quality, light = [t, min(later, length - 0.001)], random_quality(rng), random_light(rng)
    if not stays:
        return Clip(world, times, quality, light, (len(COLORS), len(SHAPES), STILL))
    direction = STILL if later == t else list(DIRECTIONS).index(stay.direction)
    return Clip(world, times, quality, light, (list(COLORS).index(color), SHAPES.index(shape), direction))
