"""A memory without its manifest: what comes back from the segments, what is said to be lost, and what must not come back."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import IDENTITY, MODEL, THINNING, after, fill, pulling_the_plug, record_of, segments, stored_bank, vectors_of
from test_memory_stores import chunk, same
from test_remembered import QUESTION, SMALL, WORLD, run, said, watched

from data.errors import MemoryBankError
from memory import open_memory
from memory.identity import FORMAT_VERSION, Identity
from memory.labels import Origin, labels_of, origin_of
from memory.library import delete, verify
from memory.manifest import MANIFEST, Manifest
from memory.opening import NEW_MANIFEST, OLD_MANIFEST, is_memory
from memory.rebuild import rebuild
from memory.rewriting import rewrite
from memory.segment_file import read_contents
from memory.stored_records import StoredRecords
from memory.upkeep import merge
from memory.vectors import mean_key
from vstream.session import StreamSession


def made(folder: Path, num_chunks: int = 12, **options) -> Path:
    bank = stored_bank(folder, **options)
    fill(bank, range(num_chunks))
    bank.close()
    return folder


def check(folder: Path, ids: list[int], bare: bool | None, step: int = 0) -> None:
    """Everything there is as it was put; without pictures if `bare`, as they come if None."""
    assert verify(folder).whole
    bank = stored_bank(folder, write=False)
    got = bank.get(bank.chunk_ids())
    assert [one.chunk_id for one in got] == ids and all(same(one, after(one.chunk_id, step)) for one in got)
    assert all(bank.step(i) == step for i in ids)
    for i in ids:
        record, right = StoredRecords(bank.memory.manifest).get(i), record_of(chunk(i))
        if record.thumbnail == b"" and bare is not False:
            right = replace(right, thumbnail=b"")
        assert bare is None or (record.thumbnail == b"") == bare
        assert replace(record, keep=0) == replace(right, keep=0) and np.array_equal(record.keep, right.keep)
    vectors = vectors_of(bank.memory)
    assert sorted(vectors) == ids and all(np.array_equal(vectors[i], mean_key(after(i, step)).numpy()) for i in ids)
    bank.close()
    named = {path.name for path in segments(folder)}
    memory = open_memory(folder, write=True)
    assert named == {f"segment-{number:08d}.safetensors" for number in memory.segments} and memory.notices == []
    memory.close()


def test_all_but_the_pictures_comes_back_without_a_manifest(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    (folder / MANIFEST).unlink()
    with pytest.raises(MemoryBankError, match=f"memory rebuild {folder}"):
        open_memory(folder)
    found = rebuild(folder)
    assert (found.num_chunks, found.num_new, found.num_bare) == (12, 12, 12) and len(found.lost) == 1
    check(folder, list(range(12)), bare=True)
    bank = stored_bank(folder)
    fill(bank, range(20, 24))
    assert bank.chunk_ids() == [*range(12), *range(20, 24)], "it goes on"
    bank.close()


def test_what_was_merged_and_thinned_comes_back_so(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 20, segment_bytes=2_000)
    memory = open_memory(folder, write=True)
    while merge(memory):
        pass
    rewrite(memory, memory.manifest.segments_by_age(), thinning=THINNING)
    memory.close()
    (folder / MANIFEST).unlink()
    rebuild(folder)
    check(folder, list(range(20)), bare=True, step=1)


def test_a_whole_manifest_is_made_anew_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    before = open_memory(folder)
    created = before.manifest.gaps(), before.manifest.sittings()
    before.close()
    for name in (MANIFEST, OLD_MANIFEST):
        # The second time as if the first had been interrupted when the old one was moved away.
        if name != MANIFEST:
            (folder / MANIFEST).rename(folder / name)
        found = rebuild(folder)
        assert (found.num_new, found.num_bare, found.lost) == (0, 0, [])
        check(folder, list(range(12)), bare=False)
        again = open_memory(folder)
        assert (again.manifest.gaps(), again.manifest.sittings()) == created
        again.close()
    assert not list(folder.glob(f"{OLD_MANIFEST}*"))


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_manifest_gives_what_is_right_in_it(tmp_path: Path, seed: int) -> None:
    folder, rng = made(tmp_path / "m"), np.random.default_rng(seed)
    content = bytearray((folder / MANIFEST).read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(content)))
        content[at : at + 700] = rng.bytes(len(content[at : at + 700]))
    (folder / MANIFEST).write_bytes(content)
    found = rebuild(folder)
    assert found.num_chunks == 12 and found.num_bare == found.num_new
    check(folder, list(range(12)), bare=None)


def test_damaged_and_missing_segments_are_told_and_settled(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", 12, lag_seconds=0.1)
    files = segments(folder)
    assert len(files) >= 3
    ids = [sorted(read_contents(path).places) for path in files]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-7])
    (folder / "segment-00000099.safetensors").write_bytes(b"\xff" * 300)
    left = sorted(i for several in ids[2:] for i in several)
    found = rebuild(folder)
    assert found.num_chunks == len(left) and any("is damaged" in words for words in found.lost)
    assert any(f"{12 - len(left)} chunks is gone" in words for words in found.lost)
    bank = stored_bank(folder, write=False)
    assert bank.chunk_ids() == left and all(same(one, chunk(one.chunk_id)) for one in bank.get(left))
    assert StoredRecords(bank.memory.manifest).get(0).thumbnail == record_of(chunk(0)).thumbnail, "its picture stays"
    assert {gap.reason for gap in bank.memory.manifest.gaps()} == {"damaged"}
    bank.close()


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("point", ["segment.durable", "rewrite.written", "rewrite.committed", "unwanted.deleting"])
def test_what_was_forgotten_does_not_come_back_and_nothing_else_goes(tmp_path: Path, point: str, lost: bool) -> None:
    """A forgetting is interrupted, and then the manifest is lost, or stays."""
    folder = made(tmp_path / "m", 10)
    memory = open_memory(folder, write=True)
    rewrite(memory, memory.manifest.segments_by_age())
    memory.close()
    bank = stored_bank(folder, fault=pulling_the_plug(point))
    with pytest.raises(MemoryBankError, match="pulled the plug"):
        bank.forget(0.35, 0.45)
    bank.close()
    if lost:
        (folder / MANIFEST).unlink()
    rebuild(folder)
    # With the manifest gone, all of the new segments on disk mean that it was as good as done.
    done = lost or point in ("rewrite.committed", "unwanted.deleting")
    check(folder, [i for i in range(10) if not done or i not in (3, 4)], bare=lost)


def test_what_cannot_be_rebuilt_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, words in (("nowhere", "nothing to rebuild"), ("empty", "nothing to rebuild")):
        with pytest.raises(MemoryBankError, match=words):
            rebuild(tmp_path / name)
        (tmp_path / "empty").mkdir(exist_ok=True)
    bank = stored_bank(tmp_path / "w")
    with pytest.raises(MemoryBankError, match="somebody else"):
        rebuild(tmp_path / "w")
    bank.close()
    folder = made(tmp_path / "newer")
    manifest = Manifest(folder, write=True)
    with manifest.changing() as db:
        manifest.set_meta(db, "format_version", FORMAT_VERSION + 1)
    manifest.close()
    with pytest.raises(MemoryBankError, match="newer than this program"):
        rebuild(folder)
    assert is_memory(folder) and len(segments(folder)) > 0


def test_a_segment_of_another_model_is_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    other = Identity("other", {**MODEL, "fingerprint": "beef"}, IDENTITY.settings)
    few = stored_bank(tmp_path / "other", identity=other)
    for i in range(4):
        fill(few, range(i, i + 1))  # in more segments than the memory's own may have
    few.close()
    for path in segments(tmp_path / "other"):
        shutil.copy(path, folder / path.name.replace("segment-0", "segment-7"))
    (folder / MANIFEST).unlink()
    found = rebuild(folder)
    assert found.num_chunks == 12 and any("of another model" in words for words in found.lost), "whose most chunks are it is"
    with pytest.raises(MemoryBankError, match="made by the model random"):
        open_memory(folder, other)


def test_labels_that_are_damaged_are_not_believed() -> None:
    labels = labels_of(Origin(IDENTITY, 2, (3, 4), 7, 2), {})
    assert origin_of(labels) == Origin(IDENTITY, 2, (3, 4), 7, 2)
    broken = {name: value.replace("feed", "beef") for name, value in labels.items()}
    assert broken != labels and origin_of(broken) is None and origin_of({}) is None


def test_a_rebuilt_memory_answers_as_before(random_adapter, random_folder, frames, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "m"
    with watched(random_adapter, frames, folder) as session:
        expected = [said(session.answer(QUESTION, at)) for at in (None, 5.5)]
    (folder / MANIFEST).unlink()
    shared = ("--model", random_folder, "--max-new-tokens", 5, "--window-seconds", 3, "--top-k", 3, "--json")
    for args in (("ask", f"memory:{folder}", QUESTION, *shared), ("ask", WORLD, QUESTION, "--memory", folder, *shared)):
        code, out, err = run(capsys, *args)
        assert code == 2 and not out and err.count("\n") == 1 and f"memory rebuild {folder}" in err
    code, out, _ = run(capsys, "memory", "rebuild", folder)
    assert code == 0 and "12 chunks are there" in out and "have lost their pictures" in out
    assert json.loads(run(capsys, "memory", "rebuild", folder, "--json")[1])["num_new"] == 0
    with StreamSession.open(random_adapter, folder, SMALL) as again:
        assert [said(again.answer(QUESTION, at)) for at in (None, 5.5)] == expected
    code, out, _ = run(capsys, "ask", f"memory:{folder}", QUESTION, *shared)
    assert code == 0 and json.loads(out)["answer"] == expected[0][0]


def killed(folder: Path) -> Path:
    """A memory whose writer was killed: much of its manifest is in SQLite's log."""
    pid = os.fork()
    if pid == 0:
        bank = stored_bank(folder)
        fill(bank, range(8))
        bank.forget(0.2, 0.4)
        fill(bank, range(10, 16))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / f"{MANIFEST}-wal").stat().st_size > 0
    return folder


def test_the_log_of_a_manifest_that_is_gone_is_not_taken_for_that_of_the_new_one(tmp_path: Path) -> None:
    folder = killed(tmp_path / "m")
    (folder / MANIFEST).unlink()
    assert rebuild(folder).num_chunks == 12
    check(folder, [0, 1, 4, 5, 6, 7, *range(10, 16)], bare=True)


@pytest.mark.parametrize("num_moved", [1, 2])
def test_a_rebuilding_that_was_interrupted_while_the_old_manifest_was_moved(tmp_path: Path, num_moved: int) -> None:
    folder = killed(tmp_path / "m")
    for log in ("", "-wal")[:num_moved]:
        (folder / f"{MANIFEST}{log}").rename(folder / f"{OLD_MANIFEST}{log}")
    found = rebuild(folder)
    assert (found.num_chunks, found.num_new, found.num_bare) == (12, 0, 0), "what was in the log is known, too"
    check(folder, [0, 1, 4, 5, 6, 7, *range(10, 16)], bare=False)


def test_what_an_interrupted_rebuilding_left_goes_with_the_next_writer(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    for name in (OLD_MANIFEST, f"{OLD_MANIFEST}-wal", NEW_MANIFEST):
        (folder / name).write_bytes(b"pictures")
    stored_bank(folder).close()
    assert not [path for path in folder.iterdir() if path.read_bytes() == b"pictures"]


def test_files_that_are_only_called_alike_are_left_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    (folder / "segment-00000000 (copy).safetensors").write_bytes((folder / "segment-00000000.safetensors").read_bytes())
    (folder / "vectors-old.f32").write_bytes(b"x")
    for name in ("segment-00000077.safetensors", "vectors-0077.f32"):
        (folder / name).mkdir()
    copies = ["segment-00000000 (copy).safetensors", "segment-00000077.safetensors"]
    foreign = [*copies, "vectors-0077.f32", "vectors-old.f32"]
    assert verify(folder).foreign == foreign
    (folder / MANIFEST).unlink()
    assert rebuild(folder).num_chunks == 12
    assert verify(folder).whole and verify(folder).foreign == foreign and delete(folder) == foreign
    assert sorted(path.name for path in folder.iterdir()) == foreign
    with pytest.raises(MemoryBankError, match="holds other files"):
        open_memory(folder, IDENTITY, write=True)
