"""LLaVA-OneVision on stock transformers: SigLIP frames pooled to 14 x 14 tokens, one newline token behind the whole video.

The family has no time stamps of its own; a frame gets one, so that it carries its time wherever it is brought back to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from model_adapters.base import TokenRun
from model_adapters.frame_by_frame import SquareFramesAdapter


class LlavaOnevisionAdapter(SquareFramesAdapter):
    """Any checkpoint whose config says `model_type: llava_onevision`."""

    model_class = "LlavaOnevisionForConditionalGeneration"
    special_tokens = ("<video>",)
    video_part = "<video>"

    def stamp(self, seconds: float, first: bool) -> str:
        return f"Time {seconds:.1f}s:"

    @classmethod
    def cells(cls, config: Any, side: int) -> int:
        vision = config.vision_config
        if side != vision.image_size:
            raise ValueError(f"its processor makes frames of {side} pixels a side, and its tower takes {vision.image_size}")
        return math.ceil(side // vision.patch_size / 2)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        # Behind them comes the newline, from transformers 5.18 on; it stands behind the video and so in the question.
        return self.model.get_video_features(pixels[None]).pooler_output[0, : len(pixels) * self.spec.cells**2]

    def question_run(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> TokenRun:
        run = super().question_run(question, turns)
        newline = self.model.model.image_newline[None].to(run.embeds)
        positions = torch.cat([torch.zeros_like(run.position_ids[:, :1]), run.position_ids + 1], dim=1)
        visual_mask = torch.cat([torch.ones_like(run.visual_mask[:1]), run.visual_mask])
        return TokenRun(torch.cat([newline, run.embeds]), positions, run.span + 1, visual_mask)
