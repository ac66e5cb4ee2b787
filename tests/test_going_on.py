"""A stream that was left and goes on is the stream that never was: bit for bit, with its dropping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_memory_stores import same
from test_remembered import QUESTION, SMALL, said

from data.world import make_world
from memory.exports import export_copy
from memory.library import verify
from memory.reference import REFERENCE, reference_of
from vstream.config import SessionConfig
from vstream.session import StreamSession

FRAMES = list(make_world(seed=3, seconds=40, side=96).frames(2.0))
DROPPING = [
    {"drop": "off"},
    {"drop": "pixel"},
    {"drop": "pixel", "drop_reference": "previous", "key_every": 5},
    {"drop": "pixel", "drop_target": 0.6},
    {"drop": "feature"},
    {"drop": "feature", "drop_target": 0.5, "key_every": 7},
]


def watch(adapter, folder: Path | None, config: SessionConfig, stops: list[int]) -> StreamSession:
    """Watch all frames; leave and open again behind the frames number `stops`. The last session is open still."""
    session, at = StreamSession(adapter, config, memory=folder), 0
    for stop in [*stops, len(FRAMES)]:
        session.join("film", "film")
        for frame in FRAMES[at:stop]:
            session.push(frame)
        if stop < len(FRAMES):
            session.close()
            session, at = StreamSession(adapter, config, memory=folder), stop
    return session


@pytest.mark.slow
@pytest.mark.parametrize("dropping", DROPPING, ids=lambda d: "-".join(map(str, d.values())))
def test_what_is_stored_and_answered_is_as_if_it_had_never_been_left(random_adapter, tmp_path: Path, dropping: dict) -> None:
    config = SMALL.replace(window_seconds=2, **dropping)
    with (
        watch(random_adapter, None, config, []) as whole,
        # While the first window fills, the context is not built of stored chunks yet; from then on every chunk is the same.
        watch(random_adapter, tmp_path / "m", config, [8, 10, 30, 64]) as left,
    ):
        ids = whole.bank.chunk_ids()
        assert left.bank.chunk_ids() == ids and len(ids) == 40
        assert all(same(one, other) for one, other in zip(whole.bank.get(ids), left.bank.get(ids), strict=True))
        assert all(np.array_equal(whole.record(i).keep, left.record(i).keep) for i in ids)
        assert dropping["drop"] == "off" or not all(whole.record(i).keep.all() for i in ids), "something was dropped"
        for at in (None, 12.0, 35.5):
            assert said(left.answer(QUESTION, at)) == said(whole.answer(QUESTION, at))


def test_nothing_is_compared_with_what_was_forgotten_or_with_another_source(random_adapter, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with StreamSession(random_adapter, SMALL, memory=folder) as session:
        for frame in FRAMES[:12]:
            session.push(frame)
        assert not session.record(5).keep.all()
        session.forget(1.0, 2.0)
        assert not (folder / REFERENCE).exists() and session.ingest.drop.held is None
        for frame in FRAMES[12:18]:
            session.push(frame)
        assert session.record(6).keep.all() and not session.record(8).keep.all()
    assert (folder / REFERENCE).stat().st_mode & 0o777 == 0o600 and verify(folder).foreign == []
    export_copy(folder, tmp_path / "copy")
    assert (tmp_path / "copy" / REFERENCE).exists()
    with StreamSession(random_adapter, SMALL, memory=folder) as session:
        assert session.ingest.drop.held is not None
        session.join("another camera")
        for frame in FRAMES[:4]:
            session.push(frame)
        assert session.record(10).keep.all() and not session.record(11).keep.all()
    from vstream.__main__ import main

    assert main(["memory", "forget", str(folder), "0", "1"]) == 0
    assert not (folder / REFERENCE).exists(), "forgotten from outside, too"


def test_a_reference_that_is_old_or_damaged_is_not_taken_up(random_adapter, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "m"
    with StreamSession(random_adapter, SMALL, memory=folder) as session:
        for frame in FRAMES[:12]:
            session.push(frame)
        left = session.ingest.drop.leave()
    content = (folder / REFERENCE).read_bytes()
    for broken in (b"", content[:-9], content[:200] + bytes([content[200] ^ 1]) + content[201:], None):
        if broken is None:
            (folder / REFERENCE).unlink()
        else:
            (folder / REFERENCE).write_bytes(broken)
        with StreamSession.open(random_adapter, folder, SMALL) as session:
            assert session.ingest.drop.held is None
    assert caplog.text.count("is damaged") == 3
    (folder / REFERENCE).write_bytes(content)
    with StreamSession(random_adapter, SMALL, memory=folder) as session:
        assert torch.equal(session.ingest.drop.held, left.tensors["held"])
        assert reference_of(session.memory, 5) is not None and reference_of(session.memory, 4) is None
        for frame in FRAMES[12:16]:
            session.push(frame)
        session.save()
        # As after a crash: the chunks are there, the reference is that of earlier ones.
        with StreamSession.open(random_adapter, folder, SMALL) as reader:
            assert reader.ingest.drop.held is None
