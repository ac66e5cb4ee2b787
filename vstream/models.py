"""Which model, and how it is loaded: the flags that stand wherever `--model` does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from data.errors import AdapterError
from model_adapters.base import ModelAdapter
from model_adapters.registry import (
    DTYPES,
    EMBEDDED,
    STEPS,
    Budget,
    Preset,
    load_adapter,
    memory_needed,
    model_fingerprint,
    preset_for,
)
from vstream.config import SessionConfig, from_flags

SMALL_BYTES = 64 * 2**20
"""Weights of up to so much are soon read: a second thread is no gain then, and where another process has its core, each of the
many short waits for it is long. With the embedded model (10 MB) on two cores, one thread is as fast as two, and 15 times as
fast beside a busy process."""

MOST_THREADS = 1024


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, and how it is loaded. None: the default of `load_adapter`; threads: see `cpu_threads`."""

    model: str = EMBEDDED
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    max_pixels: int | None = None
    compile_step: str = "off"
    threads: int | None = None

    def load(self, kv_bytes: int = 0) -> ModelAdapter:
        """Raises AdapterError. kv_bytes: what the session may store on the device. Sets the process' number of threads."""
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise AdapterError(f"--threads is {self.threads}; give a number from 1 to {MOST_THREADS}")
        more: dict[str, Any] = {"max_pixels": self.max_pixels, "compile_step": self.compile_step}
        loaded = load_adapter(self.model, **self._options(), **more, kv_bytes=kv_bytes)
        threads = self.cpu_threads(loaded)
        if threads is not None:
            # Torch keeps this number for the whole process, which has one model.
            torch.set_num_threads(threads)
        return loaded

    def cpu_threads(self, adapter: ModelAdapter) -> int | None:
        """How many threads torch is to use; None: as many as it does, which OMP_NUM_THREADS says, or the number of cores."""
        small = adapter.device.type == "cpu" and adapter.weight_bytes <= SMALL_BYTES
        return 1 if self.threads is None and small and "OMP_NUM_THREADS" not in os.environ else self.threads

    def needs(self) -> Budget:
        """What it takes in memory, told without loading it. Raises AdapterError."""
        return memory_needed(self.model, **self._options())

    def fingerprint(self) -> str:
        """Its identity, told without loading it. Raises AdapterError."""
        return model_fingerprint(self.model, **self._options(), max_pixels=self.max_pixels)

    def _options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device_map": self.device_map, "revision": self.revision}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of ModelChoice."""
    parser.add_argument("--model", default=EMBEDDED, help=f"`{EMBEDDED}` (default), a checkpoint folder, or a hub id")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and KV; default: float32 on the CPU, else as stored")
    parser.add_argument("--device-map", metavar="MAP", help="cpu, cuda, cuda:1, or auto to spread over what is there")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id; default: main")
    parser.add_argument("--max-pixels", type=int, metavar="AREA", help="of a frame as the model sees it; default: its own")
    steps = "decode by graphs; auto: CUDA graphs where there is CUDA; on: else by torch.compile, no gain on a CPU; default: off"
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: one for a small model, else all cores")
    parser.add_argument("--compile-step", choices=STEPS, default="off", help=steps)


def chosen_model(args: argparse.Namespace) -> ModelChoice:
    """The choice that the parsed flags describe; what they leave open, a published system's preset decides."""
    choice = ModelChoice(**{field.name: getattr(args, field.name) for field in fields(ModelChoice)})
    preset = preset_for(choice.model)
    return replace(choice, max_pixels=preset.max_pixels) if preset and choice.max_pixels is None else choice


def chosen_settings(args: argparse.Namespace, stored: Mapping[str, Any] | None = None) -> SessionConfig:
    """The session that the parsed flags describe; what they leave open, a published system's preset decides, and says so.

    stored: settings of a memory that is opened again, which go before a preset.
    """
    preset = preset_for(args.model)
    if preset is None:
        return from_flags(args, stored)
    sys.stderr.write(f"{preset_line(preset)}; flags go before it\n")
    # A threshold belongs to the level that it was published for.
    own_drop = args.drop is not None
    kept = {name: value for name, value in preset.settings.items() if not (own_drop and "drop" in name)}
    return from_flags(args, {**kept, **(stored or {})})


def preset_line(preset: Preset) -> str:
    """One line: what a preset sets, and what is known of the system beside that."""
    known = dict(preset.settings)
    for name in ("max_pixels", "prompt", "silence"):
        if getattr(preset, name) is not None:
            known[name] = getattr(preset, name)
    values = (f"{name} {value!r}" if isinstance(value, str) else f"{name} {value:g}" for name, value in known.items())
    return f"preset of {preset.system}: {', '.join(values)}"
