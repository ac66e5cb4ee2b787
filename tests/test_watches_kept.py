"""Watches in a stored memory: they go on where they were left, with their log, and nothing of the past fires again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import MemoryBankError
from data.frames import Frame
from memory.manifest import Manifest
from memory.notes import Note, Notes
from memory.opening import open_memory
from memory.upkeep import forget_span
from model_adapters.base import ModelAdapter
from vstream.__main__ import main
from vstream.config import SessionConfig
from vstream.session import StreamSession
from vstream.watches import WatchDecision, WatchRules, replay

CONFIG = SessionConfig(poll_seconds=0, window_seconds=3)
RULES = WatchRules(threshold=0.01, cooldown_seconds=4.0)
"""A random model's yes is likelier than that, so that something fires."""


def watched(
    adapter: ModelAdapter, folder: Path, frames: list[Frame], *conditions: str, rules: WatchRules = RULES
) -> StreamSession:
    session = StreamSession(adapter, CONFIG, memory=folder)
    for condition in conditions:
        session.watch(condition, rules)
    list(session.feed(frames))
    return session


def log_of(session: StreamSession) -> list[WatchDecision]:
    return list(session.unasked.watches.log)


def test_a_stream_in_two_sittings_decides_as_in_one(random_adapter: ModelAdapter, frames: list[Frame], tmp_path: Path) -> None:
    """The same watches, decisions and alerts as where nobody closed it in between; cooldown and arming go on."""
    conditions = ("the door opens", "it rains")
    with watched(random_adapter, tmp_path / "one", frames[:20], *conditions) as whole:
        expected, alerts = log_of(whole), list(whole.unasked.watches.alerts)
    assert {d.verdict for d in expected} >= {"fired", "suppressed"}
    with watched(random_adapter, tmp_path / "two", frames[:10], *conditions) as first:
        num_first = len(first.unasked.watches.alerts)
        first.finish()
    with StreamSession(random_adapter, CONFIG, memory=tmp_path / "two") as second:
        assert [watch.condition.text for watch in second.unasked.watches.active] == list(conditions)
        assert second.unasked.watches.num_alerts == num_first and "2 watches" in second.unasked.kept
        assert second.unasked.watches.restored_until == second.unasked.watches.alerts[-1].chunk_id < 5
        assert [a.thumbnail[:2] for a in second.unasked.watches.alerts] == [b"\xff\xd8"] * num_first
        offset = second.offset_seconds
        told = []
        second.unasked.watches.on_alert = told.append
        list(second.feed(frames[10:20]) if not offset else second.feed(shifted(frames[10:20], -offset)))
        found = log_of(second)
        for watch in second.unasked.watches.active:
            own = [decision for decision in found if decision.findings.watch == watch.number]
            assert replay(watch, second.unasked.prompts, own) == own, "the log replays over the pause"
        number = second.watch("something else").number
    assert number == 3, "numbers are not used twice"
    assert [(d.findings.watch, d.findings.chunk_id, d.verdict) for d in found] == [
        (d.findings.watch, d.findings.chunk_id, d.verdict) for d in expected
    ]
    assert all(alert.fired_at_seconds >= 5 for alert in told), "nothing of the past fires again"
    assert len(alerts) >= 2


def shifted(frames: list[Frame], seconds: float) -> list[Frame]:
    """As a source that begins anew: the session adds its own offset to these times."""
    return [Frame(f.data, f.pts_seconds + seconds, f.duration_seconds) for f in frames]


def test_what_has_ended_stays_ended(random_adapter: ModelAdapter, frames: list[Frame], tmp_path: Path) -> None:
    with StreamSession(random_adapter, CONFIG, memory=tmp_path / "m") as session:
        once = session.watch("it rains", WatchRules(threshold=0.01, once=True))
        removed = session.watch("it snows", WatchRules(threshold=0.999))
        expired = session.watch("it thunders", WatchRules(threshold=0.999, expires_seconds=3))
        late = session.watch("it hails", WatchRules(threshold=0.999, expires_seconds=8))
        list(session.feed(frames[:10]))
        session.unasked.watches.remove(removed.number)
        assert [watch.number for watch in session.unasked.watches.active] == [late.number]
    with StreamSession(random_adapter, CONFIG, memory=tmp_path / "m") as session:
        assert [watch.number for watch in session.unasked.watches.active] == [late.number], (once, expired)
        list(session.feed(shifted(frames[10:20], 10.0)))
        assert not session.unasked.watches.active, "its time counts on over the pause"
        assert [d.verdict for d in log_of(session)].count("expired") == 2


def test_a_memory_that_is_only_read_shows_them_and_fires_nothing(
    random_adapter: ModelAdapter, frames: list[Frame], tmp_path: Path
) -> None:
    with watched(random_adapter, tmp_path / "m", frames[:10], "it rains") as session:
        log, alerts = log_of(session), list(session.unasked.watches.alerts)
        session.save()
    with StreamSession.open(random_adapter, tmp_path / "m") as session:
        assert log_of(session) == log and list(session.unasked.watches.alerts) == alerts
        assert not session.unasked.watches.active


def test_forgetting_a_span_takes_what_was_decided_in_it(
    random_adapter: ModelAdapter, frames: list[Frame], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    with watched(random_adapter, folder, frames[:20], "it rains") as session:
        assert any(2 <= d.findings.start_seconds < 4 for d in log_of(session))
    memory = open_memory(folder, write=True)
    try:
        forget_span(memory, 2.0, 4.0)
    finally:
        memory.close()
    with StreamSession.open(random_adapter, folder) as session:
        kept = log_of(session)
        assert kept and not any(d.findings.start_seconds < 4 and d.findings.end_seconds > 2 for d in kept)
        assert not any(a.start_seconds < 4 and a.end_seconds > 2 for a in session.unasked.watches.alerts)


def test_what_is_forgotten_is_not_written_with_the_next_chunk(
    random_adapter: ModelAdapter, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a watch that never fires, decisions are written now and then only.
    quiet = WatchRules(confirm=60)
    with watched(random_adapter, tmp_path / "m", frames[:13], "it rains", rules=quiet) as session:
        rest = session.unasked.forget

        def late(*span: float) -> None:
            # The stream's own thread may go on as soon as the chunks have gone.
            session.unasked.watches.save()
            rest(*span)

        monkeypatch.setattr(session.unasked, "forget", late)
        session.forget(4.0, 6.0)
        assert session.memory is not None
        spans = [(note.start_seconds, note.end_seconds) for note in Notes(session.memory.manifest).of("decision")]
        assert spans and not any(start < 6 and end > 4 for start, end in spans if start is not None and end is not None)


def test_notes_are_bounded_checked_and_survive_a_reader_of_a_memory_without_any(
    tmp_path: Path, random_adapter: ModelAdapter
) -> None:
    with StreamSession(random_adapter, CONFIG, memory=tmp_path / "m") as session:
        assert session.memory is not None
        notes = Notes(session.memory.manifest)
        assert notes.of("thing") == []
        notes.forget([(0.0, 1e9)])
        notes.put([Note("thing", i, f"content {i}", i, i + 1) for i in range(10)], most=4)
        assert [note.content for note in notes.of("thing")] == [f"content {i}" for i in range(6, 10)]
        notes.put([Note("thing", 9, "anew")], most=4)
        notes.forget([(0.0, 8.0)])
        assert [note.content for note in notes.of("thing")] == ["content 8", "anew"]
        with session.memory.manifest.changing() as db:
            db.execute("UPDATE notes SET content = 'forged' WHERE number = 8")
        assert [note.content for note in notes.of("thing")] == ["anew"]


def test_where_they_cannot_be_written_the_stream_goes_on(
    random_adapter: ModelAdapter,
    frames: list[Frame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(notes: Notes, *_: object) -> None:
        raise MemoryBankError("the disk is full")

    with watched(random_adapter, tmp_path / "m", [], "it rains") as session:
        with monkeypatch.context() as patch:
            patch.setattr(Notes, "put", full)
            list(session.feed(frames[:14]))
            assert session.unasked.watches.num_alerts > 0
            assert caplog.text.count("the disk is full; watches go on, but are not remembered") == 1
        list(session.feed(frames[14:16]))
        expected = log_of(session)
    with StreamSession.open(random_adapter, tmp_path / "m") as session:
        assert log_of(session) == expected, "what waited was written when it could be"


@pytest.mark.slow
def test_the_command_goes_on_with_what_its_memory_watches_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["watch", "world:?seed=12&seconds=20&speed=0", "--memory", str(tmp_path / "m"), "--json"]
    log = tmp_path / "log.jsonl"
    assert main([*argv, "--when", "a red circle appears", "--until", "8"]) == 0
    first = capsys.readouterr()
    assert main([*argv, "--when", "a red circle appears", "--when", "it rains", "--log", str(log)]) == 0
    second = capsys.readouterr()
    assert "this memory watches on: a red circle appears" in second.err
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["watch"] for row in rows} == {1, 2} and min(row["start_seconds"] for row in rows) >= 7
    times = [[json.loads(line)["fired_at_seconds"] for line in told.out.splitlines()] for told in (first, second)]
    assert all(t < 9 for t in times[0]) and all(t >= 8 for t in times[1])


def test_the_manifest_of_a_memory_without_watches_has_no_table_for_them(random_adapter: ModelAdapter, tmp_path: Path) -> None:
    with StreamSession(random_adapter, CONFIG, memory=tmp_path / "m"):
        pass
    manifest = Manifest(tmp_path / "m", write=False)
    assert not manifest.query("SELECT 1 FROM sqlite_master WHERE name = 'notes'")
    manifest.close()
