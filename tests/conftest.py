"""Shared fixtures: one small random checkpoint per data type and test run, and a world's frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import save_qwen3_vl

from data.frames import Frame
from data.world import World, make_world
from memory import Bank, DurableBank, MemoryBank, PlainBank
from model_adapters.base import ModelAdapter
from model_adapters.registry import load_adapter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("random") / "qwen3_vl")


@pytest.fixture(scope="session")
def random_adapter(random_folder: Path) -> ModelAdapter:
    return load_adapter(str(random_folder), device="cpu")


@pytest.fixture(scope="session", params=["float64", "float32"])
def exact_adapter(request: pytest.FixtureRequest, random_folder: Path) -> ModelAdapter:
    return load_adapter(str(random_folder), dtype=getattr(torch, request.param), device="cpu")


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(seed=3, seconds=12, side=96)


@pytest.fixture(scope="session")
def frames(world: World) -> list[Frame]:
    return list(world.frames(2.0))


@pytest.fixture(autouse=True)
def banks_are_whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every bank that a test makes has its bookkeeping checked when it is closed, or at the end of the test."""
    made: list[Bank] = []

    def watch(kind: type[Bank]) -> None:
        make, close = kind.__init__, kind.close

        def making(bank: Bank, *values: object, **named: object) -> None:
            make(bank, *values, **named)  # type: ignore[arg-type]
            if type(bank) is kind:
                made.append(bank)

        def closing(bank: Bank) -> None:
            if bank in made:
                made.remove(bank)
                bank.check_integrity()
            close(bank)

        monkeypatch.setattr(kind, "__init__", making)
        monkeypatch.setattr(kind, "close", closing)

    for kind in (PlainBank, MemoryBank, DurableBank):
        watch(kind)
    yield
    for bank in made:
        bank.check_integrity()
