"""Several questions in one forward: the same as one at a time, and nothing of it stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.frames import Frame
from model_adapters.base import ModelAdapter
from model_adapters.registry import load_adapter
from vstream.session import StreamSession

QUESTIONS = ["tell me when a red circle appears", "comment", "what is on screen now ?", "did a blue star appear ?"]
WORDS = ["yes", "no", "silence", "red"]


def test_side_by_side_equals_one_at_a_time(exact_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(exact_adapter) as session:
        list(session.feed(frames[:9]))
        live = session.ingest.live
        runs = [exact_adapter.question_run(question) for question in QUESTIONS]
        alone = ModelAdapter.openings(exact_adapter, live, runs, WORDS)
        together = exact_adapter.openings(live, runs, WORDS)
        assert together.shape == (4, 4) and together.dtype == torch.float32
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
        swapped = exact_adapter.openings(live, runs[::-1], WORDS).flip(0)
        torch.testing.assert_close(together, swapped, atol=2e-5, rtol=0)
        assert alone.std(0).min() > 1e-3, "questions that do not differ would prove nothing"


def test_openings_leave_the_context_as_it_is(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(random_adapter) as session:
        list(session.feed(frames[:9]))
        live = session.ingest.live
        before = (live.num_tokens, live.next_position, live.read()[0])  # type: ignore[attr-defined]
        random_adapter.openings(live, [random_adapter.question_run(q) for q in QUESTIONS], WORDS)
        assert before[:2] == (live.num_tokens, live.next_position)
        assert torch.equal(before[2], live.read()[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_of_transformers_keeps_questions_apart(attention: str, random_folder: Path, frames: list[Frame]) -> None:
    """Some add their mask to the scores, where true and false would be one and nought, and hide nothing."""
    adapter = load_adapter(str(random_folder), device="cpu", attn_implementation=attention)
    with StreamSession(adapter) as session:
        list(session.feed(frames[:9]))
        live = session.ingest.live
        runs = [adapter.question_run(question) for question in QUESTIONS]
        expected = ModelAdapter.openings(adapter, live, runs, WORDS)
        torch.testing.assert_close(adapter.openings(live, runs, WORDS), expected, atol=1e-3, rtol=0)
