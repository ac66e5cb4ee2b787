"""Every family on the command line: a question about a clip, and the kit on its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import BUILDERS
from video_files import write_video

from vstream.__main__ import main


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=5.0, size=(96, 64))


@pytest.mark.slow
@pytest.mark.parametrize("family", BUILDERS)
def test_a_clip_is_asked_about(family: str, clip: Path, tmp_path: Path, capsys) -> None:
    folder = BUILDERS[family](tmp_path / "model")
    flags = ["--max-new-tokens", "4", "--window-seconds", "2", "--top-k", "2"]
    assert main(["ask", str(clip), "what is on screen now ?", "--model", str(folder), "--json", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == str(folder) and answer["evidence"] and answer["num_context_tokens"] > 0
    assert 0 < answer["num_kept_tokens"] <= answer["num_seen_tokens"]
    assert {e["tier"] for e in answer["evidence"]} - {"window"}, "something was brought back"


@pytest.mark.slow
@pytest.mark.parametrize("name,family", [("TimeChatOnline-7B", "qwen2_5_vl"), ("LiveCC-7B-Instruct", "qwen2_vl")])
def test_a_published_systems_checkpoint_loads_as_what_it_is(name: str, family: str, clip: Path, tmp_path: Path, capsys) -> None:
    folder = BUILDERS[family](tmp_path / name)
    assert main(["ask", str(clip), "what is on screen now ?", "--model", str(folder), "--json", "--max-new-tokens", "2"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["num_seen_tokens"] > 0 and "preset of " in said.err
    assert main(["doctor", "--model", str(folder)]) == 0
    assert f"{family}, 3 layers" in capsys.readouterr().out
