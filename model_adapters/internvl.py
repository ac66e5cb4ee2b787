"""InternVL (the `-hf` checkpoints) on stock transformers: ViT frames, pixel shuffle to a quarter of the tokens.

Its processor numbers frames ("Frame7: "); in a stream without end the number says nothing, so a frame is named by its time.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from model_adapters.frame_by_frame import SquareFramesAdapter, whole
from model_adapters.preprocess import IMAGE, VIDEO, settings, video_settings

log = logging.getLogger(__name__)


class InternVLAdapter(SquareFramesAdapter):
    """Any checkpoint whose config says `model_type: internvl`."""

    model_class = "InternVLForConditionalGeneration"
    special_tokens = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
    video_part = "<video>"
    closing = "</img>"

    def stamp(self, seconds: float, first: bool) -> str:
        return f"{'' if first else chr(10)}Frame at {seconds:.1f}s: <img>"

    @classmethod
    def frame_settings(cls, folder: Path, config: Any) -> dict[str, Any]:
        return frame_settings(folder, config)

    @classmethod
    def cells(cls, config: Any, side: int) -> int:
        return whole(cells_of(config, side), side)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output.flatten(0, 1)


def frame_settings(folder: Path, config: Any) -> dict[str, Any]:
    """The video processor's settings, or the image processor's where the tower cannot take the frames of those.

    InternVL3.5 was published with a video processor that is not its own (384 pixels a side, CLIP's mean and std). The model
    itself sees video frames as it sees pictures."""
    own, pictures = video_settings(folder), settings(folder, IMAGE, VIDEO)
    side = own["size"]["height"]
    if own == pictures or cells_of(config, side).is_integer():
        return own
    log.warning(
        "the video processor of %s makes frames of %d pixels, which its tower cannot take; they are prepared as pictures are",
        *(folder, side),
    )
    return pictures


def cells_of(config: Any, side: int) -> float:
    """Visual tokens along one side of a frame of `side` pixels; a whole number where the tower can take it."""
    return side // config.vision_config.patch_size[0] * config.downsample_ratio
