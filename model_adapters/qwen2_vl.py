"""Qwen2-VL: M-RoPE that counts slots, not seconds, so the time is told in words.

The words are those that LiveCC (arXiv 2504.16030) trained Qwen2-VL on: `Time=3.0-4.0s` before each short video block.
"""

from __future__ import annotations

from data.frames import Chunk
from model_adapters.qwen import StampedQwenAdapter


class Qwen2VLAdapter(StampedQwenAdapter):
    """`model_type: qwen2_vl`; LiveCC, Flash-VStream-Qwen"""

    model_class = "Qwen2VLForConditionalGeneration"

    def stamp(self, chunk: Chunk, slot: int) -> str:
        pts, following = chunk.pts_seconds, (slot + 1) * self.frames_per_slot
        end = pts[following] if following < len(pts) else chunk.end_seconds
        return f"Time={pts[slot * self.frames_per_slot]:.1f}-{end:.1f}s"
