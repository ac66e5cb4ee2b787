"""The command line, run in this process: what goes to stdout, what to stderr, and one line for every wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vstream.__main__ import main
from vstream.batch_rows import read_questions

WORLD = "world:?seed=3&seconds=8&speed=0&side=96"
OTHER_WORLD = "world:?seed=4&seconds=6&speed=0&side=96"
QUESTION = "what is on screen now ?"
FAST = ["--max-new-tokens", "4"]
CONTRACT = {
    "answer",
    "asked_at_seconds",
    "evidence",
    "ttft_seconds",
    "num_seen_tokens",
    "num_kept_tokens",
    "num_context_tokens",
    "model",
}
EVIDENCE = {"chunk_id", "start_seconds", "end_seconds", "score", "tier"}


@pytest.fixture
def model(random_folder: Path) -> list[str]:
    return ["--model", str(random_folder), *FAST]


def code_of(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


# ask


def test_json_is_one_object_with_the_contract_fields(model, random_folder, capsys) -> None:
    assert code_of(["ask", WORLD, QUESTION, "--at", "5.5", "--json", *model]) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert set(answer) == CONTRACT and answer["asked_at_seconds"] == 5.5 and answer["model"] == str(random_folder)
    assert answer["evidence"] and all(set(e) == EVIDENCE and e["end_seconds"] <= 6.0 for e in answer["evidence"])
    assert answer["num_seen_tokens"] == 6 * 16 and 0 < answer["num_kept_tokens"] <= answer["num_seen_tokens"]
    assert isinstance(answer["answer"], str) and answer["num_context_tokens"] > 0 < answer["ttft_seconds"]


def test_without_a_time_the_whole_source_is_watched(model, capsys) -> None:
    assert code_of(["ask", WORLD, QUESTION, "--json", *model]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["asked_at_seconds"] == 7.5 and answer["num_seen_tokens"] == 8 * 16


def test_words_for_people_say_the_same(model, capsys) -> None:
    assert code_of(["ask", WORLD, QUESTION, "--json", *model]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert code_of(["ask", WORLD, QUESTION, *model]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == answer["answer"] and len(rest) == len(answer["evidence"])
    for line, e in zip(rest, answer["evidence"], strict=True):
        assert f"[{e['start_seconds']:.0f}–{e['end_seconds']:.0f} s]" in line and e["tier"] in line


def test_progress_is_on_stderr_only(model, capsys, monkeypatch) -> None:
    monkeypatch.setattr("vstream.progress.QUIET_SECONDS", 0.0)
    assert code_of(["ask", WORLD, QUESTION, "--json", *model]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "watching" in err and "left" in err


def test_flags_reach_the_session(model, capsys) -> None:
    counts = []
    for flags in (["--drop", "off"], ["--drop", "pixel"], ["--fps", "1", "--chunk-seconds", "2"]):
        assert code_of(["ask", WORLD, QUESTION, "--json", *model, *flags]) == 0
        answer = json.loads(capsys.readouterr().out)
        counts.append((answer["num_seen_tokens"], answer["num_kept_tokens"]))
    assert counts[0] == (128, 128) and counts[1][1] < 128 and counts[2][0] == 64


# What is wrong is said in one line


WRONG = [
    pytest.param(["ask", "missing.mp4", QUESTION], "missing.mp4", id="missing file"),
    pytest.param(["ask", "", QUESTION], "no source", id="no source"),
    pytest.param(["ask", "world:?seed=x", QUESTION], "seed.*'x'", id="bad world"),
    pytest.param(["ask", "world:?speed=1&colour=red", QUESTION], "'colour'", id="unknown world field"),
    pytest.param(["ask", "world:?seconds=0", QUESTION], "seconds.*0", id="world of no length"),
    pytest.param(["ask", "gopher://host/video", QUESTION], "gopher", id="unknown scheme"),
    pytest.param(["ask", WORLD, ""], "question is empty", id="empty question"),
    pytest.param(["ask", WORLD, "  \n "], "question is empty", id="blank question"),
    pytest.param(["ask", WORLD, "what \udcff"], "no text", id="undecodable question"),
    pytest.param(["ask", WORLD, "x" * 5000], "5000 characters", id="long question"),
    pytest.param(["ask", WORLD, QUESTION, "--at", "-1"], "-1 s", id="negative time"),
    pytest.param(["ask", WORLD, QUESTION, "--at", "nan"], "nan s", id="no time"),
    pytest.param(["ask", WORLD, QUESTION, "--at", "99"], "99 s.*7.5 s", id="time after the end"),
    pytest.param(["ask", WORLD, QUESTION, "--at", "soon"], "'soon'", id="time in words"),
    pytest.param(["ask", WORLD, QUESTION, "--model", "nowhere/at/all"], "nowhere/at/all", id="unknown model"),
    pytest.param(["ask", WORLD, QUESTION, "--top-k", "-3"], "top_k is -3", id="bad value"),
    pytest.param(["ask", WORLD, QUESTION, "--top-k", "many"], "'many'", id="bad number"),
    pytest.param(["ask", WORLD, QUESTION, "--top-k", "1.5"], "'1.5'", id="bad whole number"),
    pytest.param(["ask", WORLD, QUESTION, "--fps", "0.2"], "0.2 fps", id="no frame in a chunk"),
    pytest.param(["ask", WORLD, QUESTION, "--drop", "some"], "'some'.*pixel", id="bad choice"),
    pytest.param(["ask", WORLD, QUESTION, "--seed", "9" * 30], "seed is 9", id="huge seed"),
    pytest.param(["ask", WORLD, QUESTION, "--gpu-bytes", "0", "--ram-bytes", "0"], "budgets", id="no memory at all"),
    pytest.param(["ask", WORLD, QUESTION, "--nonsense"], "--nonsense", id="unknown flag"),
    pytest.param(["ask", WORLD], "question", id="no question"),
    pytest.param(["sing"], "'sing'", id="unknown command"),
    pytest.param([], "command", id="no command"),
    pytest.param(["batch", "missing.jsonl", "--out", "OUT"], "missing.jsonl", id="missing table"),
    pytest.param(["batch", "TABLE", "--out", "FOLDER/missing/out.jsonl"], "cannot be written", id="no folder for answers"),
    pytest.param(["batch", "TABLE", "--out", "FOLDER"], "choose another --out", id="answers into a folder"),
    pytest.param(["batch", "TABLE", "--out", "TABLE"], "choose another --out", id="answers over the questions"),
    pytest.param(["batch", "TABLE", "--out", "KEPT"], "kept.jsonl.tmp cannot be written", id="answers that cannot be replaced"),
    pytest.param(["batch", "TABLE", "--out", "OUT", "--workers", "0"], "--workers is 0", id="no workers"),
    pytest.param(["batch", "TABLE", "--out", "OUT", "--limit", "0"], "--limit is 0", id="no rows"),
    pytest.param(["batch", "TABLE"], "--out", id="no answers' file"),
    pytest.param(["batch", "TABLE", "--out", "OUT", "--engine", "steam"], "'steam'", id="unknown engine"),
]


@pytest.mark.parametrize("argv,words", WRONG)
def test_wrong_input_is_one_line_and_exit_2(argv, words: str, random_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "questions.jsonl"
    table.write_text(json.dumps({"id": 1, "video": WORLD, "question": QUESTION}) + "\n")
    (tmp_path / "kept.jsonl").touch()
    (tmp_path / "kept.jsonl.tmp").mkdir()
    places = {"TABLE": table, "OUT": tmp_path / "out.jsonl", "FOLDER": tmp_path, "KEPT": tmp_path / "kept.jsonl"}
    argv = [re.sub("TABLE|OUT|FOLDER|KEPT", lambda m: str(places[m[0]]), word) for word in argv]
    if argv[:1] in (["ask"], ["batch"]) and "--model" not in argv:
        argv += ["--model", str(random_folder)]
    assert code_of(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(words, err) and "Traceback" not in err


def test_a_model_of_an_unknown_family(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert code_of(["ask", WORLD, QUESTION, "--model", str(tmp_path)]) == 2
    assert re.search("'mamba'.*known: .*qwen3_vl", capsys.readouterr().err)


def test_help_is_no_error(capsys) -> None:
    for argv in (["--help"], ["ask", "--help"], ["batch", "--help"], ["doctor", "--help"]):
        assert code_of(argv) == 0
        assert "usage" in capsys.readouterr().out


def test_doctor_says_what_works(random_folder, tmp_path, capsys) -> None:
    assert code_of(["doctor", "--model", str(random_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = next(line for line in lines if " model " in line)
    assert model.startswith("ok") and "qwen3_vl, 3 layers" in model
    assert any(line.startswith("ok  torch") for line in lines)
    assert code_of(["doctor", "--model", str(tmp_path)]) == 2
    assert any(line.startswith("--  model") and "config.json" in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_the_module_runs_as_a_program(random_folder) -> None:
    argv = [sys.executable, "-m", "vstream", "ask", WORLD, QUESTION, "--json", "--model", str(random_folder), *FAST]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300)
    assert done.returncode == 0 and set(json.loads(done.stdout)) == CONTRACT


# batch


def table(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON lines; a text stands as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "ttft_seconds"} for row in rows]


ROWS = [
    {"id": "b", "video": WORLD, "question": QUESTION, "at": 5.5},
    {"id": "z", "video": OTHER_WORLD, "question": "what was on screen at 1 s ?"},
    {"id": "a", "video": WORLD, "question": "did a red circle appear ?", "at": 2},
    {"id": 7, "video": WORLD, "question": QUESTION},
    {"id": "o", "video": OTHER_WORLD, "question": "did a red circle appear ?", "options": ["yes", "no", "nothing"], "at": 4.0},
]


@pytest.mark.slow
def test_every_row_gets_the_answer_that_ask_gives(model, tmp_path, capsys) -> None:
    out = tmp_path / "answers.jsonl"
    assert code_of(["batch", str(table(tmp_path / "q.jsonl", ROWS)), "--out", str(out), *model]) == 0
    _, err = capsys.readouterr()
    assert "5 of 5 rows" in err
    found = answers(out)
    assert [row["id"] for row in found] == ["b", "z", "a", 7, "o"]
    for row, asked in zip(found, ROWS, strict=True):
        assert all(row[name] == value for name, value in asked.items()) and "error" not in row
        if "options" in asked:
            assert row["answer"] == asked["options"][row["choice"]]
            continue
        at = ["--at", str(asked["at"])] if "at" in asked else []
        assert code_of(["ask", asked["video"], asked["question"], *at, "--json", *model]) == 0
        alone = json.loads(capsys.readouterr().out)
        for name in ("answer", "asked_at_seconds", "evidence", "num_context_tokens", "model"):
            assert row[name] == alone[name], name


BAD = [
    ("not json", "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ("[" * 10**5, "not JSON"),
    ({"id": "no video", "question": QUESTION}, "'video'"),
    ({"id": "no question", "video": WORLD}, "'question'"),
    ({"id": "number", "video": WORLD, "question": 3}, "'question'"),
    ({"id": "empty", "video": WORLD, "question": " "}, "empty"),
    ({"id": "early", "video": WORLD, "question": QUESTION, "at": -1}, "'at' is -1"),
    ({"id": "word", "video": WORLD, "question": QUESTION, "at": "5"}, "'at' is '5'"),
    ({"id": "true", "video": WORLD, "question": QUESTION, "at": True}, "'at' is True"),
    ({"id": "late", "video": WORLD, "question": QUESTION, "at": 500}, "500 s"),
    ({"id": "ages", "video": WORLD, "question": QUESTION, "at": 10**400}, "'at' is 1000"),
    ({"id": "gone", "video": "missing.mp4", "question": QUESTION}, "missing.mp4"),
    ({"id": "odd", "video": "world:?x=1", "question": QUESTION}, "'x'"),
    ({"id": "one", "video": WORLD, "question": QUESTION, "options": ["yes"]}, "two"),
    ({"id": "blank", "video": WORLD, "question": QUESTION, "options": ["yes", ""]}, "not empty"),
    ('{"id": "half", "video": "x", "question": "\\ud800"}', "surrogate"),
    ({"id": "good", "video": WORLD, "question": QUESTION}, "used twice"),
]


def test_bad_rows_stop_nothing(model, tmp_path, capsys) -> None:
    good = {"id": "good", "video": WORLD, "question": QUESTION}
    last = {"id": "last", "video": OTHER_WORLD, "question": QUESTION}
    rows = [good, *(row for row, _ in BAD), "", last]
    out = tmp_path / "answers.jsonl"
    assert code_of(["batch", str(table(tmp_path / "q.jsonl", rows)), "--out", str(out), *model]) == 0
    assert f"2 of {len(BAD) + 2} rows" in capsys.readouterr().err
    first, *bad, end = answers(out)
    assert first["id"] == "good" and first["answer"] is not None and end["id"] == "last" and end["answer"] is not None
    for row, (given, words) in zip(bad, BAD, strict=True):
        assert row["answer"] is None and words in row["error"], row
        if isinstance(given, dict):
            assert row["id"] == given["id"]
    assert len({row["key"] for row in answers(out)}) == len(BAD) + 2


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path) -> None:
    row = {"id": 1, "video": WORLD, "question": "now\u2028or\x85then ?"}
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    (found,) = read_questions(path)
    assert "error" not in found and found["question"] == row["question"]


class Counting:
    """Counts the rows that are really answered."""

    def __init__(self, monkeypatch) -> None:
        from vstream import batch

        self.asked: list[Any] = []
        answered = batch._answered

        def count(session, row, at):
            self.asked.append(row["id"])
            return answered(session, row, at)

        monkeypatch.setattr(batch, "_answered", count)


@pytest.mark.slow
def test_a_stopped_run_resumes(model, tmp_path, monkeypatch, capsys) -> None:
    questions, out = table(tmp_path / "q.jsonl", ROWS), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of(argv) == 0
    whole = answers(out)
    counting = Counting(monkeypatch)
    assert code_of(argv) == 0 and counting.asked == [] and answers(out) == whole
    lines = out.read_text().splitlines(keepends=True)
    # Stopped within its third line, then again within the first line that the second run wrote.
    for torn in (lines[0] + lines[3] + lines[1][:40], lines[0] + lines[3] + lines[1].rstrip("\n"), lines[1][:10]):
        counting.asked.clear()
        out.write_text(torn)
        complete = [json.loads(line)["id"] for line in torn.splitlines() if line.endswith("}")]
        assert code_of(argv) == 0
        assert sorted(map(str, counting.asked)) == sorted(str(row["id"]) for row in ROWS if row["id"] not in complete)
        assert timeless(answers(out)) == timeless(whole)


def test_a_torn_line_does_not_swallow_the_next_one(model, tmp_path, monkeypatch) -> None:
    """A run that is stopped twice: what the second one appended is whole."""
    questions, out = table(tmp_path / "q.jsonl", ROWS), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of(argv) == 0
    whole = answers(out)
    out.write_text(out.read_text()[:60])
    from vstream import batch

    finished, left = batch._finished, [2]

    def stop(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return finished(*args)

    monkeypatch.setattr(batch, "_finished", stop)
    assert code_of(argv) == 130
    assert len(answers(out)) == 2
    monkeypatch.setattr(batch, "_finished", finished)
    assert code_of(argv) == 0 and timeless(answers(out)) == timeless(whole)


def test_failed_rows_are_tried_again(model, tmp_path, monkeypatch) -> None:
    rows = [ROWS[0], {"id": "file", "video": str(tmp_path / "later.jsonl"), "question": QUESTION}]
    questions, out = table(tmp_path / "q.jsonl", rows), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of(argv) == 0 and "error" in answers(out)[1]
    table(questions, [rows[0], rows[1] | {"video": OTHER_WORLD}])
    counting = Counting(monkeypatch)
    assert code_of(argv) == 0 and counting.asked == ["file"] and "error" not in answers(out)[1]


def test_another_question_under_an_old_id_is_asked(model, tmp_path, monkeypatch) -> None:
    questions, out = table(tmp_path / "q.jsonl", ROWS[:3]), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of(argv) == 0
    counting = Counting(monkeypatch)
    table(questions, [ROWS[0] | {"question": "when did the red circle appear ?"}, ROWS[1], ROWS[2] | {"at": 3}])
    assert code_of(argv) == 0 and sorted(counting.asked) == ["a", "b"]
    assert answers(out)[0]["question"] == "when did the red circle appear ?" and answers(out)[2]["at"] == 3


def test_answers_of_other_settings_are_refused(model, tmp_path, capsys) -> None:
    questions, out = table(tmp_path / "q.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of(argv) == 0
    before = out.read_text()
    capsys.readouterr()
    assert code_of([*argv, "--top-k", "2"]) == 2
    err = capsys.readouterr().err
    assert "other settings" in err and str(out) in err and err.count("\n") == 1 and out.read_text() == before
    out.write_text("{broken\n" + before)
    assert code_of(argv) == 2 and "line 1" in capsys.readouterr().err


def test_a_limit_answers_the_first_rows_and_loses_none(model, tmp_path, monkeypatch) -> None:
    questions, out = table(tmp_path / "q.jsonl", ROWS), tmp_path / "answers.jsonl"
    argv = ["batch", str(questions), "--out", str(out), *model]
    assert code_of([*argv, "--limit", "2"]) == 0 and [row["id"] for row in answers(out)] == ["b", "z"]
    counting = Counting(monkeypatch)
    assert code_of([*argv, "--limit", "3"]) == 0 and counting.asked == ["a"]
    assert code_of([*argv, "--limit", "1"]) == 0 and [row["id"] for row in answers(out)] == ["b", "z", "a"]


@pytest.mark.slow
def test_two_workers_answer_as_one(model, tmp_path) -> None:
    questions = table(tmp_path / "q.jsonl", [*ROWS, {"id": "bad", "video": "missing.mp4", "question": QUESTION}])
    found = []
    for workers in ("1", "2"):
        out = tmp_path / f"answers{workers}.jsonl"
        assert code_of(["batch", str(questions), "--out", str(out), "--workers", workers, *model]) == 0
        found.append(timeless(answers(out)))
    assert found[0] == found[1]
