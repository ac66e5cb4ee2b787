"""Which model, and how it is loaded: the flags that stand wherever `--model` does."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from model_adapters.base import ModelAdapter
from model_adapters.registry import DTYPES, EMBEDDED, Budget, load_adapter, memory_needed


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, and how it is loaded. None: the default of `load_adapter`."""

    model: str = EMBEDDED
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None

    def load(self, kv_bytes: int = 0) -> ModelAdapter:
        """Raises AdapterError. kv_bytes: what the session may store on the device."""
        return load_adapter(self.model, dtype=self.dtype, device_map=self.device_map, revision=self.revision, kv_bytes=kv_bytes)

    def needs(self) -> Budget:
        """What it takes in memory, told without loading it. Raises AdapterError."""
        return memory_needed(self.model, dtype=self.dtype, device_map=self.device_map, revision=self.revision)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of ModelChoice."""
    parser.add_argument("--model", default=EMBEDDED, help=f"`{EMBEDDED}` (default), a checkpoint folder, or a hub id")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and KV; default: float32 on the CPU, else as stored")
    parser.add_argument("--device-map", metavar="MAP", help="cpu, cuda, cuda:1, or auto to spread over what is there")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id; default: main")


def chosen_model(args: argparse.Namespace) -> ModelChoice:
    """The choice that the parsed flags describe."""
    return ModelChoice(**{field.name: getattr(args, field.name) for field in fields(ModelChoice)})
