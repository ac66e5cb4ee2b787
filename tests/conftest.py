"""Shared fixtures: one small random checkpoint per data type and per family, and a world's frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from checkpoints import save_qwen3_vl
from everyday import everyday
from families import BUILDERS, EVERYDAY, conformance

from data.errors import MemoryBankError
from data.frames import Frame
from data.world import World, make_world
from memory import Bank, DurableBank, MemoryBank, PlainBank
from model_adapters.base import ModelAdapter
from model_adapters.conformance import Conformance
from model_adapters.registry import FAMILIES, load_adapter


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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = BUILDERS[family](tmp_path_factory.mktemp("families") / family)
        return made[family]

    return folder


@pytest.fixture(scope="session", params=everyday(FAMILIES, EVERYDAY))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def kit(family: str, saved: Callable[[str], Path]) -> Conformance:
    return conformance(saved(family))


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(seed=3, seconds=12, side=96)


@pytest.fixture(scope="session")
def frames(world: World) -> list[Frame]:
    return list(world.frames(2.0))


ALIVE: WeakSet[Bank] = WeakSet()
"""Every bank that was made and is not closed, by whatever test, fixture or module."""


def pytest_sessionstart() -> None:
    """Before anything is collected: banks are made at import, too."""
    # As the program does with small models: beside a busy process, two threads take many times as long as one.
    torch.set_num_threads(1)

    def watch(kind: type[Bank]) -> None:
        make, close = kind.__init__, kind.close

        def making(bank: Bank, *values: object, **named: object) -> None:
            make(bank, *values, **named)  # type: ignore[arg-type]
            if type(bank) is kind:  # else the constructor of its own class is not done yet
                ALIVE.add(bank)

        def closing(bank: Bank) -> None:
            alive = bank in ALIVE
            ALIVE.discard(bank)
            try:
                if alive:
                    bank.check_integrity()
            finally:
                # Also where a damaged manifest cannot be asked: who still held its lock would be in the next writer's way.
                close(bank)

        kind.__init__, kind.close = making, closing  # type: ignore[method-assign]

    for kind in (PlainBank, MemoryBank, DurableBank):
        watch(kind)


def check_banks() -> None:
    """AssertionError if the bookkeeping of a bank that is open is wrong."""
    for bank in list(ALIVE):
        try:
            bank.check_integrity()
        except MemoryBankError:
            # Another thread has closed it meanwhile, which checks it, too.
            assert bank not in ALIVE


@pytest.fixture(autouse=True)
def banks_are_whole() -> Iterator[None]:
    """After every test all banks have their bookkeeping checked, those of other tests and of fixtures, too; `close` checks its
    own before anything is let go."""
    yield
    check_banks()
