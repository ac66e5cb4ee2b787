"""From a name to an adapter: `load_adapter`. One row per family, keyed by the checkpoint's `config.model_type`."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from data.errors import AdapterError
from model_adapters.base import ModelAdapter

EMBEDDED = "embedded"
"""The name of the model that ships with the project."""

FAMILIES: dict[str, tuple[str, str]] = {
    "qwen3_vl": ("model_adapters.qwen3_vl", "Qwen3VLAdapter"),
}


def load_adapter(name_or_path: str = EMBEDDED, *, dtype: Any = None, device: str | None = None) -> ModelAdapter:
    """Load a model by the name `embedded`, a local folder, or a hub id.

    dtype: a torch dtype or its name; default: float32 on the CPU, the checkpoint's own elsewhere. device: default CUDA
    where there is one. Raises AdapterError with one line that says what was wrong and what to do.
    """
    import torch
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = _folder(name_or_path)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise AdapterError(f"{name_or_path} has no config.json; give a checkpoint folder, a hub id, or `{EMBEDDED}`")
    try:
        family = json.loads(config_file.read_text()).get("model_type")
    except (ValueError, OSError, AttributeError) as error:
        raise AdapterError(
            f"the config.json of {name_or_path} cannot be read ({error}); download the checkpoint again"
        ) from error
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise AdapterError(f"{name_or_path} is of the family {family!r}, which is not known here; known: {known}")
    if not any(folder.glob("*.safetensors")):
        raise AdapterError(f"{name_or_path} has no *.safetensors weights; other weight formats are not loaded")
    module, adapter = FAMILIES[family]
    options = {"dtype": dtype or (torch.float32 if device == "cpu" else "auto"), "device_map": device}
    try:
        return getattr(importlib.import_module(module), adapter).load(name_or_path, folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, TemplateError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{name_or_path} cannot be loaded: {reason}") from error


def _folder(name_or_path: str) -> Path:
    if name_or_path == EMBEDDED:
        return Path(__file__).parent / "tiny" / "checkpoint"
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise AdapterError(
            f"{name_or_path} is not a model folder; give a checkpoint folder, a hub id like Qwen/Qwen3-VL-4B-Instruct,"
            f" or `{EMBEDDED}`"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise AdapterError(
            f"{name_or_path} is no local folder and cannot be fetched from the hub; check the name and the network"
        ) from error
