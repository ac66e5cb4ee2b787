"""Decoding by graphs is decoding: same tokens, logits, positions and evidence, however long contexts are and whoever cancels.

On the CPU the graph is what `torch.compile` traces, run as it is (and compiled by inductor in the slow tests); with CUDA the
same tests run on CUDA graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from families import BUILDERS, EXPERTS
from torch._dynamo.testing import CompileCounterWithBackend

from data.frames import Frame
from model_adapters import steps as steps_module
from model_adapters.base import AttentionTrace
from model_adapters.cache import BufferContext
from model_adapters.registry import load_adapter
from model_adapters.steps import AHEAD, KEPT, LEAST, Steps, capacity_for
from model_adapters.stock import StockAdapter
from vstream.config import SessionConfig
from vstream.session import StreamSession

LENGTHS = (1, 30, 3, 60, 2)
"""Contexts of these many sentences, one question after the other."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def adapter(request: pytest.FixtureRequest, random_folder: Path) -> Iterator[StockAdapter]:
    """An adapter that never ends an answer by itself."""
    torch._dynamo.reset()
    made = cast(StockAdapter, load_adapter(str(random_folder), device=request.param, dtype="float32", compile_step="off"))
    made.stop_ids = set()
    yield made
    torch._dynamo.reset()


def graphs(adapter: StockAdapter, backend: Any = "eager") -> Steps:
    adapter.steps = Steps(adapter, "on", backend)
    return adapter.steps


def built(adapter: StockAdapter, num_sentences: int) -> BufferContext:
    context = adapter.new_context(8)
    adapter.extend(context, adapter.sink_run())
    adapter.extend(context, adapter.plain_run("", "a red circle appeared at the door . " * num_sentences))
    return context


def asked(adapter: StockAdapter, num_sentences: int, num_tokens: int, traced: bool = True, temperature: float = 0.0) -> Any:
    """What an answer leaves: text, counts, KV, where it looked."""
    context, trace = built(adapter, num_sentences), AttentionTrace() if traced else None
    texts = list(adapter.generate(context, adapter.question_run("what is it ?"), num_tokens, temperature, 1, trace))
    looked = torch.zeros(0) if trace is None or trace.weights is None else trace.weights
    return (texts, context.num_tokens, context.next_position), (*context.read(), looked)


def same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_questions_in_a_row_are_answered_as_without_graphs(adapter: StockAdapter) -> None:
    """Contexts that grow and shrink, with and without a trace, sampled, and one that outgrows its buffers; two compilations."""
    cases = [(length, 5, True, 0.0) for length in LENGTHS] + [(2, 4, False, 0.0), (40, 4, False, 0.0), (3, 6, True, 0.8)]
    cases.append((5, LEAST, True, 0.0))
    expected = [asked(adapter, *case) for case in cases]
    counter = CompileCounterWithBackend("eager")
    made = graphs(adapter, counter)
    for case, result in zip(cases, expected, strict=True):
        same(asked(adapter, *case), result)
    assert made.kind in ("compiled", "cuda") and len(made._free) == KEPT
    if made.kind == "compiled":
        assert counter.frame_count == 2, "one with a trace and one without, whatever the capacity"


def test_the_logits_of_every_step_are_those_of_one_forward(adapter: StockAdapter) -> None:
    graphs(adapter)
    context = built(adapter, 4)
    run = adapter.question_run("what is it ?")
    tokens = torch.arange(40, 52, device=adapter.device)
    after = torch.arange(12, device=adapter.device).expand(adapter.info.num_position_axes, -1) + run.span
    whole = type(run)(
        torch.cat([run.embeds, adapter.model.get_input_embeddings()(tokens)]),
        torch.cat([run.position_ids, after], 1),
        run.span + 12,
        torch.cat([run.visual_mask, torch.zeros(12, dtype=torch.bool, device=adapter.device)]),
    )
    expected = adapter.logits(context.fork(), whole)[run.num_tokens - 1 :]
    with torch.inference_mode():
        decoded = adapter._decoded(context, run, None)
        found = [next(decoded), *(decoded.send(token[None]).clone() for token in tokens)]
        decoded.close()
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)
    assert context.num_tokens == built(adapter, 4).num_tokens + run.num_tokens + 12


@pytest.mark.slow
def test_cancelled_and_interleaved_answers_leave_no_trace(adapter: StockAdapter) -> None:
    expected = [asked(adapter, length, 6) for length in (2, 2, 35)]
    graphs(adapter)
    run = adapter.question_run("what is it ?")
    for num_tokens in (1, 2, 4):
        cancelled = adapter.generate(built(adapter, 50), run, 9, trace=AttentionTrace())
        for _ in range(num_tokens):
            next(cancelled)
        cancelled.close()  # type: ignore[attr-defined]
    contexts = [built(adapter, length) for length in (2, 2, 35)]
    traces = [AttentionTrace() for _ in contexts]
    streams = [adapter.generate(c, run, 6, trace=trace) for c, trace in zip(contexts, traces, strict=True)]
    texts = zip(*zip_longest(*streams), strict=True)
    for told, context, trace, result in zip(texts, contexts, traces, expected, strict=True):
        same(((list(told), context.num_tokens, context.next_position), (*context.read(), trace.weights)), result)


@pytest.mark.slow
def test_a_session_answers_alike(adapter: StockAdapter, frames: list[Frame]) -> None:
    """Evidence and all; `per_layer` brings each layer chunks of its own, which no step takes."""
    for retrieval in ("key_similarity", "per_layer"):
        config = SessionConfig(window_seconds=2, max_new_tokens=6, retrieval=retrieval, top_k=3)
        with StreamSession(adapter, config) as session:
            list(session.feed(frames))
            adapter.compile_steps("off")
            expected = session.answer("what is on screen now ?")
            graphs(adapter)
            found = session.answer("what is on screen now ?")
        assert found.text == expected.text and len(found.evidence) == len(expected.evidence) > 0
        for ours, theirs in zip(found.evidence, expected.evidence, strict=True):
            assert ours.chunk_id == theirs.chunk_id and ours.score == pytest.approx(theirs.score, abs=1e-3)


@pytest.mark.parametrize("fault", ["no graph", "another result", "no number"])
def test_what_is_no_graph_is_told_once_and_decoded_without(adapter: StockAdapter, fault: str, monkeypatch, caplog) -> None:
    expected = asked(adapter, 2, 4)
    made = graphs(adapter)

    def wrong(step: steps_module.Step, *args: Any) -> Any:
        if fault == "no graph":
            raise RuntimeError("nothing\nto be had")
        return lambda: made._forward(step).flip(1) if fault == "another result" else made._forward(step) * torch.nan

    monkeypatch.setattr(made, "_captured" if made.kind == "cuda" else "_traced", wrong)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            same(asked(adapter, 2, 4), expected)
    words = [record.message for record in caplog.records if "decoding goes" in record.message]
    assert len(words) == 1 and "\n" not in words[0]
    assert ("nothing to be had" if fault == "no graph" else "computes something else") in words[0] and made.kind == "off"


def test_a_spread_model_has_no_graphs(random_folder: Path, caplog) -> None:
    adapter = cast(StockAdapter, load_adapter(str(random_folder), device="cpu"))
    adapter.model.lm_head.to("meta")
    assert Steps(adapter, "on").kind == "off" and "one device" in caplog.text
    assert Steps(adapter, "auto").kind == "off" and Steps(adapter, "off").words == "one operation at a time"


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_of_transformers_decodes_alike(attention: str, random_folder: Path, caplog) -> None:
    """A mask that is added to the scores cannot be the one of a step: such an attention has none, and that is told."""
    torch._dynamo.reset()
    adapter = cast(StockAdapter, load_adapter(str(random_folder), device="cpu", attn_implementation=attention))
    adapter.stop_ids = set()
    expected = asked(adapter, 2, 4, traced=False)
    made = graphs(adapter)
    same(asked(adapter, 2, 4, traced=False), expected)
    assert made.kind == ("off" if attention == "eager" else "compiled")
    assert ("takes no such mask" in caplog.text) == (attention == "eager")
    torch._dynamo.reset()


def test_capacities_are_few_and_little_is_read_in_vain() -> None:
    capacities = {num: capacity_for(num) for num in range(1, 70_000, 7)}
    assert all(num <= capacity and (capacity == LEAST or 3 * num > 2 * capacity - 3) for num, capacity in capacities.items())
    assert len(set(capacities.values())) < 20 and all(capacity % 8 == 0 for capacity in capacities.values())
    assert AHEAD < LEAST


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_has_a_step_that_is_a_graph(family: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    adapter = cast(StockAdapter, load_adapter(str(BUILDERS[family](tmp_path / "model")), device="cpu"))
    adapter.stop_ids = set()
    expected = [asked(adapter, length, 5) for length in (1, 30)]
    made = graphs(adapter)
    for length, result in zip((1, 30), expected, strict=True):
        same(asked(adapter, length, 5), result)
    assert made.kind == "compiled" or (family in EXPERTS and made.reason)


@pytest.mark.slow
def test_what_inductor_compiles_is_the_same(adapter: StockAdapter) -> None:
    expected = [asked(adapter, length, 5) for length in (1, 30)]
    made = graphs(adapter, "inductor")
    for length, result in zip((1, 30), expected, strict=True):
        same(asked(adapter, length, 5), result)
    assert made.kind != "off"
