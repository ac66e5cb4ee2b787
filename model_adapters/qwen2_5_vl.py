"""Qwen2.5-VL: one video whose temporal M-RoPE axis is absolute time, window attention in the vision tower."""

from __future__ import annotations

from typing import Any

from model_adapters.qwen import TimedQwenAdapter


class Qwen25VLAdapter(TimedQwenAdapter):
    """`model_type: qwen2_5_vl`; TimeChat-Online, StreamingVLM"""

    model_class = "Qwen2_5_VLForConditionalGeneration"

    @staticmethod
    def time_scale(config: Any) -> float:
        return config.vision_config.tokens_per_second
