"""A library within its bytes: who gives way, who never does, and that it is said. And who goes on in whose memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from everyday import everyday
from stored import fill, stored_bank
from test_library import wait_for
from test_memory_stores import same

from data.errors import ConfigError, MemoryBankError
from data.sources import PushSource, open_source
from data.sources.hosts import key_of
from data.world import make_world
from memory import open_memory
from memory.library import describe, memories, own_files, verify
from memory.manifest import LOGS, MANIFEST
from memory.room import GaveWay, bytes_of, is_pinned, make_room, pin
from memory.thinning import Distinct, Thinning
from model_adapters.base import ModelAdapter
from vstream.__main__ import main
from vstream.config import SessionConfig
from vstream.library import MIN_BYTES, Library
from vstream.turns import Turns
from vstream.ui.handlers import Handlers
from vstream.ui.library import Shelf, usage_html
from vstream.ui.snapshot import snapshot_of
from vstream.ui.studio import Studio

THINNING = Thinning(Distinct())
FAST = "world:?seed=7&seconds=12&speed=0"


def shelf_of(folder: Path, num: int, num_chunks: int = 60) -> list[Path]:
    """Memories of random chunks, the oldest first."""
    made = [folder / f"m{number}" for number in range(num)]
    for one in made:
        bank = stored_bank(one, segment_bytes=20_000)
        for start in range(0, num_chunks, 5):
            # So that segments do not depend on the writer's pace.
            fill(bank, range(start, start + 5))
            bank.writer.flush()
        bank.close()
    return made


def readable(folder: Path) -> int:
    """The number of chunks that read back; whatever reads back is right or thinned."""
    bank = stored_bank(folder, write=False)
    try:
        got = bank.get(bank.chunk_ids())
        assert bank.damaged == []
        return len(got)
    finally:
        bank.close()


@pytest.mark.slow
def test_what_was_watched_longest_ago_gives_way_first(tmp_path: Path) -> None:
    made = shelf_of(tmp_path, 4)
    before = {folder: bytes_of(folder) for folder in made}
    total = sum(before.values())
    assert make_room(tmp_path, total, (), THINNING).gave_way == [], "nothing happens while all fit"
    # With the slack, half of the KV of the oldest.
    goal = total - before[made[0]] // 8
    room = make_room(tmp_path, goal, (), THINNING)
    (one,) = room.gave_way
    assert (one.name, one.deleted) == ("m0", False) and one.num_bytes == before[made[0]] - bytes_of(made[0])
    assert room.num_bytes == sum(map(bytes_of, made)) <= goal
    assert describe(made[0]).num_thinned and verify(made[0]).whole
    assert all(bytes_of(folder) == before[folder] and readable(folder) == 60 for folder in made[1:])
    room = make_room(tmp_path, before[made[3]] + before[made[2]], (), THINNING)
    assert [(one.name, one.deleted) for one in room.gave_way][:2] == [("m0", True), ("m1", True)]
    assert memories(tmp_path) == made[2:] and readable(made[3]) == 60
    assert room.num_bytes == sum(map(bytes_of, memories(tmp_path))) <= before[made[3]] + before[made[2]]


@pytest.mark.parametrize("seed", everyday(range(4)))
def test_pinned_open_foreign_and_damaged_memories_never_give_way(tmp_path: Path, seed: int) -> None:
    """Whatever the limit: those that may not give way are as they were, and the others have gone if that is needed."""
    rng = random.Random(seed)
    made = shelf_of(tmp_path, 6, 20)
    rng.shuffle(made)
    pinned, held, written, damaged, *others = made
    pin(pinned, True)
    (damaged / MANIFEST).write_bytes(b"no manifest at all")
    writer = open_memory(written, write=True)
    theirs = [path for one in (pinned, held, damaged) for path in own_files(one) if not path.name.endswith(LOGS)]
    files = {path: path.read_bytes() for path in theirs}
    sizes = {folder: bytes_of(folder) for folder in made}
    limit = rng.choice([1, sizes[pinned], sum(sizes.values()) // 2, sum(sizes.values()) - 1])
    room = make_room(tmp_path, limit, {held}, THINNING)
    assert all(path.read_bytes() == content for path, content in files.items())
    assert {one.name for one in room.gave_way} <= {folder.name for folder in others}
    assert room.num_bytes == sum(map(bytes_of, memories(tmp_path)))
    assert room.num_bytes <= limit or not any(folder.exists() for folder in others)
    writer.close()
    pin(pinned, False)
    assert not is_pinned(pinned)
    assert GaveWay(pinned.name, sizes[pinned], True) in make_room(tmp_path, 1, (), THINNING).gave_way


def test_what_holds_no_memory_cannot_be_pinned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(MemoryBankError, match="holds no memory"):
        pin(tmp_path / "holiday", True)
    (folder,) = shelf_of(tmp_path, 1, 3)
    assert main(["memory", "pin", str(folder)]) == 0 and is_pinned(folder)
    assert main(["memory", "ls", str(tmp_path)]) == 0 and "pinned" in capsys.readouterr().out
    assert verify(folder).foreign == []
    assert main(["memory", "unpin", str(folder), "--json"]) == 0 and not is_pinned(folder)
    assert json.loads(capsys.readouterr().out) == {"pinned": False}
    assert main(["memory", "pin", str(tmp_path / "holiday")]) == 2
    with pytest.raises(ConfigError, match="library_bytes is 1"):
        SessionConfig(library_bytes=1)


# A library


@pytest.fixture
def studio(random_adapter: ModelAdapter, tmp_path: Path) -> Iterator[Studio]:
    config = SessionConfig(max_new_tokens=4, ram_bytes=2**20, gpu_bytes=0, library_bytes=3 * 2**20)
    made = Studio(random_adapter, config, start_source=FAST, folder=tmp_path / "library")
    yield made
    made.close_all()


def watch(library: Library, adapter: ModelAdapter, seed: int, seconds: int) -> str:
    """Watch a world to its end. Returns the name of its memory."""
    session = library.session(adapter, library.config, Turns(), open_source(f"world:?seed={seed}&seconds={seconds}&speed=0"))
    assert session.memory is not None
    session.join(f"world {seed}", f"world {seed}")
    for frame in make_world(seed, seconds).frames(2.0):
        session.push(frame)
    session.finish()
    library.close(session)
    return session.memory.folder.name


@pytest.mark.slow
def test_a_full_library_lets_old_streams_go_and_says_so(studio: Studio, random_adapter: ModelAdapter) -> None:
    library = studio.library
    assert library is not None
    names = [watch(library, random_adapter, seed, 40) for seed in range(6)]
    library.keep_within()
    there = studio.saved()
    assert sum(bytes_of(library.folder / name) for name in there) <= library.config.library_bytes
    assert names[-1] in there and names[0] not in there, "the oldest went, the newest is there"
    stats = library.stats()
    assert stats["num_deleted"] == 6 - len(there) and stats["num_bytes"] <= stats["capacity_bytes"]
    assert any(f"{names[0]} was deleted" in notice for notice in library.notices)
    studio.open("a")
    assert "was deleted" in usage_html(stats) and "3.0 MiB" in usage_html(stats)
    # On a page that watches meanwhile it is told at once.
    tab = studio.tab("a")
    tab.start(open_source("world:?seed=99&seconds=600&speed=1"))
    assert snapshot_of(tab).warning == ""
    library._say("the memory x was deleted")
    assert "x was deleted" in snapshot_of(tab).warning


@pytest.mark.slow
def test_an_open_stream_stays_within_its_share(studio: Studio, random_adapter: ModelAdapter) -> None:
    library = studio.library
    assert library is not None
    one = library.session(random_adapter, library.config, Turns(), PushSource("one"))
    two = library.session(random_adapter, library.config, Turns(), PushSource("two"))
    assert one.memory is not None and two.memory is not None
    assert one.memory.disk_bytes == two.memory.disk_bytes == library.config.library_bytes // 2
    library.close(two)
    library.keep_within()
    assert one.memory.disk_bytes == library.config.library_bytes
    for frame in make_world(1, 240).frames(2.0):
        one.push(frame)
    one.save()
    assert one.memory.num_bytes <= library.config.library_bytes and one.bank.steps(), "it thins out by itself"
    library.close(one)


@pytest.mark.slow
def test_where_nothing_may_give_way_a_stream_goes_on_without_being_remembered(studio: Studio, random_adapter) -> None:
    library = studio.library
    assert library is not None
    while library.config.library_bytes - sum(bytes_of(library.folder / name) for name in studio.saved()) >= MIN_BYTES:
        pin(library.folder / watch(library, random_adapter, len(studio.saved()), 40), True)
    there = studio.saved()
    tab = studio.open("a")
    tab.start(open_source("world:?seed=99&seconds=600&speed=4"))
    wait_for(lambda: len(tab.records()) > 1)
    assert tab.session is not None and tab.session.memory is None and studio.saved() == there
    assert "is not remembered" in snapshot_of(tab).warning
    assert all(verify(library.folder / name).whole for name in there)
    shelf = Shelf(studio, Handlers(studio))
    assert all("· pinned" in words for words, _ in shelf.choices()["choices"])
    for name in there:
        notice, _, usage = shelf.pin(name)
        assert "gives way" in notice and "memories" in str(usage)
    tab.start(open_source("world:?seed=99&seconds=600&speed=4"))
    assert tab.session is not None and tab.session.memory is not None


# Who goes on in whose memory


def test_a_live_source_goes_on_in_its_memory_behind_a_gap(studio: Studio, random_adapter: ModelAdapter) -> None:
    library = studio.library
    assert library is not None
    folders = []
    for place in ("live front", "live front", "live back", "", ""):
        source = PushSource("camera", place_key=place)
        session = library.session(random_adapter, library.config, Turns(), source)
        assert session.memory is not None
        joined = session.join(source.info.label, source.recording_key, source.place_key)
        for frame in make_world(5, 6).frames(2.0):
            session.push(frame)
        folders.append((session.memory.folder, joined))
        library.close(session)
    (first, _), (again, joined), *_ = folders
    assert again == first and len({folder for folder, _ in folders}) == 4, "what nothing tells apart is never mixed"
    assert joined.start_seconds == 0.0 and joined.offset_seconds == joined.gap[1] and "after a pause" in joined.words
    memory = open_memory(first)
    (gap,) = memory.manifest.gaps()
    assert gap.reason == "paused" and (gap.start_seconds, gap.end_seconds) == joined.gap
    assert len(memory.manifest.ids()) == 12 and len(memory.manifest.sittings()) == 2
    memory.close()


def test_a_camera_goes_on_on_its_own_page_only(studio: Studio) -> None:
    pictures = [frame.data.transpose(1, 2, 0) for frame in make_world(3, 4, side=64).frames(2.0)]
    for key in ("a", "b"):
        studio.open(key)
    keys = set()
    for key in ("a", "a", "b"):
        tab = studio.tab(key)
        tab.leave()
        tab._camera_seen = float("-inf")
        tab.push(pictures[0])
        assert tab.source is not None
        keys.add(tab.source.place_key)
    assert len(keys) == 2 and all(keys)


def test_an_address_is_told_apart_without_being_kept() -> None:
    one = key_of("rtsp://me:secret@camera.example:554/live?channel=1")
    assert one == key_of("rtsp://you:other@Camera.example:554/live?channel=1"), "a new password is the same camera"
    others = (
        "rtsp://camera.example:554/live?channel=2",
        "rtsp://camera.example:555/live?channel=1",
        "rtsps://camera.example/live",
    )
    assert len({one, *map(key_of, others)}) == 4
    assert not any(part in one for part in ("secret", "camera", "channel", "me:"))


def test_thinned_memories_still_answer_right(tmp_path: Path) -> None:
    """What gave way in part is as if its own quota had thinned it."""
    (folder,) = shelf_of(tmp_path, 1)
    make_room(tmp_path, 3 * bytes_of(folder) // 4, (), THINNING)
    bank = stored_bank(folder, write=False)
    from stored import after

    steps = bank.steps()
    assert steps and all(same(one, after(one.chunk_id, steps.get(one.chunk_id, 0))) for one in bank.get(bank.chunk_ids()))
    bank.close()
