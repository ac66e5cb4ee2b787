"""A model whose layers lie on several devices answers as on one: keys and values, retrieved chunks, questions, evidence.

Two devices are pretended where there are none (`pretend_devices`); the same on two real GPUs where there are some.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from families import BUILDERS, EXPERTS
from pretend_devices import dispatched, pretended

from model_adapters import attention
from model_adapters.base import AttentionTrace, ChunkKV, TokenRun
from model_adapters.conformance import QUESTION, fitting_clip
from model_adapters.devices import device_of, halved
from model_adapters.registry import load_adapter
from model_adapters.stock import StockAdapter


def watched(adapter: StockAdapter) -> Iterator[torch.Tensor]:
    """Everything that an adapter makes of a clip and questions about it, on the CPU."""
    live, stored = adapter.new_context(16), []
    for number, chunk in enumerate([None, *fitting_clip(adapter)], start=-1):
        run = adapter.sink_run() if chunk is None else seen(adapter, chunk)
        keys, values = adapter.extend(live, run)
        stored.append(ChunkKV(number, keys, values, run.position_ids, run.span, float(number), number + 1.0))
        yield from (keys, values)
    built = adapter.new_context(1)
    adapter.append(built, stored)
    yield from built.read()
    layers = adapter.new_context(1)
    adapter.append(layers, stored[:1])
    adapter.append_layers(layers, [stored[1 + index % 2 :] for index in range(adapter.info.num_layers)])
    question = adapter.question_run(QUESTION)
    for context in (built, layers):
        yield adapter.logits(context.fork(), question)
    yield adapter.openings(live, [question, adapter.question_run("Why?")], ["yes", "no"])
    yield adapter.encode_question(QUESTION).per_layer
    yield torch.tensor(adapter.likelihoods(built.fork(), question, ["a red circle", "no"]))
    trace = AttentionTrace()
    said = list(adapter.generate(built, question, 3, trace=trace))
    yield torch.tensor([ord(letter) for letter in "".join(said)])
    assert trace.weights is not None
    yield trace.weights


def seen(adapter: StockAdapter, chunk: Any) -> TokenRun:
    visual = adapter.embed(adapter.picture(chunk))
    return adapter.chunk_run(chunk, visual.grid, torch.arange(len(visual.embeds)) % 3 > 0, visual)


def rebuilt(adapter: StockAdapter, model: Any) -> StockAdapter:
    return type(adapter)(model, adapter.tokenizer, adapter.spec, adapter.info.name, adapter.info.fingerprint)


EVERYDAY = ("qwen3_vl", "qwen2_5_vl", "internvl")


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_a_model_over_two_devices_is_the_same_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own causal bias cannot be made where devices are pretended.
    dense = lambda queries, keys: torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)  # noqa: E731
    monkeypatch.setattr(attention, "causal_lower_right", dense)
    whole = cast(StockAdapter, load_adapter(str(BUILDERS[family](tmp_path / "model")), device="cpu"))
    if family in EXPERTS:
        # The default counts the experts' tokens in a way that the CPU, which computes here, has for itself only.
        whole.model.set_experts_implementation("eager")
    model = copy.deepcopy(whole.model)
    for part in model.modules():
        part._forward_hooks.clear()
    with torch.inference_mode(), pretended() as places:
        dispatched(model, halved(whole.model, whole.language.layers, *places))
        adapter = rebuilt(whole, model)
        assert adapter.device == places[0] and set(adapter.devices) == set(places)
        for found, expected in zip(watched(adapter), watched(whole), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        context = adapter.new_context(4)
        assert [layer.held()[0].device for layer in context.layers] == adapter.devices


@pytest.mark.gpu
@pytest.mark.parametrize("family", BUILDERS)
def test_a_model_over_two_gpus_is_the_same_model(family: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder = str(BUILDERS[family](tmp_path / "model"))
    whole = cast(StockAdapter, load_adapter(folder, device="cuda:0", dtype="float32"))
    device_map = halved(whole.model, whole.language.layers, 0, 1)
    split = cast(StockAdapter, load_adapter(folder, device_map=device_map, dtype="float32"))
    assert {device.index for device in split.devices} == {0, 1}
    for found, expected in zip(watched(split), watched(whole), strict=True):
        torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-4)


def test_where_a_module_computes_is_read_from_its_hooks() -> None:
    """Weights that wait elsewhere lie on the meta device; what a hook brings them to is told, one hook or several."""
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert device_of(layer) == torch.device("cpu")
    for place, expected in (("cpu", "cpu"), (1, "cuda:1"), (torch.device("cuda", 0), "cuda:0")):
        waiting = copy.deepcopy(layer).to("meta")
        add_hook_to_module(waiting[0], AlignDevicesHook(execution_device=place, offload=True, weights_map={}))
        assert device_of(waiting) == torch.device(expected)
        add_hook_to_module(waiting[0], ModelHook(), append=True)
        assert device_of(waiting) == torch.device(expected)
