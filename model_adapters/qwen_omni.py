"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: video in, text out; sound is not heard and speech not made.

Both tell the time on the temporal M-RoPE axis: Qwen2.5-Omni in whole positions, Qwen3-Omni in fractions of one, which are kept
to what float32 holds of them. A whole Omni checkpoint loads as well as a thinker's alone; talker and vocoder are left out.
"""

from __future__ import annotations

from model_adapters.loading import SPEECH
from model_adapters.qwen import TimedQwenAdapter


class ThinkerAdapter(TimedQwenAdapter):
    """A thinker, of a checkpoint that may hold more."""

    left_out = SPEECH


class Qwen25OmniAdapter(ThinkerAdapter):
    """`model_type: qwen2_5_omni`, `qwen2_5_omni_thinker`"""

    model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    special_tokens = ("<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>")
    video_part = "<|VIDEO|>"


class Qwen3OmniAdapter(ThinkerAdapter):
    """`model_type: qwen3_omni_moe`, `qwen3_omni_moe_thinker`"""

    model_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    parts = 1 << 16
