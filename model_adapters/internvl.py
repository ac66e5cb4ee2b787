"""InternVL (the `-hf` checkpoints) on stock transformers: ViT frames, pixel shuffle to a quarter of the tokens.

Its processor numbers frames ("Frame7: "); in a stream without end the number says nothing, so a frame is named by its time.
"""

from __future__ import annotations

from typing import Any

import torch

from model_adapters.frame_by_frame import SquareFramesAdapter, whole


class InternVLAdapter(SquareFramesAdapter):
    """Any checkpoint whose config says `model_type: internvl`."""

    model_class = "InternVLForConditionalGeneration"
    special_tokens = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
    video_part = "<video>"
    closing = "</img>"

    def stamp(self, seconds: float, first: bool) -> str:
        return f"{'' if first else chr(10)}Frame at {seconds:.1f}s: <img>"

    @classmethod
    def cells(cls, config: Any, side: int) -> int:
        return whole(side / config.vision_config.patch_size[0] * config.downsample_ratio, side)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output.flatten(0, 1)
