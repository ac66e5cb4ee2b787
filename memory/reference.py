"""What a stream left off with beside its chunks, such as the picture that its next frames are compared with, in one file.

It holds pictures of any time, so forgetting a span deletes it. Whoever opens the memory again gets it only if it was left
behind the very last chunk; after a crash, and wherever it does not fit or is damaged, the stream goes on without it.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from memory.files import write_whole

if TYPE_CHECKING:
    from memory.stored import StoredMemory

logger = logging.getLogger(__name__)

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Reference:
    """about: ready for JSON."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def keep_reference(memory: StoredMemory, reference: Reference, chunk_id: int) -> None:
    """Leave a reference behind the last chunk. MemoryBankError if it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in reference.tensors.items()}
    content = save(tensors, {"after": str(chunk_id), "about": json.dumps(dict(reference.about))})
    with memory.lock, memory.said():
        write_whole(memory.folder / REFERENCE, content + zlib.crc32(content).to_bytes(4, "little"), memory.fault, "reference")


def reference_of(memory: StoredMemory, chunk_id: int) -> Reference | None:
    """What was left behind the chunk `chunk_id`; None if there is nothing, or nothing that can be used."""
    try:
        content = (memory.folder / REFERENCE).read_bytes()
    except OSError:
        return None
    content, seal = content[:-4], content[-4:]
    try:
        if zlib.crc32(content).to_bytes(4, "little") != seal:
            raise ValueError("its checksum does not match")
        header_bytes = int.from_bytes(content[:8], "little")
        labels = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
        if labels["after"] != str(chunk_id):
            return None
        return Reference(load(content), json.loads(labels["about"]))
    except (ValueError, KeyError, SafetensorError) as error:
        logger.warning("%s is damaged: %s; the stream goes on with a whole chunk", memory.folder / REFERENCE, error)
        return None


def forget_reference(folder: Path) -> None:
    """OSError if it is there and cannot be deleted."""
    (folder / REFERENCE).unlink(missing_ok=True)
