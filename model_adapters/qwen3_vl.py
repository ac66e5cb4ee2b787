"""Qwen3-VL, dense and MoE: a time stamp in words before every slot, interleaved M-RoPE, DeepStack features.

transformers 5 wraps the whole video into one more pair of vision tokens than the model's own release (4.57) did, and than
vLLM does; the layout here is that of the release.
"""

from __future__ import annotations

from data.frames import Chunk
from model_adapters.qwen import StampedQwenAdapter


class Qwen3VLAdapter(StampedQwenAdapter):
    """`model_type: qwen3_vl`"""

    model_class = "Qwen3VLForConditionalGeneration"

    def stamp(self, chunk: Chunk, slot: int) -> str:
        return f"<{self.slot_seconds(chunk, slot):.1f} seconds>"


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """`model_type: qwen3_vl_moe`"""

    model_class = "Qwen3VLMoeForConditionalGeneration"
