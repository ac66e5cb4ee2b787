"""A checkpoint's identity: KV of one model means nothing to another."""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLE_BYTES = 1 << 20


def fingerprint(folder: Path, max_pixels: int | None = None) -> str:
    """Hex digest over config, processor configuration, tokenizer and the weights' sizes, heads and tails.

    Whole weight files are not read: a safetensors header names every tensor, and its first and last megabyte tell
    checkpoints of one shape apart. max_pixels: area of a frame, where it is not the checkpoint's own.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.exists() else b""))
    for name in ("video_preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.exists():
            digest.update(name.encode() + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16] + ("" if max_pixels is None else f"-{max_pixels}")
