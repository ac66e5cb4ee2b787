"""Every family on the command line: a question about a clip; and what a model that cannot be used is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from families import BUILDERS
from safetensors.torch import load_file, save_file
from video_files import write_video

from model_adapters import budget
from model_adapters.weights import SINGLE
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


# A model that cannot be used: one line, and exit code 2


def with_config(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / name).read_text())
    change(config)
    (folder / name).write_text(json.dumps(config))


def without_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()


def torn(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def another_family(folder: Path) -> None:
    with_config(folder, "config.json", lambda config: config.update(model_type="llava_onevision"))


def unknown_family(folder: Path) -> None:
    with_config(folder, "config.json", lambda config: config.update(model_type="gpt_9"))


def without_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace("<|video_pad|>", "<|video_gone|>")
    (folder / "tokenizer.json").write_text(text)
    config = (folder / "tokenizer_config.json").read_text().replace("<|video_pad|>", "<|video_gone|>")
    (folder / "tokenizer_config.json").write_text(config)


def sliding(folder: Path) -> None:
    def change(config: dict) -> None:
        config["text_config"].pop("layer_types", None)
        config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}

    with_config(folder, "config.json", change)


def hybrid(folder: Path) -> None:
    kinds = ["full_attention", "linear_attention", "full_attention"]
    with_config(folder, "config.json", lambda config: config["text_config"].update(layer_types=kinds))


BAD = [
    (without_weights, "no *.safetensors weights"),
    (torn, "torn"),
    (pickled, "can run code"),
    (another_family, ""),
    (unknown_family, "'gpt_9', which is not known here"),
    (without_token, "lacks the special token <|video_pad|>"),
    (sliding, "sliding_attention"),
    (hybrid, "linear_attention"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS["qwen2_5_vl"](tmp_path_factory.mktemp("whole") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("damage,words", BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_model_that_cannot_be_used_is_one_line(damage, words: str, whole: Path, tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    damage(folder)
    refused(folder, words, tmp_path, capsys)


def test_too_little_memory_is_one_line(whole: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(budget, "free_ram", lambda: 1000)
    refused(whole, "are free on cpu", tmp_path, capsys)


def refused(folder: Path, words: str, tmp_path: Path, capsys) -> None:
    """By ask, by doctor, and by batch with any number of workers."""
    rows = [{"id": seed, "video": f"world:?seed={seed}&seconds=3&speed=0", "question": "what is it ?"} for seed in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = ["batch", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    for argv in (["ask", rows[0]["video"], "what is it ?"], batch, [*batch, "--workers", "2"]):
        assert main([*argv, "--model", str(folder)]) == 2, argv
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith("WARNING")]
        assert not said.out and len(lines) == 1 and words in lines[0] and str(folder) in lines[0]
    assert main(["doctor", "--model", str(folder)]) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if " model " in line and line.startswith("--")]
    assert words in line and said.err.splitlines()[-1].startswith("vstream doctor: ") and words in said.err


def test_batch_tells_models_apart_by_what_they_are(whole: Path, tmp_path: Path, capsys) -> None:
    """The same weights under another name go on; other weights under the same name are another model."""
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": 1, "video": "none.mp4", "question": "what is it ?"}) + "\n")
    batch = ["batch", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--model"]
    assert main([*batch, str(one)]) == 0
    assert main([*batch, str(shutil.copytree(one, tmp_path / "two"))]) == 0
    weights = load_file(one / SINGLE)
    save_file({name: weight + 1 for name, weight in weights.items()}, one / SINGLE, {"format": "pt"})
    capsys.readouterr()
    assert main([*batch, str(one)]) == 2
    assert "another model" in capsys.readouterr().err
