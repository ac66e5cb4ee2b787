"""What is written for a user: nothing of theirs is lost, and what cannot be written is told before the work, in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import ConfigError
from data.sources.record import write_world
from data.world import make_world
from vstream.__main__ import main
from vstream.written import check_apart, check_writable, printing

WORLD = "world:?seed=12&seconds=60&speed=0"
"""A green square comes at 1 s, a red ring at 5 s."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(make_world(seed=12, seconds=2, side=96), tmp_path_factory.mktemp("clip") / "a clip.mp4", fps=8)


def test_a_source_is_never_written_over(clip: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link.mp4").symlink_to(clip)
    for path in (clip, link):
        for source in (str(clip), f" {clip} ", f"file://{str(clip).replace(' ', '%20')}"):
            with pytest.raises(ConfigError, match="is the source itself and would be overwritten; choose another --log"):
                check_apart(path, source, "--log")
    check_apart(tmp_path / "other.mp4", str(clip), "--log")
    check_apart(clip, WORLD, "--log")
    check_apart(clip, "x" * 5000, "--log")


@pytest.mark.parametrize("argv", [["watch", "--when", "it rains", "--log"], ["comment", "--out", "said.vtt", "--burn"]])
def test_the_commands_leave_their_source_alone(clip: Path, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = clip.read_bytes()
    assert main([argv[0], str(clip), *argv[1:], str(clip)]) == 2
    assert "would be overwritten" in capsys.readouterr().err and clip.read_bytes() == before


def test_a_log_is_kept_where_the_source_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (log := tmp_path / "log.jsonl").write_text("of yesterday")
    assert main(["watch", str(tmp_path / "no.mp4"), "--when", "it rains", "--log", str(log)]) == 2
    assert "no.mp4" in capsys.readouterr().err and log.read_text() == "of yesterday"


def test_what_cannot_be_written_is_told_first_and_looking_changes_nothing(tmp_path: Path) -> None:
    (there := tmp_path / "there.mp4").write_bytes(b"as it was")
    check_writable(there, "--burn")
    check_writable(tmp_path / "new.mp4", "--burn")
    assert os.listdir(tmp_path) == ["there.mp4"] and there.read_bytes() == b"as it was"
    for path in (tmp_path, tmp_path / "no" / "clip.mp4", tmp_path / ("x" * 300 + ".mp4")):
        with pytest.raises(ConfigError, match=r"cannot be written: .*; choose another --burn"):
            check_writable(path, "--burn")


def test_a_clip_that_cannot_be_burnt_is_told_before_the_source_is_watched(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "said.vtt"
    assert main(["comment", str(clip), "--out", str(out), "--burn", str(tmp_path / "no" / "clip.mp4")]) == 2
    told = capsys.readouterr().err
    assert "choose another --burn" in told and told.count("\n") == 1 and not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_is_printed_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:  # closed without a complaint about what is left in its buffer
        with pytest.raises(ConfigError, match="standard output cannot be written: No space left"), printing(full):
            print("held back until the end")
        with printing(full):
            print("nobody hears this, and nothing breaks")


def test_what_an_encoding_lacks_and_a_closed_output_end_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "told", "w", encoding="latin-1") as out, printing(out):
        print("2–3 s: a ☃ on a café table")
    assert (tmp_path / "told").read_text("latin-1") == "2\\u20133 s: a \\u2603 on a café table\n"
    with printing(None):
        pass


def test_whoever_reads_may_stop_reading() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out, pytest.raises(BrokenPipeError), printing(out):
        print("to nobody", flush=True)


@pytest.mark.slow
def test_a_watch_ends_when_its_reader_has_seen_enough(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    argv = ["watch", WORLD, "--when", "a green square appears", "--when", "a red ring appears", "--log", str(log)]
    command = [sys.executable, "-m", "vstream", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        told = child.stderr.read()
    assert child.returncode == 0 and "nobody reads the output any more" in told and "Traceback" not in told
    assert '"fired"' in log.read_text(), "what was decided until then is in the log"


def test_a_watch_that_is_done_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["watch", WORLD.replace("60", "2000"), "--once", "--when", "a yellow ring appears", "--expires", "3"]
    assert main(argv) == 0
    assert "no watch is left" in capsys.readouterr().err


def test_a_log_decides_to_itself_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    watch = ["watch", WORLD, "--when", "a green square appears", "--when", "it rains", "--until", "8"]
    assert main([*watch, "--log", str(log)]) == 0
    alerts = capsys.readouterr().out
    assert alerts.count("\n") == 1
    lines = log.read_text().splitlines(keepends=True)
    assert main([*watch, "--replay", str(log)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{len(lines)} decisions on 2 watches, each the same again\n" and not told.err
    for argv, words in (
        (["--threshold", "0.75"], 'line 1 says "declined: the model says no (0.00, yes from 0.50)", but these rules'),
        (["--expires", "1"], "have passed since it was set"),
    ):
        assert main([*watch, *argv, "--replay", str(log)]) == 2
        assert words in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert main([*watch, "--when", "it snows", "--replay", str(log)]) == 2
    assert 'the log knows no watch for "it snows"; give each --when' in capsys.readouterr().err
    for content, words in (
        (b"{}", "line 1 of the log is no decision"),
        (b"\xff", "is no text"),
        (b"[" * 10**5, "line 1 of the log is no decision"),
        (lines[0].replace('"at_seconds": 0.5', '"at_seconds": "soon"').encode(), "line 1 of the log is no decision"),
        (lines[0].replace('"at_seconds": 0.5', f'"at_seconds": {10**400}').encode(), "line 1 of the log is no decision"),
        (lines[0].replace('"clip_start_seconds": 0.0', '"clip_start_seconds": "soon"').encode(), "does not say what it waits"),
        ("".join(lines[2:]).encode(), "line 1 is the first of watch 1, but does not say what it waits for"),
    ):
        capsys.readouterr()
        log.write_bytes(content)
        assert main([*watch, "--replay", str(log)]) == 2 and words in capsys.readouterr().err
    assert main([*watch, "--replay", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_logs_of_a_memory_replay_each_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over sittings: watches that go on, that have ended and are set again, that others have set, and that get other rules."""
    source = ["watch", "world:?seed=7&seconds=40&speed=0"]
    memory = ["--memory", str(tmp_path / "m")]
    square, circle = ["--when", "a red square appears"], ["--when", "a white circle appears"]
    sittings = (
        [*square, *circle, "--once", "--expires", "20", "--until", "5"],
        [*square, "--once", "--expires", "20", "--until", "9"],
        [*circle, "--cooldown", "100", "--expires", "12", "--until", "24"],
    )
    told = []
    for number, flags in enumerate(sittings):
        log = str(tmp_path / f"log{number}")
        assert main([*source, *flags, *memory, "--log", log]) == 0
        told.append(capsys.readouterr())
        assert main([*source, *flags, *memory, "--replay", log]) == 0, capsys.readouterr().err
        assert "each the same again" in capsys.readouterr().out
    assert ["red square" in alerts.out for alerts in told] == [True, False, False]
    assert ["white circle" in alerts.out for alerts in told] == [False, False, True]
    assert "watches on: a white circle appears\n" in told[1].err and "watches on: a red square appears\n" in told[2].err
    rows = [json.loads(line) for line in (tmp_path / "log2").read_text().splitlines()]
    expired = {row["watch"]: row["at_seconds"] for row in rows if row["verdict"] == "expired"}
    assert expired.keys() == {4} and 9 + 12 <= expired[4] < 9 + 12 + 1, "by the rules of the command"
