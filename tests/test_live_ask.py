"""Questions about live streams, the whole path: RTSP and HLS on this machine, and a generated world against the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("av")

from data.sources import open_source
from tests.live_streams import listen, rtsp, web, write_hls  # noqa: F401
from vstream.__main__ import main
from vstream.config import SessionConfig
from vstream.feeder import Feeder
from vstream.session import StreamSession

QUESTION = "what is on screen now ?"


@pytest.mark.slow
def test_ask_over_rtsp(rtsp: Callable[..., str], random_adapter) -> None:
    source = listen(rtsp(40))
    with StreamSession(random_adapter, SessionConfig(max_new_tokens=4)) as session:
        feeder = Feeder(session, source).start()
        deadline = time.monotonic() + 60
        while session.stats.num_chunks < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        while_live = session.answer(QUESTION)
        while feeder.running and time.monotonic() < deadline:
            time.sleep(0.05)
        at_the_end = session.answer(QUESTION)
        feeder.stop()
        assert feeder.error is None and feeder.state == "ended"
        assert 0 <= while_live.asked_at_seconds <= at_the_end.asked_at_seconds <= 3
        assert all(e.start_seconds <= at_the_end.asked_at_seconds for e in at_the_end.evidence)
        session.bank.check_integrity()


def test_ask_over_hls(web: str, tmp_path: Path, random_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_hls(tmp_path)
    url = f"{web}/stream.m3u8"
    flags = ["--model", str(random_folder), "--json", "--max-new-tokens", "4", "--allow-private-hosts"]
    assert main(["ask", url, QUESTION, *flags]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["asked_at_seconds"] == pytest.approx(2.5, abs=0.2)
    assert row["evidence"] and row["num_seen_tokens"] > 0


def test_a_private_url_needs_leave(web: str, random_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", f"{web}/stream.m3u8", QUESTION, "--model", str(random_folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--allow-private-hosts" in err


@pytest.mark.slow
def test_questions_while_a_world_runs_against_the_clock(random_adapter) -> None:
    source = open_source("world:?seed=4&seconds=6&speed=1&side=96")
    with StreamSession(random_adapter, SessionConfig(max_new_tokens=4)) as session:
        started = time.monotonic()
        feeder = Feeder(session, source).start()
        asked: list[float] = []
        while feeder.running and time.monotonic() - started < 60:
            time.sleep(0.3)
            if session.stats.num_frames:
                asked.append(session.answer(QUESTION).asked_at_seconds)
        feeder.stop()
        assert asked == sorted(asked) and len(set(asked)) > 3
        assert session.stats.num_chunks == 6 and time.monotonic() - started >= 5
