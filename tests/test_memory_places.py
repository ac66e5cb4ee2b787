"""Where a memory may lie, and what its folder may be called; and folders that come and go while somebody opens them."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import IDENTITY, fill, held, stored_bank

from data.errors import MemoryBankError
from memory import MemoryBank, open_memory
from memory.files import locked
from memory.library import delete, memories, verify
from memory.opening import LOCK
from vstream.__main__ import main
from vstream.library import Library

TOO_LONG = "x" * 300


@pytest.mark.parametrize("name", [b"two words", b"two\nlines", b"caf\xe9", b"what?a=1#2%41", b"'\"$(x)"])
def test_a_folder_may_be_called_anything(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(name)
    bank = stored_bank(folder)
    fill(bank, range(4))
    reader = stored_bank(folder, write=False)
    assert held(reader, range(4))
    reader.close()
    bank.close()
    assert verify(folder).whole
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["memory", "ls", str(folder)]) == 0
    assert name in out.buffer.getvalue()


def test_what_is_no_folder_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (TOO_LONG, "two\nlines"):
        for action in ("ls", "info", "verify", "rebuild", "pin", "delete"):
            assert main(["memory", action, str(tmp_path / name)]) == 2
            assert capsys.readouterr().err.count("\n") == 1, (action, name)
    with pytest.raises(MemoryBankError, match="cannot be used: File name too long"):
        open_memory(tmp_path / TOO_LONG, IDENTITY, write=True)
    with pytest.raises(MemoryBankError, match="cannot be used: File name too long"):
        MemoryBank("cpu", 0, 0, 10**6, tmp_path / TOO_LONG)


@pytest.mark.parametrize("where", ["too long", "somebody else's", "of an unknown user"])
def test_places_that_cannot_be_reached_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    stored_bank(tmp_path / "m").close()
    (tmp_path / "q.jsonl").write_text('{"video": "world:", "question": "what is on screen now ?"}\n')
    (tmp_path / "shut").mkdir()
    place = {"too long": tmp_path / TOO_LONG, "somebody else's": tmp_path / "shut"}.get(where, "~of.an.unknown.user/x")
    if where == "somebody else's":
        # Whoever may do everything, as in a container, can be kept out of nothing.
        for name in ("stat", "listdir"):
            monkeypatch.setattr(os, name, refusing("shut", getattr(os, name)))
    world, question = "world:?seconds=1&speed=0", "what is on screen now ?"
    read = (
        ["ask", place, question],
        ["ask", f"memory:{place}", question],
        ["ask", world, question, "--model", place],
        ["doctor", "--model", place],
        ["batch", place, "--out", tmp_path / "a.jsonl"],
        ["memory", "info", place],
        ["memory", "ls", place],
    )
    written = (
        ["batch", tmp_path / "q.jsonl", "--out", place],
        ["batch", tmp_path / "q.jsonl", "--out", tmp_path / "b.jsonl", "--memory", place],
        ["memory", "export", tmp_path / "m", place],
    )
    # What is written to is for the shell to expand: here the sign of a user stands for itself.
    for argv in read if "unknown" in where else (*read, *written):
        code, err = main([str(arg) for arg in argv]), capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1, (argv, err)


def refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but for what has `name` in its path, which it may not see."""

    def call(path: object = ".", *args: object, **more: object) -> Any:
        if name in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    return call


def test_a_folder_of_somebody_else_hides_no_memory_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_bank(tmp_path / "m").close()
    (tmp_path / "lost+found").mkdir()
    access = os.access
    monkeypatch.setattr(os, "stat", refusing("lost+found/", os.stat))
    monkeypatch.setattr(os, "access", lambda path, mode: "lost+found" not in str(path) and access(path, mode))
    assert memories(tmp_path) == [tmp_path / "m"]
    with pytest.raises(MemoryBankError, match=f"such as {tmp_path / 'm'}"):
        open_memory(tmp_path)


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bank = stored_bank(Path("m"))
    fill(bank, range(3))
    spill = MemoryBank("cpu", 0, 0, 10**6, Path("spill"))
    library = Library(Path("library"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fill(bank, range(3, 6))
    assert held(bank, range(6)) and library.saved() == []
    bank.close()
    spill.close()
    assert verify(tmp_path / "m").num_good == 6 and not (tmp_path / "spill").exists()
    assert not list(Path().iterdir())


def test_a_lock_that_was_deleted_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_bank(tmp_path / "m").close()
    flock = fcntl.flock

    def late(handle: int, how: int) -> None:
        # Somebody deletes the whole memory between opening the lock and taking it.
        monkeypatch.setattr(fcntl, "flock", flock)
        delete(tmp_path / "m")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(MemoryBankError, match="was deleted just now"), locked(tmp_path / "m" / LOCK):
        pass
    bank = stored_bank(tmp_path / "m")
    fill(bank, range(3))
    bank.close()
    assert verify(tmp_path / "m").whole
