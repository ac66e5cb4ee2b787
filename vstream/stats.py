"""What a session has done so far, in numbers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.ingest import ChunkRecord


@dataclass
class Stats:
    """Counters since the session began. Token counts are of visual tokens; `num_stored_tokens` includes time stamps."""

    num_frames: int = 0
    num_chunks: int = 0
    num_seen_tokens: int = 0
    num_kept_tokens: int = 0
    num_stored_tokens: int = 0
    num_answers: int = 0
    last_ttft_seconds: float = 0.0
    recent_ttft_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def count(self, record: ChunkRecord) -> None:
        self.num_chunks += 1
        self.num_seen_tokens += record.num_seen_tokens
        self.num_kept_tokens += record.num_kept_tokens
        self.num_stored_tokens += record.num_tokens

    def answered(self, answer: Answer) -> None:
        self.num_answers += 1
        self.last_ttft_seconds = answer.ttft_seconds
        self.recent_ttft_seconds.append(answer.ttft_seconds)

    @property
    def drop_ratio(self) -> float:
        """Share of visual tokens that were dropped."""
        return 1 - self.num_kept_tokens / self.num_seen_tokens if self.num_seen_tokens else 0.0
