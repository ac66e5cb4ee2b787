"""Pixels to patches, with torch on the model's device, from what the checkpoint's preprocessor_config.json says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

MAX_ASPECT_RATIO = 200
JOINT = "processor_config.json"
VIDEO, IMAGE = ("video_processor", "video_preprocessor_config.json"), ("image_processor", "preprocessor_config.json")
"""Kinds of processors: their part of the joint file, and the file of their own."""


@dataclass(frozen=True)
class PixelSpec:
    """How a family of the Qwen-VL shape turns a picture into patches. Sizes are in pixels; *_pixels count one picture."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.merge_size, self.temporal_patch_size)
        if min(sizes) < 1:
            raise ValueError(f"patch_size, merge_size and temporal_patch_size are {sizes}; none can be less than 1")

    @property
    def cell(self) -> int:
        """Side of one merged visual token in pixels."""
        return self.patch_size * self.merge_size

    @staticmethod
    def from_folder(folder: str | Path) -> PixelSpec:
        """Read the image processor's settings. Raises OSError, KeyError, TypeError or ValueError where the file or a field is
        missing or makes no sense."""
        config = settings(folder, IMAGE)
        size = config.get("size") or {}
        return PixelSpec(
            int(config["patch_size"]),
            int(config["merge_size"]),
            int(config["temporal_patch_size"]),
            int(config.get("min_pixels") or size["shortest_edge"]),
            int(config.get("max_pixels") or size["longest_edge"]),
            *colours(config),
        )


def colours(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the std of the three colours that a tower was trained with. Raises KeyError, TypeError or ValueError where
    the settings say none."""
    mean, std = (tuple(map(float, settings[name])) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ValueError(f"image_mean {mean} and image_std {std} are not those of three colours")
    return mean, std


def fitted_size(height: int, width: int, spec: PixelSpec) -> tuple[int, int]:
    """(height, width) in multiples of the cell, area within the spec's bounds, aspect ratio as near as that allows."""
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"a picture of {width}x{height} is too narrow: the sides may differ by a factor of {MAX_ASPECT_RATIO}")
    cell = spec.cell
    h, w = max(cell, round(height / cell) * cell), max(cell, round(width / cell) * cell)
    if h * w > spec.max_pixels:
        scale = math.sqrt(height * width / spec.max_pixels)
        h = max(cell, math.floor(height / scale / cell) * cell)
        w = max(cell, math.floor(width / scale / cell) * cell)
    elif h * w < spec.min_pixels:
        scale = math.sqrt(spec.min_pixels / (height * width))
        h, w = math.ceil(height * scale / cell) * cell, math.ceil(width * scale / cell) * cell
    return h, w


def resize(frames: torch.Tensor, spec: PixelSpec) -> torch.Tensor:
    """uint8 [T, 3, H, W] to uint8 [T, 3, h, w] by `fitted_size`."""
    return stretched(frames, *fitted_size(frames.shape[-2], frames.shape[-1], spec))


def stretched(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [T, 3, H, W] to uint8 [T, 3, height, width]; bicubic and anti-aliased, as PIL resizes."""
    if (height, width) == tuple(frames.shape[-2:]):
        return frames
    # PIL resizes the width first and rounds to whole levels in between; so does this.
    for size in ((frames.shape[-2], width), (height, width)):
        resized = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        frames = resized.round_().clamp_(0, 255).to(torch.uint8)
    return frames


def patchify(picture: torch.Tensor, spec: PixelSpec, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [T, 3, h, w] to (patches [t*gh*gw, 3*tp*p*p], grid_thw [1, 3]); a short last slot repeats its last frame."""
    p, m, tp = spec.patch_size, spec.merge_size, spec.temporal_patch_size
    short = -picture.shape[0] % tp
    if short:
        picture = torch.cat([picture, picture[-1:].expand(short, -1, -1, -1)])
    x = normalised(picture, spec.mean, spec.std).to(dtype)
    t, gh, gw = x.shape[0] // tp, x.shape[2] // p, x.shape[3] // p
    x = x.reshape(t, tp, 3, gh // m, m, p, gw // m, m, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * gh * gw, 3 * tp * p * p), torch.tensor([[t, gh, gw]], device=picture.device)


def patched(pictures: Sequence[torch.Tensor], spec: PixelSpec, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Several pictures by `patchify`, one behind the other: (patches, grid_thw [pictures, 3])."""
    patches, grids = zip(*(patchify(picture, spec, dtype) for picture in pictures), strict=True)
    return torch.cat(patches), torch.cat(grids)


def merged(grids: torch.Tensor, merge_size: int) -> list[tuple[int, int, int]]:
    """(slots, rows, columns) of merged tokens for every row of grid_thw [pictures, 3]."""
    return [(slots, rows // merge_size, columns // merge_size) for slots, rows, columns in grids.tolist()]


def normalised(picture: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [T, 3, h, w] to float32 of the same shape, each channel shifted and scaled as the tower was trained."""
    shift = torch.tensor(mean, device=picture.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=picture.device).view(1, 3, 1, 1)
    return (picture.float() / 255.0 - shift) / scale


def video_settings(folder: str | Path) -> dict[str, Any]:
    """How a checkpoint prepares video frames: its video processor's settings, or its image processor's where it has no other.
    Raises as `settings`."""
    return settings(folder, VIDEO, IMAGE)


def settings(folder: str | Path, *kinds: tuple[str, str]) -> dict[str, Any]:
    """The settings of the first kind of processor that a checkpoint has: as parts of processor_config.json, where newer
    checkpoints have them and where transformers looks first, else in files of their own.

    Raises OSError where there are none, ValueError where they are none.
    """
    folder = Path(folder)
    joint = folder / JOINT
    parts = json.loads(joint.read_text()) if joint.is_file() else {}
    for part, name in kinds:
        if part in parts or (folder / name).is_file():
            found = parts[part] if part in parts else json.loads((folder / name).read_text())
            if not isinstance(found, dict):
                raise ValueError(f"the settings of its {part} are no JSON object; download the checkpoint again")
            return found
    raise OSError(f"it has no {kinds[-1][1]}; download the checkpoint again")
