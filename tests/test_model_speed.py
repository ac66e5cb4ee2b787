"""Models of a shape with random weights, and the figures of the model side beside their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.errors import AdapterError
from eval.model_speed import NUM_STEPS, measure, print_speed
from model_adapters import budget, random_weights
from model_adapters.registry import load_adapter, memory_needed

SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All shapes with narrower layers; everything else as published."""
    for name, shape in random_weights.SHAPES.items():
        text, vision = shape.text | SMALL_TEXT, shape.vision | SMALL_TOWER
        if "head_dim" not in text:
            text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [2, 3, 3]}
        monkeypatch.setitem(random_weights.SHAPES, name, replace(shape, text=text, vision=vision))


@pytest.mark.parametrize("shape", random_weights.SHAPES)
def test_a_shape_with_random_weights_is_a_model_like_any(small, shape: str, random_adapter) -> None:
    name = f"random:{shape}?layers=2&tower_layers=2&vocabulary=512"
    first, again, other = (load_adapter(name + extra, device="cpu") for extra in ("", "&seed=0", "&seed=1"))
    assert first.info.num_layers == 2 and first.info.dtype == torch.float32 and first.info.name == name
    weights = [adapter.model.lm_head.weight for adapter in (first, again, other)]  # type: ignore[attr-defined]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    picture = torch.randint(0, 256, (2, 3, 4 * first.cell, 4 * first.cell), dtype=torch.uint8)
    assert first.embed(picture).grid == (1, 4, 4)
    context = first.new_context(8)
    first.extend(context, first.sink_run())
    assert len(list(first.generate(context, first.question_run("What?"), 3))) == 3


def test_a_shape_that_does_not_fit_is_never_made(small, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "random:qwen3-vl-8b?layers=2&tower_layers=2&vocabulary=512"
    adapter = load_adapter(name, device="cpu")
    needed = memory_needed(name)
    assert needed.weight_bytes == adapter.weight_bytes and needed.kv_bytes_per_token == adapter.info.kv_bytes_per_token
    assert memory_needed(name, dtype="bfloat16").weight_bytes == adapter.weight_bytes / 2
    monkeypatch.setattr(budget, "free_ram", lambda: needed.weight_bytes - 1)
    with pytest.raises(AdapterError, match=r"are free on cpu"):
        load_adapter(name, device="cpu")
    with pytest.raises(AdapterError, match="made on one device"):
        memory_needed(name, device_map="auto")


def test_figures_stand_beside_limits_that_follow_from_the_shape(random_adapter, capsys) -> None:
    """Counts against the sizes of the weights: tokens times weights for prefill, each weight once for a step."""
    found = measure(random_adapter, rounds=1, side=128)
    layers = sum(p.numel() for p in random_adapter.language.layers.parameters() if p.ndim > 1)
    head = random_adapter.model.lm_head.weight.numel()
    products = 2 * layers * found["num_tokens"]
    assert products <= found["prefill_flops"] <= 2 * products
    step_weights = found["bytes_per_step"] / 4 - random_adapter.info.kv_bytes_per_token * found["num_tokens"] / 4
    assert layers + head <= step_weights <= 1.5 * (layers + head)
    assert all(found[f"{name}_seconds"] > 0 for name in ("encode", "prefill", "step")) and NUM_STEPS > 1
    print_speed(found, "model")
    out = capsys.readouterr().out
    assert "GFLOP/s" in out and "GB/s" in out and out.count("%") == 3


@pytest.mark.parametrize("name", ["random:", "random:gpt-9", "random:qwen3-vl-8b?layers=0", "random:qwen3-vl-8b?width=2"])
def test_shapes_that_are_not_known_are_told(name: str) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(name, device="cpu")
    assert name in str(caught.value) and "\n" not in str(caught.value)
