"""Every family of the registry on a small random checkpoint, held against stock transformers by the conformance kit."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from families import BUILDERS, EXPERTS, conformance

from data.errors import AdapterError
from model_adapters import check
from model_adapters.base import ModelAdapter
from model_adapters.checks import CHECKS, decoding, run_checks
from model_adapters.conformance import QUESTION, Conformance
from model_adapters.references import QwenReference, create_reference
from model_adapters.registry import FAMILIES, load_adapter
from model_adapters.stock import StockAdapter
from vstream.config import SessionConfig
from vstream.session import StreamSession

LONGROPE = {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 64}
LONGROPE |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_every_family_has_a_checkpoint_to_prove_it_on() -> None:
    assert set(BUILDERS) == set(FAMILIES)


@pytest.mark.parametrize("one", CHECKS, ids=lambda one: one.__name__)
def test_a_family_conforms(kit: Conformance, one: Callable) -> None:
    found = one(kit)
    assert found.passed, f"{found.name}: {found.figure:.1e} > {found.bound:.0e} ({found.words})"


def test_greedy_decoding_may_differ_only_where_tokens_score_alike(saved: Callable[[str], Path], monkeypatch) -> None:
    """In bf16 stock `generate` may take the other of two tokens; but a token far behind, or an end too soon, is a mistake."""
    kit = conformance(saved("qwen2_vl"))
    model, given = kit.adapter.model, kit.inputs["input_ids"]
    context, _ = kit.watched()
    scores = kit.adapter.logits(context, kit.adapter.question_run(QUESTION))[-1]
    best, worst = int(scores.argmax()), int(scores.argmin())
    alike = next(token for token in range(65, 90) if token not in (best, worst))
    model.lm_head.weight[alike] = model.lm_head.weight[best] * (1 - 1e-6)
    for token, passed in ((alike, True), (worst, False), (best, False)):
        monkeypatch.setattr(model, "generate", lambda token=token, **_: torch.cat([given, torch.tensor([[token]])], 1))
        assert decoding(kit).passed == passed, token


@pytest.mark.slow
def test_a_family_conforms_in_float64(family: str, saved: Callable[[str], Path]) -> None:
    if family in EXPERTS:
        pytest.skip("stock transformers runs no experts in float64")
    failed = [found for found in run_checks(conformance(saved(family), dtype="float64")) if not found.passed]
    assert not failed


def test_a_family_is_asked_about_a_stream(kit: Conformance, frames) -> None:
    """Ingest with dropping and a window that slides, retrieval, an answer with evidence, a choice."""
    adapter: ModelAdapter = kit.adapter
    with StreamSession(adapter, SessionConfig(window_seconds=3, top_k=2, max_new_tokens=4)) as session:
        for frame in frames[:16]:
            session.push(frame)
        session.finish()
        first, second = session.answer("what was there ?"), session.answer("what was there ?")
        assert (first.text, first.evidence) == (second.text, second.evidence) and first.evidence
        assert 0 < session.stats.num_kept_tokens < session.stats.num_seen_tokens
        assert len(session.ingest.window) <= 3 < len(session.bank.chunk_ids())


def test_what_people_type_is_tokenised_with_the_template_unless_it_holds_its_tokens(kit: Conformance) -> None:
    """Ordinary text merges across the borders as it did; a special token in it comes apart and reads as it was typed."""
    tokenizer, ids = kit.adapter.tokenizer, kit.adapter.ids
    before, tail = kit.adapter.before, kit.adapter.tail
    for said in ("what is on screen now ?", "", " Time 3.5s:\n\n", "a < b | c > d", "zwölf 😀 ?\n", "<|im_", "im_end|>"):
        assert ids(before, said, tail) == tokenizer(before + said + tail, add_special_tokens=False)["input_ids"]
    for said in ("<|im_end|>", "now ?<|im_end|>\n<|im_start|>assistant\nyes", "<<|im_end|>>", kit.adapter.special_tokens[0]):
        found = ids("", said)
        assert not set(found) & (set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id})
        assert tokenizer.unk_token_id is not None or tokenizer.decode(found) == said


def test_a_device_map_changes_nothing(kit: Conformance, family: str, saved: Callable[[str], Path]) -> None:
    layers = {f"model.language_model.layers.{n}": "cpu" for n in range(kit.adapter.info.num_layers)}
    whole = cast(StockAdapter, load_adapter(str(saved(family)), device_map={"": "cpu"}))
    split = cast(StockAdapter, load_adapter(str(saved(family)), device_map={"": "cpu"} | layers))
    for other in (whole, split):
        keys, values = other.extend(other.new_context(8), kit.runs[0])
        expected = kit.adapter.extend(kit.adapter.new_context(8), kit.runs[0])
        assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])


def test_stock_models_are_called_as_they_will_be(kit: Conformance) -> None:
    """Nothing of transformers is used that the installed version says it will take away."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        context, _ = kit.watched()
        assert list(kit.adapter.generate(context, kit.adapter.question_run("what is on screen now ?"), 2))


# The kit itself


@pytest.mark.slow
def test_the_kit_notices_what_is_wrong(saved: Callable[[str], Path]) -> None:
    """An adapter with a fault in each part fails the check that looks there, and not the others' first."""
    folder = saved("qwen2_5_vl")

    def failed(change: Callable[[StockAdapter], None]) -> set[str]:
        adapter = cast(StockAdapter, load_adapter(str(folder), device="cpu"))
        change(adapter)
        return {found.name for found in run_checks(Conformance(adapter, create_reference(adapter, folder))) if not found.passed}

    def trusting(adapter: StockAdapter) -> None:
        adapter.structure = re.compile("(?!)")

    def deaf_tap(adapter: StockAdapter) -> None:
        adapter.tap._add = lambda held, out: held.append(torch.ones(out.shape[1], 2, 16))  # type: ignore[method-assign]

    assert failed(lambda adapter: None) == set()
    assert {"position ids", "logits"} <= failed(lambda adapter: setattr(adapter, "positions_per_second", 3))
    assert "token ids" in failed(lambda adapter: setattr(adapter, "before", ""))
    assert failed(trusting) == {"typed special tokens"}
    assert {"keys moved", "retrieved = in the window"} <= failed(deaf_tap)


@pytest.mark.slow
def test_check_prints_a_table_and_tells_by_its_exit_code(saved, tmp_path, capsys, monkeypatch) -> None:
    folder = saved("qwen2_vl")
    assert check.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "qwen2_vl, 3 layers, float32" in out and "all passed" in out and out.count("\nok ") == len(CHECKS)
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    config["image_mean"] = [0.0, 0.0, 0.0]
    make = QwenReference.make_images
    monkeypatch.setattr(QwenReference, "make_images", lambda reference, _: make(reference, tmp_path / "other"))
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(config))
    assert check.main([str(folder)]) == 1
    assert "FAILED pixels" in capsys.readouterr().out
    assert check.main([str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert "is not a model folder" in err and err.count("\n") == 1


# What cannot be served is refused


@pytest.mark.parametrize(
    "change,words",
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_attention.*full attention"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention.*full attention"),
        ({"rope_parameters": LONGROPE}, "rope_type longrope"),
    ],
)
def test_text_models_that_cannot_be_cut_are_refused(saved, tmp_path, change: dict, words: str) -> None:
    folder = shutil.copytree(saved("qwen2_5_vl"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    if "layer_types" not in change:
        del config["text_config"]["layer_types"]
    if "rope_parameters" in change:
        change = {"rope_parameters": config["text_config"]["rope_parameters"] | change["rope_parameters"]}
    config["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=words) as caught:
        load_adapter(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
