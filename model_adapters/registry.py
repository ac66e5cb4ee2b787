"""From a name to an adapter: `load_adapter`. One row per family, keyed by the checkpoint's `config.model_type`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data.errors import AdapterError, reason_of
from model_adapters.base import ModelAdapter
from model_adapters.budget import NO_SENSE, Budget, estimate, gib
from model_adapters.fingerprint import fingerprint
from model_adapters.loading import EMBEDDED, Checkpoint, find_checkpoint
from model_adapters.presets import Preset, preset_for

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "FAMILIES",
    "RANDOM",
    "STEPS",
    "Budget",
    "Preset",
    "gib",
    "load_adapter",
    "memory_needed",
    "model_fingerprint",
    "preset_for",
]

FAMILIES: dict[str, tuple[str, str]] = {
    "qwen3_vl": ("model_adapters.qwen3_vl", "Qwen3VLAdapter"),
    "qwen3_vl_moe": ("model_adapters.qwen3_vl", "Qwen3VLMoeAdapter"),
    "qwen2_5_vl": ("model_adapters.qwen2_5_vl", "Qwen25VLAdapter"),
    "qwen2_vl": ("model_adapters.qwen2_vl", "Qwen2VLAdapter"),
    "qwen2_5_omni": ("model_adapters.qwen_omni", "Qwen25OmniAdapter"),
    "qwen2_5_omni_thinker": ("model_adapters.qwen_omni", "Qwen25OmniAdapter"),
    "qwen3_omni_moe": ("model_adapters.qwen_omni", "Qwen3OmniAdapter"),
    "qwen3_omni_moe_thinker": ("model_adapters.qwen_omni", "Qwen3OmniAdapter"),
    "llava_onevision": ("model_adapters.llava_onevision", "LlavaOnevisionAdapter"),
    "internvl": ("model_adapters.internvl", "InternVLAdapter"),
    "smolvlm": ("model_adapters.smolvlm", "SmolVLMAdapter"),
    "video_llama_3": ("model_adapters.video_llama_3", "VideoLlama3Adapter"),
}
RANDOM = "random:"
"""What stands before the name of a shape with random weights."""
SPLITS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate makes."""
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
STEPS = ("auto", "on", "off")
"""Whether tokens are decoded by graphs: see `ModelAdapter.compile_steps`."""


def load_adapter(
    name_or_path: str = EMBEDDED,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    max_pixels: int | None = None,
    kv_bytes: int = 0,
    compile_step: str = "off",
) -> ModelAdapter:
    """Load a model by the name `embedded`, a local folder, a hub id, or `random:SHAPE` (see `random_weights`).

    dtype: a torch dtype or one of DTYPES; `auto`: as stored; default: float32 on the CPU, as stored elsewhere. device:
    default CUDA where there is one. device_map: `auto` or a map from modules to devices, for accelerate; instead of
    device, over GPUs, RAM and disk. attn_implementation: of transformers, for
    the text model; default: our own mask-free causal attention over sdpa. revision: branch, tag or commit of a hub id.
    max_pixels: area of a frame, for families whose frames have no fixed size; default: the checkpoint's own. kv_bytes:
    memory that will be wanted for chunks on the device. compile_step: one of STEPS.
    Raises AdapterError with one line that says what was wrong and what to do.
    """
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    if device is not None and device_map is not None:
        raise AdapterError(f"device {device!r} and device map {device_map!r} are both given; give one")
    if compile_step not in STEPS:
        raise AdapterError(f"compile_step is {compile_step!r}; choose one of {', '.join(STEPS)}")
    placement = _placement(device_map or device)
    wanted = _dtype(dtype, placement)
    if name_or_path.startswith(RANDOM):
        from model_adapters.random_weights import load_random

        made = load_random(name_or_path, wanted, _one_device(name_or_path, placement))
        made.compile_steps(compile_step)
        return made
    checkpoint = find_checkpoint(name_or_path, FAMILIES, revision)
    _budget(checkpoint, wanted, placement).check(kv_bytes)
    module, adapter = FAMILIES[checkpoint.family]
    options: dict[str, Any] = {"dtype": wanted or "auto", "device_map": placement}
    options |= {"attn_implementation": attn_implementation, "max_pixels": max_pixels}
    try:
        loaded: ModelAdapter = getattr(importlib.import_module(module), adapter).load(
            name_or_path, checkpoint.folder, **options
        )
    except (*NO_SENSE, ImportError, AssertionError, SafetensorError, TemplateError) as error:
        reason = f"its files lack {error}" if isinstance(error, KeyError) else reason_of(error)
        raise AdapterError(f"{name_or_path} cannot be loaded: {reason}") from error
    loaded.compile_steps(compile_step)
    return loaded


def memory_needed(
    name_or_path: str,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Budget:
    """What a model takes, without loading it. Arguments and errors as for `load_adapter`."""
    placement = _placement(device_map)
    if name_or_path.startswith(RANDOM):
        from model_adapters.random_weights import random_budget

        return random_budget(name_or_path, _dtype(dtype, placement), _one_device(name_or_path, placement))
    return _budget(find_checkpoint(name_or_path, FAMILIES, revision), _dtype(dtype, placement), placement)


def model_fingerprint(
    name_or_path: str,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    max_pixels: int | None = None,
) -> str:
    """What tells a model from others, by the files that it is loaded from. Arguments and errors as for `load_adapter`."""
    if name_or_path.startswith(RANDOM):
        return name_or_path
    placement = _placement(device_map)
    checkpoint = find_checkpoint(name_or_path, FAMILIES, revision)
    # Weights are part of it, and are fetched only where they fit.
    _budget(checkpoint, _dtype(dtype, placement), placement)
    return fingerprint(checkpoint.folder, max_pixels)


def _budget(checkpoint: Checkpoint, dtype: torch.dtype | None, placement: str | Mapping[str, Any]) -> Budget:
    """Told from the config first: what cannot fit is not fetched from the hub."""
    if checkpoint.revision is not None:
        estimate(checkpoint, dtype, placement).check()
    return estimate(checkpoint, dtype, placement, checkpoint.weights())


def _placement(asked: str | Mapping[str, Any] | None) -> str | Mapping[str, Any]:
    """A device that exists here, or a device map, which accelerate checks."""
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(asked, str) and asked not in SPLITS:
        try:
            kind, index = torch.device(asked).type, torch.device(asked).index or 0
        except RuntimeError as error:
            raise AdapterError(f"{asked!r} is no device; give cpu, cuda, cuda:1 or the device map auto") from error
        if kind == "meta":
            raise AdapterError("weights on the device meta hold no numbers; give cpu, cuda, cuda:1 or the device map auto")
        if kind == "cuda" and index >= torch.cuda.device_count():
            raise AdapterError(f"{asked} is not there: {torch.cuda.device_count()} CUDA devices are; give cpu or leave it out")
    return asked


def _one_device(name: str, placement: str | Mapping[str, Any]) -> str:
    """Where random weights are made. Raises AdapterError for a device map."""
    if not isinstance(placement, str) or placement in SPLITS:
        raise AdapterError(f"{name} is made on one device, not by the device map {placement!r}; give a device")
    return placement


def _dtype(asked: torch.dtype | str | None, placement: str | Mapping[str, Any]) -> torch.dtype | None:
    """The type to load in; None: as stored."""
    import torch

    if isinstance(asked, torch.dtype):
        return asked
    if asked is None:
        return torch.float32 if placement == "cpu" else None
    if asked not in DTYPES:
        raise AdapterError(f"the dtype is {asked!r}; choose one of {', '.join(DTYPES)}")
    return None if asked == "auto" else getattr(torch, asked)
