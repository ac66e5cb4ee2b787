"""What a segment says of itself beside its chunks: whose memory it belongs to and what its rows held, without the pictures.

It is there for the day on which the manifest is lost. Every label has a checksum of its own.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from memory.identity import FORMAT_VERSION, Identity

MEMORY_LABEL = "memory"


@dataclass(frozen=True)
class Origin:
    """Of a segment. merged: see `Manifest.segments`. replaces: numbers of the segments that it was made from, together with
    the other of the `num_parts` segments from number `first` on."""

    identity: Identity
    merged: int = 0
    replaces: tuple[int, ...] = ()
    first: int = 0
    num_parts: int = 1
    format_version: int = FORMAT_VERSION

    def parts(self) -> range:
        """The numbers of the segments that replace others together with this one."""
        return range(self.first, self.first + self.num_parts)


@dataclass(frozen=True)
class RowLabel:
    """Of a chunk: what its row holds and its KV does not. Fields as in `ChunkRow`."""

    last_pts_seconds: float
    num_tokens: int
    keep: bytes
    stored_unix: float


def labels_of(origin: Origin, rows: dict[int, RowLabel]) -> dict[str, str]:
    """Metadata of a segment, by name."""
    found = {MEMORY_LABEL: _sealed([origin.identity.to_json(), *_plain(origin)])}
    for chunk_id, row in rows.items():
        values = [row.last_pts_seconds, row.num_tokens, base64.b64encode(row.keep).decode(), row.stored_unix]
        found[f"row {chunk_id}"] = _sealed(values)
    return found


def origin_of(labels: dict[str, str]) -> Origin | None:
    """Whose a segment is; None if it does not say, or what it says is damaged."""
    values = _opened(labels.get(MEMORY_LABEL))
    if values is None:
        return None
    identity, merged, replaces, first, num_parts, version = values
    return Origin(Identity.from_json(identity), merged, tuple(replaces), first, num_parts, version)


def row_of(labels: dict[str, str], chunk_id: int) -> RowLabel | None:
    """What is said of a chunk; None as for `origin_of`."""
    values = _opened(labels.get(f"row {chunk_id}"))
    if values is None:
        return None
    last, num_tokens, keep, stored = values
    return RowLabel(last, num_tokens, base64.b64decode(keep), stored)


def _plain(origin: Origin) -> list[object]:
    return [origin.merged, list(origin.replaces), origin.first, origin.num_parts, origin.format_version]


def _sealed(values: Sequence[object]) -> str:
    text = json.dumps(values, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}{text}"


def _opened(label: str | None) -> list | None:
    if label is None or label[:8] != f"{zlib.crc32(label[8:].encode()):08x}":
        return None
    return json.loads(label[8:])
