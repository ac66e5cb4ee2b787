"""Sessions that outlive their process: what a reopened memory answers, how a stream goes on in it, and what is forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from everyday import everyday

from data.errors import ConfigError, MemoryBankError, QuestionError
from data.frames import Frame
from data.world import make_world
from model_adapters.base import ModelAdapter
from vstream.__main__ import main
from vstream.answer import Answer
from vstream.config import SessionConfig
from vstream.session import StreamSession

QUESTION = "when did the red circle appear ?"
SMALL = SessionConfig(window_seconds=3, top_k=3, max_new_tokens=5)


def watched(
    adapter: ModelAdapter, frames: Sequence[Frame], folder: Path | None, config: SessionConfig = SMALL
) -> StreamSession:
    session = StreamSession(adapter, config, memory=folder)
    for frame in frames:
        session.push(frame)
    return session


def said(answer: Answer, tiers: bool = False) -> tuple:
    """All of an answer but how long it took, and, unless asked for, from which tier it came."""
    evidence = [(e.chunk_id, e.start_seconds, e.end_seconds, e.score, e.tier if tiers else "") for e in answer.evidence]
    return answer.text, answer.asked_at_seconds, evidence, answer.num_context_tokens


def test_what_memory_has_dropped_and_is_still_in_view_is_forgotten(random_adapter, frames) -> None:
    with watched(random_adapter, frames, None, SMALL.replace(gpu_bytes=1, ram_bytes=0)) as session:
        assert session.bank.chunk_ids() == [] and [kv.chunk_id for kv in session.ingest.window] == [9, 10, 11]
        assert session.forget(10.0, 11.0) == [10]
        assert [kv.chunk_id for kv in session.ingest.window] == [9, 11] and session.record(10) is None


@pytest.mark.parametrize("retrieval", everyday(["key_similarity", "per_layer", "uniform", "none"]))
def test_a_reopened_memory_answers_as_the_session_did(random_adapter, frames, tmp_path: Path, retrieval: str) -> None:
    config = SMALL.replace(retrieval=retrieval)
    times = (None, 2.0, 5.5, 9.0)
    with (
        watched(random_adapter, frames, None, config) as plain,
        watched(random_adapter, frames, tmp_path / "m", config) as live,
    ):
        expected = [said(plain.answer(QUESTION, at)) for at in times]
        assert [said(live.answer(QUESTION, at)) for at in times] == expected
        live.save()
        assert [said(live.answer(QUESTION, at)) for at in times] == expected
    for read_only in (True, False):
        with StreamSession(random_adapter, config, memory=tmp_path / "m", read_only=read_only) as again:
            assert again.now_seconds == 11.5 and [m.chunk_id for m in again.timeline] == list(range(12))
            assert [said(again.answer(QUESTION, at)) for at in times] == expected
            with pytest.raises(QuestionError):
                again.answer(QUESTION, 20.0)
            record = again.record(4)
            assert (
                record is not None and record.thumbnail[:2] == b"\xff\xd8" and np.array_equal(record.keep, plain.record(4).keep)
            )


def test_opening_reads_the_window_and_no_index_before_the_first_question(random_adapter, frames, tmp_path: Path) -> None:
    watched(random_adapter, frames, tmp_path / "m").close()
    with StreamSession.open(random_adapter, tmp_path / "m", SMALL) as session:
        assert [kv.chunk_id for kv in session.ingest.window] == [9, 10, 11] and session.retriever.num_bytes == 0
        assert session.bank.stats()["num_read_disk"] == 3
        session.answer(QUESTION)
        assert session.retriever.num_bytes > 0
        with pytest.raises(MemoryBankError, match="for reading only"):
            session.push(frames[0])


def test_another_source_goes_on_behind_a_gap(random_adapter, frames, tmp_path: Path) -> None:
    watched(random_adapter, frames[:11], tmp_path / "m").close()
    other = list(make_world(seed=4, seconds=6, side=96).frames(2.0))
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        joined = session.join("camera")
        # Five whole chunks and half of a sixth, whose frame was not stored: the sixth place is left empty.
        assert joined.offset_seconds == 6.0 and "after a pause" in joined.words
        records = [record for frame in other for record in session.push(frame)]
        assert [record.chunk_id for record in records] == list(range(6, 12)) and session.now_seconds == 11.5
        assert session.bank.gaps == [(5.0, 6.0)]
        answer = session.answer(QUESTION)
        assert {e.chunk_id for e in answer.evidence} <= set(range(5)) | set(range(6, 12))
        session.save()
        before = said(answer)
    with StreamSession.open(random_adapter, tmp_path / "m", SMALL) as again:
        assert said(again.answer(QUESTION)) == before
        assert [gap.reason for gap in again.memory.manifest.gaps()] == ["paused"]
        assert [s.start_seconds for s in again.memory.manifest.sittings()] == [0.0, 6.0]


def test_a_recording_goes_on_where_it_was_left(random_adapter, frames, tmp_path: Path) -> None:
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        assert session.join("film", "film 1").start_seconds == 0.0
        for frame in frames[:12]:
            session.push(frame)
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        joined = session.join("film", "film 1")
        assert (joined.offset_seconds, joined.start_seconds) == (0.0, 6.0)
        for frame in frames[12:]:
            session.push(frame)
        assert [m.chunk_id for m in session.timeline] == list(range(12)) and session.bank.gaps == []
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        assert session.join("film", "film 2").offset_seconds == 13.0


def test_what_a_memory_was_made_with_is_kept(random_adapter, frames, tmp_path: Path, random_folder: Path) -> None:
    made = SMALL.replace(fps=1.0, drop="off")
    watched(random_adapter, frames[:8:2], tmp_path / "m", made).close()
    with pytest.raises(MemoryBankError, match=r"fps is 1\.0 there and 2\.0 here; drop is off there and pixel here"):
        StreamSession(random_adapter, SMALL, memory=tmp_path / "m")
    with StreamSession(random_adapter, memory=tmp_path / "m") as session:
        assert session.config.fps == 1.0 and session.config.drop == "off"
    other = type(random_adapter).load("other", random_folder, dtype=torch.float64, device_map="cpu")
    with pytest.raises(MemoryBankError, match="dtype is float32 there and float64 here"):
        StreamSession(other, made, memory=tmp_path / "m")


def test_what_is_forgotten_is_in_no_answer_and_no_view(random_adapter, frames, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "m"):
        with watched(random_adapter, frames, folder, SMALL.replace(retrieval="all")) as session:
            assert session.forget(4.2, 6.0) == [4, 5] and session.forget(10.5, 10.9) == [10]
            left = [0, 1, 2, 3, 6, 7, 8, 9, 11]
            assert session.bank.chunk_ids() == left and [m.chunk_id for m in session.timeline] == left
            assert [kv.chunk_id for kv in session.ingest.window] == [9, 11] and session.record(4) is None
            for at in (None, 5.5, 7.0):
                assert {e.chunk_id for e in session.answer(QUESTION, at).evidence} <= set(left)
            assert [kv.chunk_id for kv in session.view(6.0).window] == [1, 2, 3]
            for record in session.push(Frame(frames[0].data, 12.0)) + session.finish():
                assert record.chunk_id == 12
            with pytest.raises(MemoryBankError, match="no span"):
                session.forget(3, 3)
    with StreamSession.open(random_adapter, tmp_path / "m", SMALL) as again:
        assert again.bank.chunk_ids() == [*left, 12] and again.record(4) is None


@pytest.mark.parametrize("start", [9.5, 0.0])
def test_what_was_forgotten_at_the_end_is_not_watched_again(random_adapter, frames, tmp_path: Path, start: float) -> None:
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        session.join("film", "film 1")
        for frame in frames:
            session.push(frame)
        session.finish()
        session.forget(start, 100.0)
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "m") as session:
        assert session.join("film", "film 1").start_seconds == 12.0
        (gap,) = [gap for gap in session.memory.manifest.gaps() if gap.reason == "forgotten"]
        assert (gap.start_seconds, gap.end_seconds) == (int(start), 12.0), "whole chunks, and nothing beyond them"
        session.push(Frame(frames[0].data, 12.0))
        assert [record.chunk_id for record in session.finish()] == [12]


def test_a_session_without_a_memory_has_nothing_to_save_to(random_adapter, frames) -> None:
    with watched(random_adapter, frames[:4], None) as session, pytest.raises(MemoryBankError, match="no memory"):
        session.save()


def test_sessions_do_not_read_each_other(random_adapter, frames, tmp_path: Path) -> None:
    with watched(random_adapter, frames, tmp_path / "a") as a, watched(random_adapter, frames[:6], tmp_path / "b") as b:
        assert a.bank.chunk_ids() == list(range(12)) and b.bank.chunk_ids() == list(range(3))
        assert {e.chunk_id for e in b.answer(QUESTION).evidence} <= set(range(3))


# The command line


WORLD = "world:?seed=5&seconds=12&speed=0"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_ask_remembers_and_answers_without_the_source(random_folder, tmp_path: Path, capsys) -> None:
    shared = ("--model", random_folder, "--max-new-tokens", 4, "--json")
    code, out, _ = run(capsys, "ask", WORLD, QUESTION, "--memory", tmp_path / "m", "--drop", "off", *shared)
    assert code == 0
    first = json.loads(out)
    code, out, _ = run(capsys, "ask", f"memory:{tmp_path / 'm'}", QUESTION, *shared)
    again = json.loads(out)
    for name in ("answer", "asked_at_seconds", "num_seen_tokens", "num_kept_tokens", "num_context_tokens"):
        assert again[name] == first[name]
    code, out, err = run(capsys, "ask", WORLD, QUESTION, "--memory", tmp_path / "m", *shared)
    assert code == 0 and json.loads(out)["answer"] == first["answer"] and "where it was left" in err
    code, out, err = run(capsys, "ask", f"memory:{tmp_path / 'm'}", QUESTION, "--drop", "pixel", *shared)
    assert code == 2 and "drop is off there and pixel here" in err
    code, out, err = run(capsys, "ask", f"memory:{tmp_path / 'm'}", QUESTION, "--memory", tmp_path, *shared)
    assert code == 2 and "leave --memory out" in err
    code, out, err = run(capsys, "ask", f"memory:{tmp_path / 'nowhere'}", QUESTION, *shared)
    assert code == 2 and "no memory" in err and err.count("\n") == 1


def test_batch_answers_from_memories(random_folder, random_adapter, frames, tmp_path: Path, capsys) -> None:
    watched(random_adapter, frames, tmp_path / "stored").close()
    rows = [
        {"id": "a", "video": f"memory:{tmp_path / 'stored'}", "question": QUESTION, "at": 5},
        {"id": "b", "video": f"memory:{tmp_path / 'gone'}", "question": QUESTION},
        {"id": "c", "video": WORLD, "question": QUESTION},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = ("--memory", tmp_path / "library", "--model", random_folder, "--max-new-tokens", 4)
    answers = []
    for out in ("first.jsonl", "second.jsonl"):
        assert run(capsys, "batch", tmp_path / "q.jsonl", "--out", tmp_path / out, *shared)[0] == 0
        answers.append({r["id"]: r for r in map(json.loads, (tmp_path / out).read_text().splitlines())})
    assert answers[0]["a"]["answer"] is not None and "no memory" in answers[0]["b"]["error"]
    assert answers[0]["c"]["answer"] == answers[1]["c"]["answer"] is not None
    _, out, _ = run(capsys, "memory", "ls", tmp_path / "library", "--json")
    (one,) = json.loads(out)
    assert one["num_chunks"] == 12 and one["end_seconds"] == 12.0


def test_the_memory_command(random_adapter, frames, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "library" / "m"
    watched(random_adapter, frames, folder).close()
    (folder / "holiday.txt").write_text("x")
    code, out, _ = run(capsys, "memory", "info", folder, "--json")
    about = json.loads(out)
    assert code == 0 and about["num_chunks"] == 12 and about["identity"]["settings"]["fps"] == 2.0 and about["sittings"]
    code, out, _ = run(capsys, "memory", "info", folder)
    assert "12 chunks" in out and "fingerprint" in out
    assert run(capsys, "memory", "ls", tmp_path / "library")[1].count("\n") == 1
    code, out, _ = run(capsys, "memory", "verify", folder, "--json")
    verdict = json.loads(out)
    assert code == 0 and verdict["whole"] and verdict["num_good"] == 12 and verdict["foreign"] == ["holiday.txt"]
    code, out, _ = run(capsys, "memory", "export", folder, tmp_path / "t.jsonl", "--json")
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert json.loads(out)["num_chunks"] == 12 and [line["chunk_id"] for line in lines] == list(range(12))
    assert run(capsys, "memory", "export", folder, tmp_path / "copy")[0] == 0
    assert run(capsys, "memory", "verify", tmp_path / "copy")[0] == 0
    code, out, _ = run(capsys, "memory", "forget", folder, 3, 5, "--json")
    assert json.loads(out) == {"forgotten": [3, 4]}
    assert json.loads(run(capsys, "memory", "info", folder, "--json")[1])["num_chunks"] == 10
    next(folder.glob("segment-*")).unlink()
    code, out, _ = run(capsys, "memory", "verify", folder)
    assert code == 1 and "missing" in out
    for args in (("info", tmp_path), ("forget", folder, 5, 5), ("delete", tmp_path), ("export", folder, tmp_path / "copy")):
        code, out, err = run(capsys, "memory", *args)
        assert code == 2 and err.count("\n") == 1 and not out
    assert run(capsys, "memory", "delete", folder)[0] == 0
    assert [path.name for path in folder.iterdir()] == ["holiday.txt"]
    assert run(capsys, "memory", "delete", tmp_path / "copy")[0] == 0 and not (tmp_path / "copy").exists()
    with StreamSession(random_adapter, SMALL, memory=tmp_path / "w"), pytest.raises(MemoryBankError, match="somebody else"):
        from memory.library import delete

        delete(tmp_path / "w")
    assert issubclass(ConfigError, Exception)
