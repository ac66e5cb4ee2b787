"""The library of the page: every stream gets a memory of its own, which is opened, thinned out and deleted from any page."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from everyday import everyday
from held_streams import request, wait_for

from data.errors import MemoryBankError
from data.sources import PushSource, open_source
from memory import database, open_memory
from memory.manifest import MANIFEST
from model_adapters.base import ModelAdapter
from vstream.config import SessionConfig
from vstream.remembered import identity_of
from vstream.ui.handlers import Handlers
from vstream.ui.library import Shelf
from vstream.ui.refresh import fresh
from vstream.ui.snapshot import snapshot_of
from vstream.ui.studio import PageError, Studio, check_source
from vstream.ui.tab import Tab

FAST = "world:?seed=7&seconds=12&speed=0"
SLOW = "world:?seed=7&seconds=60&speed=4"
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


@pytest.mark.slow
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
    assert snapshot_of(other).state == "stored" and snapshot_of(other).num_chunks == 12 and len(other.records()) == 12
    assert other.thumbnail(3) is not None and other.look_at(3) == 3.0
    assert {"stage", "telemetry", "timeline"} <= set(fresh(other)) and fresh(other) == {}
    check_source(f"memory:{studio.saved_folder(name)}")


def test_spans_are_forgotten_and_memories_deleted(studio: Studio) -> None:
    tab = watched(studio, "a")
    (name,) = studio.saved()
    assert studio.forget("a", name, 2.0, 4.0) == (2, False), "in the stream that is being watched"
    assert tab.session is not None and tab.session.bank.chunk_ids() == [i for i in range(12) if i not in (2, 3)]
    assert tab.thumbnail(2) is None, "its picture is gone, too"
    studio.open("b")
    for action in (lambda: studio.delete("b", name), lambda: studio.forget("b", name, 5.0, 6.0)):
        with pytest.raises(MemoryBankError, match="somebody else"):
            action()
    studio.start_saved("b", name)
    assert len(studio.tab("b").records()) == 10
    studio.close("a")
    assert studio.forget("b", name, 5.0, 6.0) == (1, False)
    studio.delete("b", name)
    assert studio.saved() == [] and snapshot_of(studio.tab("b")).state == "idle"


def test_a_reader_in_the_way_of_forgetting_is_told(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    watched(studio, "a")
    studio.close("a")
    (name,) = studio.saved()
    page, shelf = request("b"), Shelf(studio, Handlers(studio))
    studio.open("b")
    reader = sqlite3.connect(studio.saved_folder(name) / MANIFEST)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM meta").fetchone()
    assert "traces of them stay" in shelf.forget(name, "2", "4", page)[0]
    reader.close()
    assert studio.forget("b", name, 5.0, 6.0) == (1, False), "the next one takes them along"


def test_pages_that_read_a_memory_forget_and_lose_what_another_page_takes_from_it(studio: Studio) -> None:
    watched(studio, "a")
    (name,) = studio.saved()
    studio.close("a")
    for key in ("b", "c"):
        studio.open(key)
        studio.start_saved(key, name)
        *_, answer = studio.tab(key).ask(QUESTION, 3.9)
        assert 3 in {e.chunk_id for e in answer.evidence}, "its KV is in this page's RAM"
    assert studio.forget("b", name, 3.0, 4.0) == (1, False)
    for key in ("b", "c"):
        tab = studio.tab(key)
        assert tab.session is not None and tab.session.bank.get([3]) == [] and tab.thumbnail(3) is None
        *_, answer = tab.ask(QUESTION, 3.9)
        assert 3 not in {e.chunk_id for e in answer.evidence} and snapshot_of(tab).num_chunks == 11
    studio.delete("b", name)
    for key, words in (("b", ""), ("c", "was deleted")):
        assert studio.tab(key).session is None and words in snapshot_of(studio.tab(key)).error


def test_a_memory_that_has_lost_its_manifest_is_listed_told_and_deleted(studio: Studio) -> None:
    watched(studio, "a")
    (name,) = studio.saved()
    studio.close("a")
    (studio.saved_folder(name) / MANIFEST).unlink()
    ((words, _),) = Shelf(studio, Handlers(studio)).choices()["choices"]
    assert words.startswith(f"{name}: ") and "\n" not in words
    studio.open("b")
    with pytest.raises(MemoryBankError, match="no manifest"):
        studio.start_saved("b", name)
    studio.delete("b", name)
    assert studio.saved() == []


@pytest.mark.parametrize("late_seconds", everyday([0.0, 0.3]))
def test_a_reload_goes_on_in_the_memory_of_its_source(studio: Studio, late_seconds: float) -> None:
    """late_seconds: how much later than the new page's beginning the old page's end is known."""
    assert studio.library is not None
    studio.library.grace_seconds = 60.0  # However long the old page takes to end on a busy machine.
    studio.open("a").start(open_source(SLOW))
    tab = studio.tab("a")
    wait_for(lambda: len(tab.records()) >= 2)
    first_chunk = tab.thumbnail(0)
    closing = threading.Timer(late_seconds, studio.close, args=("a",))
    closing.start()
    tab = studio.open("b")
    tab.start(open_source(SLOW))
    closing.join()
    num_before = tab.before.num_chunks
    assert num_before >= 2 and "goes on" in tab.before.note and tab.thumbnail(0) == first_chunk
    wait_for(lambda: len(tab.records()) > num_before)
    ids = [moment.chunk_id for moment in tab.records()]
    assert ids == list(range(len(ids))), "nothing is watched twice, nothing is left out"
    assert snapshot_of(tab).num_chunks >= len(ids) and len(studio.saved()) == 1
    studio.library.grace_seconds = 0.1
    other = studio.open("c")
    other.start(open_source(SLOW))
    assert other.before.num_chunks == 0 and len(studio.saved()) == 2, "one writer at a time: the second page has its own"
    studio.open("d").start(open_source("world:?seed=8&seconds=12&speed=1"))
    assert studio.tab("d").before.num_chunks == 0 and len(studio.saved()) == 3, "another source is another memory"


def test_a_recording_that_was_watched_to_its_end_is_read(studio: Studio) -> None:
    tab = watched(studio, "a")
    *_, before = tab.ask(QUESTION)
    studio.close("a")
    tab = watched(studio, "b")
    *_, after = tab.ask(QUESTION)
    assert (after.text, after.asked_at_seconds) == (before.text, before.asked_at_seconds)
    assert snapshot_of(tab).state == "ended" and len(tab.records()) == 12 and len(studio.saved()) == 1


def test_a_memory_of_other_settings_is_not_continued(studio: Studio, random_adapter: ModelAdapter) -> None:
    watched(studio, "a")
    studio.close("a")
    other = Studio(random_adapter, SessionConfig(fps=1), start_source=FAST, folder=studio.library.folder)
    assert watched(other, "a").before.num_chunks == 0 and len(other.saved()) == 2
    other.close_all()


def test_no_memory_is_left_empty(studio: Studio, random_adapter: ModelAdapter) -> None:
    shelf = Shelf(studio, Handlers(studio))
    tab = studio.open("a")
    tab.start(PushSource("camera"))
    assert shelf.choices()["choices"] == [], "nothing is stored yet"
    tab.start(PushSource("camera"))
    assert len(studio.saved()) == 1
    studio.close("a")
    assert studio.saved() == []
    # What a killed process leaves goes when the next one begins; what another one writes stays.
    identity = identity_of(random_adapter.info, studio.config)
    open_memory(studio.library.folder / "left", identity, write=True).close()
    held = open_memory(studio.library.folder / "held", identity, write=True)
    assert Studio(random_adapter, folder=studio.library.folder).saved() == ["held"]
    held.close()


def test_memories_are_named_by_source_start_and_length(studio: Studio) -> None:
    began = time.localtime()
    tab = watched(studio, "a")
    tab.session.save()
    ((words, name),) = Shelf(studio, Handlers(studio)).choices()["choices"]
    assert name == studio.saved()[0] and words.startswith(f"{tab.source.info.label} · {time.strftime('%Y-%m-%d', began)}")
    assert "· 00:12 long ·" in words
    studio.start_saved("a", name)
    assert snapshot_of(studio.tab("a")).label in words


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
    assert "disk" not in snapshot_of(tab).num_bytes
    studio.close_all()
