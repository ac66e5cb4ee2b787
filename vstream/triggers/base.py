"""The nouns of a trigger: what it may look at, what it decides, and the interface that every policy fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from model_adapters.base import ChunkKV, KVContext, TokenRun
from vstream.ingest import ChunkRecord


@dataclass(frozen=True)
class LiveChunk:
    """A chunk while it is the newest. There is no way from here to anything later.

    live: the KV context of the stream up to and including the chunk; fork it, never extend it. It is this moment's only until
    the next chunk is encoded. run: the chunk's tokens as the language model read them. before: the chunks that were in view
    when it came, in stream order. begins: whether it is the stream's first, so that whatever it shows has just come.
    """

    record: ChunkRecord
    kv: ChunkKV
    run: TokenRun
    live: KVContext
    before: tuple[ChunkKV, ...] = ()
    begins: bool = False

    @property
    def at_seconds(self) -> float:
        """Stream time of the newest frame."""
        return self.record.last_pts_seconds


@dataclass(frozen=True)
class Decision:
    """What a trigger made of a moment. score, threshold: in the trigger's own unit; reason: one line for a person."""

    at_seconds: float
    fired: bool
    score: float
    threshold: float
    reason: str


class Trigger(ABC):
    """Looks at every chunk of one stream, in order, and decides from what came up to it. Holds that stream's state."""

    @abstractmethod
    def look(self, moment: LiveChunk) -> Decision:
        """Decide on the newest chunk. Called once for each."""


class Always(Trigger):
    """Fires at every chunk: the spec of a gate that misses nothing."""

    def look(self, moment: LiveChunk) -> Decision:
        return Decision(moment.at_seconds, True, 1.0, 0.0, "every chunk is looked at")


class Never(Trigger):
    """Fires at none: the baseline that costs nothing."""

    def look(self, moment: LiveChunk) -> Decision:
        return Decision(moment.at_seconds, False, 0.0, 1.0, "nothing is looked at")
