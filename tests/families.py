"""A builder of a small random checkpoint for every row of the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import checkpoints
import qwen_checkpoints

from model_adapters.conformance import Conformance
from model_adapters.references import create_reference
from model_adapters.registry import load_adapter
from model_adapters.stock import StockAdapter

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": checkpoints.save_qwen3_vl,
    "qwen3_vl_moe": qwen_checkpoints.save_qwen3_vl_moe,
    "qwen2_5_vl": qwen_checkpoints.save_qwen2_5_vl,
    "qwen2_vl": qwen_checkpoints.save_qwen2_vl,
    "qwen2_5_omni": qwen_checkpoints.save_qwen2_5_omni,
    "qwen2_5_omni_thinker": qwen_checkpoints.save_qwen2_5_omni_thinker,
    "qwen3_omni_moe": qwen_checkpoints.save_qwen3_omni_moe,
    "qwen3_omni_moe_thinker": qwen_checkpoints.save_qwen3_omni_moe_thinker,
    "llava_onevision": checkpoints.save_llava_onevision,
    "internvl": checkpoints.save_internvl,
    "smolvlm": checkpoints.save_smolvlm,
    "video_llama_3": checkpoints.save_video_llama_3,
}
"""Under the name that `model_adapters.registry.FAMILIES` has for it."""
EVERYDAY = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl", "llava_onevision", "internvl", "smolvlm", "video_llama_3")
"""One of each kind: what stands for all in the everyday run."""
EXPERTS = ("qwen3_vl_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker")


def conformance(folder: Path, **options) -> Conformance:
    adapter = cast(StockAdapter, load_adapter(str(folder), device="cpu", **options))
    return Conformance(adapter, create_reference(adapter, folder))
