"""Shared fixtures: one small random checkpoint per data type and test run, and a world's frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import save_qwen3_vl

from data.frames import Frame
from data.world import World, make_world
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
