"""The weights of a checkpoint, checked by their headers before they are loaded: safetensors only, whole, no shard missing."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import AdapterError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
LORA, GGUF = "adapter_config.json", "*.gguf"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes per element of the types that are wider than a byte."""
AGAIN = "download the checkpoint again"


@dataclass(frozen=True)
class WeightTable:
    """What the headers of a checkpoint's weight files say. num_parameters: by the format's type name, as in `BF16`."""

    files: tuple[Path, ...]
    tensors: frozenset[str]
    num_parameters: Mapping[str, int]

    @property
    def total_parameters(self) -> int:
        return sum(self.num_parameters.values())

    @property
    def num_bytes(self) -> int:
        """Bytes in the types that are stored."""
        return sum(ITEM_BYTES.get(kind, 1) * num for kind, num in self.num_parameters.items())


def read_weights(name: str, folder: Path, left_out: tuple[str, ...] = ()) -> WeightTable:
    """Check every weight file of `folder` and count its parameters, from headers alone. Raises AdapterError with one line.

    left_out: how the names of weights begin that are not counted."""
    tensors: set[str] = set()
    num_parameters: Counter[str] = Counter()
    try:
        files = _files(name, folder)
        for file in files:
            for tensor, (kind, numel) in read_header(name, file).items():
                if not tensor.startswith(left_out):
                    tensors.add(tensor)
                    num_parameters[kind] += numel
    except OSError as error:
        raise AdapterError(
            f"the weights of {name} cannot be read: {error.strerror}; see who may read them, or {AGAIN}"
        ) from error
    return WeightTable(tuple(files), frozenset(tensors), dict(num_parameters))


def _files(name: str, folder: Path) -> list[Path]:
    """The files that transformers loads: the single one, or the shards that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        refuse_other_layouts(name, folder)
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            raise AdapterError(
                f"{name} has no *.safetensors weights, only pickled ones ({pickled[0]}): such files can run code when they"
                " are read and are refused; convert them to safetensors"
            )
        raise AdapterError(f"{name} has no *.safetensors weights ({SINGLE}, or {INDEX} and its shards); {AGAIN}")
    shards = shard_names(name, index)
    missing = [shard for shard in shards if not isinstance(shard, str) or not (folder / shard).is_file()]
    if missing or not shards:
        which = f"{len(missing)} of {len(shards)} weight files, {missing[0]} among them" if shards else "any weight file"
        raise AdapterError(f"{name} lacks {which}; {AGAIN}")
    return [folder / shard for shard in shards]


def refuse_other_layouts(name: str, folder: Path) -> None:
    """Raises AdapterError where a folder holds what others call a model and is no checkpoint."""
    if (folder / LORA).is_file():
        raise AdapterError(f"{name} is an adapter (LoRA) and no whole model; merge it into its base model and give that")
    converted = sorted(path.name for path in folder.glob(GGUF))
    if converted:
        raise AdapterError(f"{name} holds {converted[0]}: GGUF files are not read; take the checkpoint that it was made of")


def shard_names(name: str, index: Path) -> list[str]:
    """The weight files that an index names. Raises AdapterError where it cannot be read."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise AdapterError(f"the {INDEX} of {name} cannot be read ({error!r}); {AGAIN}") from error


def read_header(name: str, file: Path) -> dict[str, tuple[str, int]]:
    """(type, number of elements) by tensor name. Raises AdapterError where the file is torn or no safetensors file.

    Format: 8 bytes of header length, the header as JSON, then the data; offsets count from the header's end.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if head.startswith(b"version "):
            raise AdapterError(f"{file.name} of {name} is a Git LFS pointer, not the weights; run `git lfs pull` there")
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise AdapterError(f"{file.name} of {name} is torn or no safetensors file ({size} bytes cannot be loaded); {AGAIN}")
        try:
            entries = json.loads(stream.read(length))
            entries.pop("__metadata__", None)
            table = {tensor: (e["dtype"], math.prod(e["shape"])) for tensor, e in entries.items()}
            end = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise AdapterError(f"the header of {file.name} of {name} is damaged and cannot be loaded; {AGAIN}") from error
    if size != end:
        raise AdapterError(
            f"{file.name} of {name} is torn and cannot be loaded: {size} bytes of the {end} that its header names; {AGAIN}"
        )
    return table
