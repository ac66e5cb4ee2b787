"""The library of the page: every stream gets a memory of its own, which is opened, thinned out and deleted from any page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import MemoryBankError
from data.sources import open_source
from model_adapters.base import ModelAdapter
from vstream.config import SessionConfig
from vstream.ui.refresh import fresh
from vstream.ui.studio import PageError, Studio, check_source
from vstream.ui.tab import Tab

FAST = "world:?seed=7&seconds=12&speed=0"
QUESTION = "what is on screen now ?"


@pytest.fixture
def studio(random_adapter: ModelAdapter, tmp_path: Path) -> Iterator[Studio]:
    made = Studio(random_adapter, SessionConfig(max_new_tokens=4), start_source=FAST, folder=tmp_path / "library")
    yield made
    made.close_all()


def watched(studio: Studio, key: str) -> Tab:
    tab = studio.open(key)
    tab.start(open_source(FAST))
    assert tab.feeder is not None
    tab.feeder._thread.join(timeout=120)
    return tab


def test_a_saved_memory_is_opened_without_its_source(studio: Studio) -> None:
    tab = watched(studio, "a")
    *_, before = tab.ask(QUESTION)
    (name,) = studio.saved()
    assert tab.session is not None and tab.session.memory is not None and tab.session.memory.folder.name == name
    watched(studio, "b")
    assert len(studio.saved()) == 2, "each stream has a memory of its own"
    studio.close("a")
    other = studio.open("c")
    studio.start_saved("c", name)
    *_, after = other.ask(QUESTION)
    assert (after.text, after.asked_at_seconds) == (before.text, before.asked_at_seconds)
    assert other.snapshot().state == "stored" and other.snapshot().num_chunks == 12 and len(other.records()) == 12
    assert other.thumbnail(3) is not None and other.look_at(3) == 3.0
    assert {"stage", "telemetry", "timeline"} <= set(fresh(other)) and fresh(other) == {}
    check_source(f"memory:{studio.saved_folder(name)}")


def test_spans_are_forgotten_and_memories_deleted(studio: Studio) -> None:
    tab = watched(studio, "a")
    (name,) = studio.saved()
    assert studio.forget("a", name, 2.0, 4.0) == 2, "in the stream that is being watched"
    assert tab.session is not None and tab.session.bank.chunk_ids() == [i for i in range(12) if i not in (2, 3)]
    assert tab.thumbnail(2) is None, "its picture is gone, too"
    studio.open("b")
    for action in (lambda: studio.delete("b", name), lambda: studio.forget("b", name, 5.0, 6.0)):
        with pytest.raises(MemoryBankError, match="somebody else"):
            action()
    studio.start_saved("b", name)
    assert len(studio.tab("b").records()) == 10
    studio.close("a")
    assert studio.forget("b", name, 5.0, 6.0) == 1
    studio.delete("b", name)
    assert studio.saved() == [] and studio.tab("b").snapshot().state == "idle"


def test_names_from_a_browser_are_not_believed(studio: Studio, tmp_path: Path) -> None:
    studio.open("a")
    for name in ("", "..", "../library", str(tmp_path), "nothing"):
        for action in (studio.start_saved, studio.delete):
            with pytest.raises(PageError, match="choose a saved memory"):
                action("a", name)


def test_a_memory_is_no_library(studio: Studio, random_adapter: ModelAdapter) -> None:
    watched(studio, "a")
    (name,) = studio.saved()
    with pytest.raises(MemoryBankError, match="is one memory"):
        Studio(random_adapter, folder=studio.saved_folder(name))


def test_without_a_library_nothing_is_saved(random_adapter: ModelAdapter) -> None:
    studio = Studio(random_adapter, start_source=FAST)
    tab = watched(studio, "a")
    assert studio.saved() == [] and tab.session is not None and tab.session.memory is None
    assert "disk" not in tab.snapshot().num_bytes
    studio.close_all()
