"""Streams that a small random model was fed with, and what they said."""

from __future__ import annotations

from collections.abc import Sequence

from data.frames import Frame
from model_adapters.base import ModelAdapter
from vstream.answer import Answer
from vstream.config import SessionConfig
from vstream.session import StreamSession

QUESTION = "when did the red circle appear ?"
SMALL = SessionConfig(window_seconds=3, top_k=2, max_new_tokens=6)


def fed(adapter: ModelAdapter, frames: Sequence[Frame], config: SessionConfig = SMALL, **options) -> StreamSession:
    session = StreamSession(adapter, config, **options)
    for frame in frames:
        session.push(frame)
    return session


def said(answer: Answer) -> tuple:
    """All of an answer but how long it took."""
    return answer.text, answer.asked_at_seconds, answer.evidence, answer.num_context_tokens, answer.done


def until(frames: Sequence[Frame], at: float) -> list[Frame]:
    return [frame for frame in frames if frame.pts_seconds <= at]
