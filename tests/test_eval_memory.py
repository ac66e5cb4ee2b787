"""The evaluations of memory: what is put together for them is what they say, and their sums are right."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data.world import make_world
from eval.codecs import Tally, summary, weigh
from eval.day import AGES, NUM_NEEDLES, OLDEST, by_age, places, questions, stream_of
from eval.run import main
from memory.codecs import CODECS, create_codec
from model_adapters.base import ChunkKV

WORLD = make_world(5, 300, side=96, num_needles=NUM_NEEDLES)


def one_token(chunk_id: int) -> ChunkKV:
    """A chunk of the world's second `chunk_id`, which is written into its keys."""
    keys = torch.full((1, 1, 1, 2), float(chunk_id))
    return ChunkKV(chunk_id, keys, keys, torch.zeros(3, 1, dtype=torch.long), 1, float(chunk_id), chunk_id + 1.0)


@pytest.mark.parametrize("slot_seconds", [1.0, 4.0])
def test_a_day_shows_every_needle_once_where_it_is_placed(slot_seconds: float) -> None:
    seconds, chunks = 20_000.0, [one_token(i) for i in range(300)]
    placed = places(WORLD, seconds)
    assert sorted(one.name for one in placed) == sorted(WORLD.needles)
    day = list(stream_of(chunks, WORLD, placed, round(seconds / slot_seconds), slot_seconds))
    assert [kv.chunk_id for kv in day] == list(range(round(seconds / slot_seconds)))
    assert all(kv.start_seconds == i * slot_seconds and kv.end_seconds == (i + 1) * slot_seconds for i, kv in enumerate(day))
    shown = [WORLD.on_screen(float(kv.keys.flatten()[0])) for kv in day]
    for one in placed:
        stay = WORLD.stay_of(one.name)
        slots = [i for i, seen in enumerate(shown) if seen is not None and seen.name == one.name]
        assert slots == list(range(slots[0], slots[0] + stay.end_seconds - stay.start_seconds))
        assert 0 <= slots[0] * slot_seconds - one.start_seconds < 60, "as soon as the one before it is through"
    assert sum(seen is not None and seen.name in WORLD.needles for seen in shown) < len(day) / 20


def test_questions_of_a_day_are_about_what_was_there_by_then() -> None:
    placed = places(WORLD, 86_400.0)
    for now in (3600.0, 86_400.0):
        asked = list(questions(WORLD, placed, now))
        past = [one for one in placed if one.start_seconds + 30 <= now]
        assert len(asked) == 2 * len(past) + len(WORLD.absent)
        assert all(0 <= q.age_seconds <= now and q.at_seconds == now for q in asked)
    ages = [q.age_seconds for q in asked if q.evidence]
    edges = [0, *(limit for limit, _ in AGES), 86_400]
    assert all(any(low <= age < high for age in ages) for low, high in pairwise(edges)), "every bin"
    rated = by_age([(q, q.answer if i % 2 else "wrong", 0) for i, q in enumerate(asked)])
    bins = [rated[name] for name in ("never came", *(name for _, name in AGES), OLDEST)]
    assert sum(one["n"] for one in bins) == len(asked) and sum(one["right"] for one in bins) == len(asked) // 2


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_a_short_day_keeps_to_its_budgets_and_says_what_is_left(kept: bool, tmp_path: Path) -> None:
    out = tmp_path / "day.json"
    flags = ["day", "--hours", "0.2", "--watched-seconds", "240", "--gpu-mib", "1", "--ram-mib", "2", "--disk-mib", "8"]
    assert main([*flags, "--json", str(out), *(["--kept"] if kept else [])]) == 0
    day = json.loads(out.read_text())
    (hour,) = day["hours"]
    assert hour["bytes"]["disk"] <= 8 * 2**20 and hour["bytes"]["ram"] <= 2 * 2**20 and day["kept"] == kept
    assert sum(hour["num_at_step"]) == hour["num_chunks"] and sum(hour["num_at_step"][1:]) > 0
    assert sum(found["n"] for found in day["by_age"].values()) > 0


@pytest.mark.parametrize("name", list(CODECS))
def test_bytes_are_those_of_the_files(tmp_path: Path, name: str) -> None:
    tally = Tally(create_codec(name), right=[True, True, False], texts=["a", "b", "c"], logit_errors=[(0.5, 1.0), (1.5, 4.0)])
    weigh(tally, [one_token(i) for i in range(40)], tmp_path / "kv")
    assert tally.num_tokens == 40 and tally.disk_bytes == sum(file.stat().st_size for file in (tmp_path / "kv").iterdir())
    packets = [tally.codec.encode(one_token(i)) for i in range(40)]
    assert sum(packet.num_bytes for packet in packets) <= tally.ram_bytes < 40 * 200
    native = Tally(create_codec("native"), right=[True, False, True], texts=["a", "x", "y"])
    found = summary(tally, native, 10_000)
    assert (found["won"], found["lost"], found["same_text"]) == (1, 1, 1)
    assert found["logit_error"] == {"mean": 1.0, "max": 4.0} and found["times_smaller"]["disk"] == 10_000 / tally.disk_bytes


def test_reopening_is_measured_in_a_folder_that_is_made_and_gone_again(random_folder: Path, tmp_path: Path, capsys) -> None:
    shared = ["reopen", "--model", str(random_folder), "--hours", "0.005", "--repeats", "1", "--max-new-tokens", "2"]
    assert main([*shared, "--folder", str(tmp_path / "made" / "here")]) == 0
    assert "Reopening" in capsys.readouterr().out and not (tmp_path / "made" / "here").exists()
    (tmp_path / "file").write_text("in the way")
    assert main([*shared, "--folder", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "cannot be used" in err[-1]
