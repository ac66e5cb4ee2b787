"""A writer that is killed, at every marked point and at any moment, leaves a memory that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.crash import POINTS, kill_banks, kill_sessions
from model_adapters.base import ModelAdapter


@pytest.mark.slow
def test_killing_the_writer_loses_nothing_that_was_committed(random_adapter: ModelAdapter, tmp_path: Path) -> None:
    tally = kill_banks(tmp_path, 2 * len(POINTS) + 10, seed=1)
    kill_sessions(tmp_path, 2, 1, random_adapter, tally)
    assert tally.failures == []
    assert tally.kills.total() >= 50 and tally.num_chunks_checked > 0 and tally.num_torn_tails > 0
    assert all(tally.kills[point] for point in POINTS), "every marked point was reached"
