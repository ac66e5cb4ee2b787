"""Copies, tables and deletion of stored memories: private, whole or not there, and refused in one line."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from stored import fill, stored_bank
from test_remembered import run

from data.errors import MemoryBankError
from memory.exports import export_copy, export_table
from memory.library import delete, own_files, verify
from memory.manifest import MANIFEST
from memory.opening import is_memory


def made(folder: Path) -> Path:
    bank = stored_bank(folder)
    fill(bank, range(6))
    bank.close()
    return folder


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_copy_is_private_whatever_the_umask_says(tmp_path: Path) -> None:
    folder, before = made(tmp_path / "m"), os.umask(0)
    try:
        assert export_copy(folder, tmp_path / "copy") > 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700 and modes(tmp_path / "copy") == {0o600}
    assert verify(tmp_path / "copy").whole
    with pytest.raises(MemoryBankError, match="is not empty"):
        export_copy(folder, tmp_path / "copy")


def test_a_table_is_private_also_in_the_place_of_a_file_that_was_not(tmp_path: Path) -> None:
    out = tmp_path / "table.jsonl"
    out.write_text("old")
    out.chmod(0o644)
    assert export_table(made(tmp_path / "m"), out) == 6 and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [json.loads(line)["chunk_id"] for line in out.read_text().splitlines()] == list(range(6))


def test_a_table_on_a_full_disk_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    code, out, err = run(capsys, "memory", "export", made(tmp_path / "m"), tmp_path / "full.jsonl")
    assert code == 2 and not out and err.count("\n") == 1 and "No space left" in err


@pytest.mark.parametrize("name", ["copy", "deep/copy", "table.jsonl"])
def test_nothing_is_exported_into_the_memory_itself(tmp_path: Path, capsys, name: str) -> None:
    folder = made(tmp_path / "m")
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, "memory", "export", folder, folder / name)
    assert code == 2 and not out and err.count("\n") == 1 and "would lie in the memory itself" in err
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_left_of_a_copy_that_failed(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    lost = sorted(own_files(folder))[-1]
    lost.unlink()
    lost.symlink_to("/nowhere")
    with pytest.raises(MemoryBankError, match="cannot be copied"):
        export_copy(folder, tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())


def test_a_memory_is_deleted_through_a_link_to_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    (tmp_path / "link").symlink_to(folder)
    assert delete(tmp_path / "link") == []
    assert not folder.exists() and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("num_left", range(1, 9))
def test_a_deletion_that_was_interrupted_can_be_done_again(tmp_path: Path, num_left: int) -> None:
    """The files go one by one: whatever is left is no memory that names what is gone, and goes when it is deleted again."""
    folder = made(tmp_path / "m")
    order: list[str] = []
    unlink = Path.unlink

    class Watched(type(folder)):  # type: ignore[misc]
        def unlink(self, missing_ok: bool = False) -> None:
            order.append(self.name)
            if len(order) > num_left:
                raise OSError(5, "the plug was pulled")
            unlink(self, missing_ok=missing_ok)

    try:
        delete(Watched(folder))
    except MemoryBankError as error:
        assert "the plug was pulled" in str(error)
    assert order[0] == MANIFEST and not is_memory(folder)
    if folder.exists() and any(path.suffix in (".f32", ".safetensors") for path in folder.iterdir()):
        assert delete(folder) == []
    left = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert set(left) <= {"lock"}
