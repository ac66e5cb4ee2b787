"""Presets of published systems: which names they match, that they are valid, and that flags go before them."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser, Namespace

import pytest
import torch
from qwen_checkpoints import save_qwen2_vl

from data.errors import AdapterError
from model_adapters.check import report
from model_adapters.presets import PRESETS, Preset, preset_for
from model_adapters.registry import load_adapter
from vstream.__main__ import main
from vstream.config import SessionConfig, add_flags
from vstream.models import add_model_flags, chosen_model, chosen_settings

NAMES = {
    "wyccccc/TimeChatOnline-7B": "TimeChat-Online",
    "/models/timechat-online-7b/": "TimeChat-Online",
    "mit-han-lab/StreamingVLM": "StreamingVLM",
    "chenjoya/LiveCC-7B-Instruct": "LiveCC",
    "zhang9302002/Flash-VStream-Qwen-7b": "Flash-VStream",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "ReKV",
    "embedded": None,
    "Qwen/Qwen3-VL-4B-Instruct": None,
    "/home/livecc/Qwen2-VL-7B-Instruct": None,
}


def parsed(*argv: str) -> Namespace:
    parser = ArgumentParser()
    add_model_flags(parser)
    add_flags(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("name,system", NAMES.items())
def test_a_preset_is_found_by_the_checkpoints_own_name(name: str, system: str | None) -> None:
    found = preset_for(name)
    assert (found.system if found else None) == system


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.system)
def test_presets_are_valid_settings(preset: Preset) -> None:
    assert SessionConfig(**preset.settings) != SessionConfig()
    assert preset.max_pixels is None or preset.max_pixels >= 28 * 28


def test_flags_go_before_a_preset(capsys) -> None:
    name = "wyccccc/TimeChatOnline-7B"
    config = chosen_settings(parsed("--model", name))
    assert (config.fps, config.drop, config.drop_threshold, config.drop_reference) == (1.0, "feature", 0.5, "previous")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "TimeChat-Online" in said and "drop_threshold 0.5" in said
    config = chosen_settings(parsed("--model", name, "--fps", "2", "--drop-threshold", "0.25"))
    assert (config.fps, config.drop, config.drop_threshold) == (2.0, "feature", 0.25)
    # A threshold for embeddings says nothing about pixels.
    config = chosen_settings(parsed("--model", name, "--drop", "pixel"))
    assert (config.drop, config.drop_threshold, config.drop_reference) == ("pixel", None, "last_kept")
    assert chosen_model(parsed("--model", name)).max_pixels == 448 * 448
    assert chosen_model(parsed("--model", name, "--max-pixels", "3136")).max_pixels == 3136
    capsys.readouterr()
    assert chosen_settings(parsed()) == SessionConfig() and not capsys.readouterr().err


def test_frames_are_made_no_larger_than_asked(random_folder, random_adapter) -> None:
    from test_adapter import still

    from data.frames import Chunk

    chunk = Chunk(0, still(200, 300)[None], (0.0,), 0.0, 1.0)
    small = load_adapter(str(random_folder), device="cpu", max_pixels=4096)
    picture = small.picture(chunk)
    assert picture.shape[-2] * picture.shape[-1] <= 4096 < random_adapter.picture(chunk)[0, 0].numel()
    assert small.info.fingerprint != random_adapter.info.fingerprint
    with pytest.raises(AdapterError, match="less than one token"):
        load_adapter(str(random_folder), device="cpu", max_pixels=100)


@pytest.mark.slow
def test_flash_vstream_runs_as_the_qwen2_vl_that_its_weights_are(tmp_path, caplog) -> None:
    """Its config as its released code writes it: types and classes of its own, and settings of a memory without weights."""
    plain = save_qwen2_vl(tmp_path / "plain")
    folder = shutil.copytree(plain, tmp_path / "Flash-VStream-Qwen-7b")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "flash_vstream_qwen2_vl", "architectures": ["FlashVStreamQwen2VLModel"]}
    config["vision_config"]["flash_memory_config"] = {"flash_memory_temporal_length": 120, "flash_memory_spatial_length": 60}
    (folder / "config.json").write_text(json.dumps(config))
    processing = json.loads((folder / "preprocessor_config.json").read_text())
    processing["image_processor_type"] = "FlashVStreamQwen2VLImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    own, expected = (load_adapter(str(f), device="cpu") for f in (folder, plain))
    assert "flash_vstream_qwen2_vl" in caplog.text and "run as that" in caplog.text
    assert own.info.family == "qwen2_vl" and own.info.kv_bytes_per_token == expected.info.kv_bytes_per_token
    run = own.question_run("what is on screen now ?")
    assert torch.equal(own.logits(own.new_context(8), run), expected.logits(expected.new_context(8), run))
    picture = torch.randint(0, 256, (2, 3, 56, 84), dtype=torch.uint8)
    assert torch.equal(own.embed(picture).embeds, expected.embed(picture).embeds)
    assert report(str(folder), "float32", "cpu") == 0, "the conformance kit passes on it"


def test_doctor_shows_the_preset(random_folder, tmp_path, capsys) -> None:
    folder = shutil.copytree(random_folder, tmp_path / "LiveCC-7B-Instruct")
    assert main(["doctor", "--model", str(folder), "--max-pixels", "16384"]) == 0
    rows = capsys.readouterr().out
    assert "preset of LiveCC" in rows and "silence ' ...'" in rows and "qwen3_vl" in rows
