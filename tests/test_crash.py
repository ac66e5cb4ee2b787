"""A writer that is killed, at every marked point and at any moment, leaves a memory that is whole."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from eval.crash import kill
from eval.crash_check import Acknowledged, Tally, check_folder
from eval.crash_victims import INFO, POINTS, Banks, Sessions
from eval.random_memory import random_chunk, random_identity, random_record
from memory import DurableBank, open_memory
from model_adapters.base import ModelAdapter


def test_what_was_forgotten_is_not_put_again_and_coming_back_is_noticed(tmp_path: Path) -> None:
    """The check itself: the newest chunks are forgotten, and the kill comes before their commit was told."""
    tally, known = Tally(), Acknowledged()
    with closing(DurableBank(open_memory(tmp_path / "m", random_identity(INFO), write=True), "cpu", 0, 0)) as bank:
        for i in range(7):
            one = random_chunk(INFO, 0, i)
            bank.put(one, random_record(0, one))
        bank.forget(5.0, 7.0)
    for words in (("committed", 4), ("forgetting", 5, 7), ("forgotten", 5, 7)):
        known.hear(*words)
    check_folder(tmp_path / "m", INFO, 0, known, tally, "here")
    assert tally.failures == [] and known.next_id == 7
    with closing(DurableBank(open_memory(tmp_path / "m", write=True), "cpu", 0, 0)) as bank:
        one = random_chunk(INFO, 0, 6)
        bank.put(one, random_record(0, one))
    check_folder(tmp_path / "m", INFO, 0, known, tally, "here")
    assert tally.failures == ["here: forgotten chunks are back: [6]"]


@pytest.mark.slow
def test_killing_the_writer_loses_nothing_that_was_committed(random_adapter: ModelAdapter, tmp_path: Path) -> None:
    tally = Tally()
    kill(Banks(tmp_path, 1, tally), 2 * len(POINTS) + 10, tally)
    kill(Sessions(tmp_path, 1, tally, random_adapter), 2, tally)
    assert tally.failures == []
    assert tally.kills.total() >= 50 and tally.num_chunks_checked > 0 and tally.num_torn_tails > 0
    assert all(tally.kills[point] for point in POINTS), "every marked point was reached"
