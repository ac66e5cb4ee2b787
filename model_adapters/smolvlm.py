"""SmolVLM2 on stock transformers: SigLIP frames, pixel shuffle, a Llama language model, minutes and seconds as text.

Frames are resized bicubically, as the family's processor does on CUDA; on the CPU it takes Lanczos.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from model_adapters.frame_by_frame import SquareFramesAdapter, whole

INTRO = "You are provided the following series of frames from a video."
"""As the family's processor says it, without the number of frames and the length, which a stream does not have."""


class SmolVLMAdapter(SquareFramesAdapter):
    """Any checkpoint whose config says `model_type: smolvlm`."""

    model_class = "SmolVLMForConditionalGeneration"
    special_tokens = ("<image>", "<fake_token_around_image>", "<global-img>")
    video_part = "<video>"
    closing = "<fake_token_around_image>"

    def stamp(self, seconds: float, first: bool) -> str:
        newlines = "\n\n" if first else "\n"
        return f"{newlines}Frame from {int(seconds) // 60:02d}:{int(seconds) % 60:02d}:<fake_token_around_image><global-img>"

    @classmethod
    def sides(cls, settings: dict[str, Any]) -> tuple[int, int | None]:
        sampling = settings.get("video_sampling") or {}
        size = sampling.get("video_size") or settings["size"]
        return settings["max_image_size"]["longest_edge"], size["longest_edge"]

    @classmethod
    def cells(cls, config: Any, side: int) -> int:
        # SmolVLM2-2.2B's frames are no whole number of patches: 384 pixels are 27 of 14, and the tower cuts the rest off.
        return whole(side // config.vision_config.patch_size / config.scale_factor, side)

    def _prompt_parts(self) -> tuple[str, str, str, str, str]:
        # The checkpoint's own template knows no videos; the processor brings the one for them.
        self.tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
        head, before, *rest = super()._prompt_parts()
        return head + INTRO, "\n\n" + before, rest[0], rest[1], rest[2]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(self.model.get_image_features(pixels[None]).pooler_output))
