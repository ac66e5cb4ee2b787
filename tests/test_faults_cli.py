"""Memories that cannot be used, given to every command: one clear line, exit code 2, and what is good stays readable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import segments
from test_remembered import QUESTION, SMALL, WORLD, run, watched

import app
from memory import open_memory
from memory.identity import FORMAT_VERSION
from memory.library import verify
from memory.manifest import MANIFEST, Manifest


def headless(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def no_database(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"no database" * 999)


def cut_short(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content[: len(content) // 2])


def newer(folder: Path) -> None:
    manifest = Manifest(folder, write=True)
    with manifest.changing() as db:
        manifest.set_meta(db, "format_version", FORMAT_VERSION + 1)
    manifest.close()


def other_model(folder: Path) -> None:
    manifest = Manifest(folder, write=True)
    with manifest.changing() as db:
        text = manifest.identity.to_json()
        fingerprint = json.loads(text)["model"]["fingerprint"]
        manifest.set_meta(db, "identity", text.replace(fingerprint, "f" * 16))
    manifest.close()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (headless, "memory rebuild"),
    (no_database, "memory rebuild"),
    (cut_short, "memory rebuild"),
    (newer, "newer than this program's"),
    (other_model, "fingerprint is"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "words"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_every_command_says_what_is_wrong_in_one_line(
    random_adapter, random_folder, frames, tmp_path: Path, capsys, spoil: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "library" / "m"
    watched(random_adapter, frames[:8], folder).close()
    spoil(folder)
    before = {path: path.read_bytes() for path in segments(folder)}
    model = ("--model", random_folder, "--max-new-tokens", 3, "--window-seconds", 3, "--top-k", 3)
    for args in (
        ("ask", f"memory:{folder}", QUESTION),
        ("ask", WORLD, QUESTION, "--memory", folder),
        ("watch", WORLD, "--when", "a red circle appears", "--memory", folder),
        ("comment", WORLD, "--out", tmp_path / "said.vtt", "--memory", folder),
    ):
        code, out, err = run(capsys, *args, *model)
        lines = [line for line in err.splitlines() if "reads no background" not in line]
        assert code == 2 and not out and len(lines) == 1 and words in lines[0], (args, code, out, err)
    rows = [{"id": video, "video": video, "question": QUESTION} for video in (f"memory:{folder}", WORLD)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, _ = run(capsys, "batch", tmp_path / "q.jsonl", "--out", tmp_path / "a.jsonl", *model)
    bad, good = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert code == 0 and words in bad["error"] and "\n" not in bad["error"] and good["answer"] is not None
    if spoil is not other_model:
        assert app.main(["--source", f"memory:{folder}", "--model", str(random_folder)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err
    code, out, _ = run(capsys, "memory", "ls", tmp_path / "library")
    assert code == 0 and out.count("\n") == 1
    assert {path: path.read_bytes() for path in segments(folder)} == before, "nobody touches what is good"
    if words == "memory rebuild":
        assert run(capsys, "memory", "rebuild", folder)[0] == 0 and verify(folder).num_good == 4
        assert run(capsys, "ask", f"memory:{folder}", QUESTION, *model)[0] == 0


def test_a_memory_copied_by_half_answers_from_what_is_there(
    random_adapter, random_folder, frames, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "m"
    watched(random_adapter, frames, folder).close()
    (folder / "holiday.jpg").write_bytes(b"x")
    for path in segments(folder)[::2]:
        path.unlink()
    (folder / "vectors-0000.f32").unlink()
    model = ("--model", random_folder, "--max-new-tokens", 3, "--json")
    code, out, _ = run(capsys, "ask", f"memory:{folder}", QUESTION, *model)
    left = {chunk_id for chunk_id in range(12) if readable(folder, chunk_id)}
    assert code == 0 and {e["chunk_id"] for e in json.loads(out)["evidence"]} <= left and 0 < len(left) < 12
    code, out, _ = run(capsys, "memory", "verify", folder)
    assert code == 1 and "missing" in out and "foreign   holiday.jpg" in out and "memory rebuild" in out
    assert run(capsys, "memory", "rebuild", folder)[0] == 0
    assert run(capsys, "memory", "verify", folder)[0] == 0 and (folder / "holiday.jpg").exists()
    assert run(capsys, "ask", f"memory:{folder}", QUESTION, *model)[0] == 0
    shutil.rmtree(folder)
    folder.write_bytes(b"a file in the way")
    code, _, err = run(capsys, "ask", WORLD, QUESTION, "--memory", folder, *model)
    assert code == 2 and "is a file" in err and err.count("\n") == 1


def readable(folder: Path, chunk_id: int) -> bool:
    from data.errors import MemoryBankError

    memory = open_memory(folder)
    try:
        memory.get(chunk_id)
    except (MemoryBankError, KeyError):
        return False
    finally:
        memory.close()
    return True


def test_settings_of_a_session_are_those_of_its_memory(random_adapter, random_folder, frames, tmp_path: Path, capsys) -> None:
    watched(random_adapter, frames[:8], tmp_path / "m", SMALL.replace(drop="off")).close()
    code, _, err = run(capsys, "ask", f"memory:{tmp_path / 'm'}", QUESTION, "--model", random_folder, "--drop", "pixel")
    assert code == 2 and "drop is off there and pixel here" in err and err.count("\n") == 1
