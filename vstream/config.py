"""One flat, validated configuration. Command-line flags carry the same names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from data.errors import ConfigError

GIB = 1 << 30
MOST_BYTES = 1 << 60
COLDEST = 1e-6
"""The least temperature beside 0: float32 has no room for logits that are divided by much less."""
CHOICES = {
    "drop": ("off", "pixel", "feature"),
    "drop_reference": ("last_kept", "previous"),
    "retrieval": ("key_similarity", "per_layer", "recent", "uniform", "all", "none"),
    "prompts": ("auto", "embedded", "general"),
    "kv_codec": ("native", "int8", "int4", "entropy"),
    "thinning": ("off", "evenly", "distinct"),
}


def _field(default: Any, help_text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "low": low, "high": high})


@dataclass(frozen=True)
class SessionConfig:
    """Settings of one stream. Times in seconds, sizes in bytes. Raises ConfigError with the value that is out of range."""

    fps: float = _field(2.0, "frames per second that are looked at", 0.01, 60)
    chunk_seconds: float = _field(1.0, "length of a chunk", 0.1, 60)
    window_seconds: float = _field(8.0, "recent stream that is always in view", 0, 3600)
    drop: str = _field("pixel", "where unchanged visual tokens are dropped")
    drop_threshold: float | None = _field(None, "change below which a token is dropped; default: 0.03 pixel, 0.1 feature", 0, 2)
    drop_target: float | None = _field(None, "drop ratio to calibrate the threshold to, on the stream's first chunks", 0, 0.99)
    drop_reference: str = _field("last_kept", "what a token is compared with")
    key_every: int = _field(16, "every n-th chunk is kept whole", 1, 1_000_000)
    retrieval: str = _field("key_similarity", "how chunks are brought back for a question")
    top_k: int = _field(8, "chunks brought back at most", 0, 100_000)
    gate: float = _field(0.0, "robust z-score below which retrieval stays out of the context; 0: always in", 0, 1000)
    gpu_bytes: int = _field(2 * GIB, "memory on the compute device for stored chunks", 0, MOST_BYTES)
    ram_bytes: int = _field(4 * GIB, "RAM for stored chunks", 0, MOST_BYTES)
    disk_bytes: int = _field(16 * GIB, "disk for stored chunks", 0, MOST_BYTES)
    library_bytes: int = _field(64 * GIB, "disk for all memories in one folder together; old ones give way", 2**20, MOST_BYTES)
    index_bytes: int = _field(1 * GIB, "RAM for index vectors; full: searched on disk, else kept coarser", 2**20, MOST_BYTES)
    kv_codec: str = _field("native", "how RAM and disk keep stored chunks: bit-equal, as small integers, or entropy-coded")
    thinning: str = _field("distinct", "which tokens of old chunks stay when memory is full; off: old chunks go whole")
    max_new_tokens: int = _field(128, "length of an answer", 1, 32_768)
    prompts: str = _field("auto", "wording of what the engine asks by itself; auto: as it fits the model")
    poll_seconds: float = _field(30.0, "seconds between looks where nothing seems new; 0: always; comment: 4", 0, 86_400)
    temperature: float = _field(0.0, "0: the most likely answer", 0, 10)
    seed: int = _field(0, "seed of sampling", 0, 2**63 - 1)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in CHOICES:
                if value not in CHOICES[f.name]:
                    raise ConfigError(f"{f.name} is {value!r}; choose one of {', '.join(CHOICES[f.name])}")
                continue
            low, high = f.metadata["low"], f.metadata["high"]
            if value is None and f.default is None:
                continue
            whole = f.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value != value:
                raise ConfigError(f"{f.name} is {value!r}; give a {'whole ' if whole else ''}number")
            if not low <= value <= high:
                raise ConfigError(f"{f.name} is {value}; give a number from {low} to {high}")
        if self.fps * self.chunk_seconds < 1:
            raise ConfigError(
                f"a chunk of {self.chunk_seconds} s at {self.fps} fps holds no frame; raise fps or chunk_seconds so that"
                " their product is at least 1"
            )
        if 0 < self.temperature < COLDEST:
            raise ConfigError(f"temperature is {self.temperature}; give 0, or a number from {COLDEST} on")

    @property
    def window_chunks(self) -> int:
        return round(self.window_seconds / self.chunk_seconds)

    def replace(self, **changes: Any) -> SessionConfig:
        """A copy with other values, validated again. Unknown names raise ConfigError."""
        unknown = set(changes) - {f.name for f in fields(self)}
        if unknown:
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; known: {', '.join(f.name for f in fields(self))}")
        return dataclasses.replace(self, **changes)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of SessionConfig."""
    group = parser.add_argument_group("session settings")
    hints = get_type_hints(SessionConfig)
    for f in fields(SessionConfig):
        kind = next(t for t in (*get_args(hints[f.name]), hints[f.name]) if t is not type(None))
        default = "" if f.default is None else f" (default {f.default})"
        group.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=kind,
            default=None,
            choices=CHOICES.get(f.name),
            metavar=None if f.name in CHOICES else kind.__name__.upper(),
            help=f.metadata["help"].replace("%", "%%") + default,
        )


def from_flags(args: argparse.Namespace, base: Mapping[str, Any] | None = None) -> SessionConfig:
    """The configuration that the parsed flags describe. base: values of the flags that were not given."""
    given = {f.name: getattr(args, f.name) for f in fields(SessionConfig) if getattr(args, f.name, None) is not None}
    return SessionConfig(**{**(base or {}), **given})
