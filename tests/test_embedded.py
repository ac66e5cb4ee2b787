"""The shipped model: what is in the repository is whole, small, and answers about streams that it has never seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch

from eval.run import main
from model_adapters.base import ModelAdapter
from model_adapters.checks import typed
from model_adapters.conformance import Conformance
from model_adapters.references import create_reference
from model_adapters.registry import load_adapter
from model_adapters.stock import StockAdapter
from model_adapters.tiny.config import CHECKPOINT, build_config, build_tokenizer, write_side_files

MAX_BYTES = 12 * 1024 * 1024


@pytest.fixture(scope="module")
def embedded() -> ModelAdapter:
    return load_adapter("embedded", device="cpu")


def test_the_checkpoint_is_small_and_holds_no_pickle() -> None:
    files = list(CHECKPOINT.iterdir())
    assert sum(f.stat().st_size for f in files) <= MAX_BYTES
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".jinja"}


def test_special_tokens_that_are_typed_are_text(embedded: ModelAdapter) -> None:
    kit = Conformance(cast(StockAdapter, embedded), create_reference(cast(StockAdapter, embedded), CHECKPOINT))
    assert typed(kit).passed


def test_the_side_files_are_those_that_the_code_writes(tmp_path: Path) -> None:
    write_side_files(tmp_path, build_tokenizer())
    for file in tmp_path.iterdir():
        assert (CHECKPOINT / file.name).read_text() == file.read_text(), file.name


def test_the_config_is_the_one_that_training_builds() -> None:
    shipped = json.loads((CHECKPOINT / "config.json").read_text())
    built = json.loads(build_config(build_tokenizer()).to_json_string())
    for part in ("text_config", "vision_config"):
        for name, value in built[part].items():
            if name not in ("dtype", "transformers_version"):
                assert shipped[part].get(name) == value, (part, name)


def test_weights_are_finite_and_of_the_size_that_the_readme_says(embedded: ModelAdapter) -> None:
    weights = list(embedded.model.parameters())  # type: ignore[attr-defined]
    assert all(bool(torch.isfinite(w).all()) for w in weights)
    assert 2_000_000 <= sum(w.numel() for w in weights) <= 5_500_000


@pytest.mark.slow
def test_unseen_encoded_streams_are_answered_far_above_the_blind_control(tmp_path: Path) -> None:
    """A broken checkpoint, a wrong prompt or a wrong position falls to the blind control at once; bars stand in the README."""
    out = tmp_path / "needle.json"
    assert main(["needle", "--streams", "4", "--seconds", "40", "--moments", "3", "--json", str(out)]) == 0
    accuracy = json.loads(out.read_text())["accuracy"]
    rates = {arm: values["all"]["right"] / values["all"]["n"] for arm, values in accuracy.items()}
    assert rates["key_similarity"] > rates["blind"] + 0.3, rates
