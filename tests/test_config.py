"""Settings: every field checked, every field a flag, every message with the value in it."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import pytest

from data.errors import ConfigError
from vstream.config import CHOICES, SessionConfig, add_flags, from_flags

FIELDS = fields(SessionConfig)
KINDS = get_type_hints(SessionConfig)
CONTRACT = {
    "fps",
    "chunk_seconds",
    "window_seconds",
    "drop",
    "drop_threshold",
    "drop_target",
    "retrieval",
    "top_k",
    "gate",
    "gpu_bytes",
    "ram_bytes",
    "disk_bytes",
    "kv_codec",
    "max_new_tokens",
    "temperature",
    "seed",
}
OTHER: dict[str, Any] = {
    "fps": 4.0,
    "chunk_seconds": 2.0,
    "window_seconds": 8.0,
    "drop": "feature",
    "drop_threshold": 0.25,
    "drop_target": 0.5,
    "drop_reference": "previous",
    "key_every": 5,
    "retrieval": "uniform",
    "top_k": 3,
    "gate": 2.5,
    "gpu_bytes": 1000,
    "ram_bytes": 2000,
    "index_bytes": 2**21,
    "disk_bytes": 3000,
    "library_bytes": 2**30,
    "kv_codec": "int4",
    "thinning": "evenly",
    "max_new_tokens": 7,
    "prompts": "general",
    "poll_seconds": 5.0,
    "temperature": 0.5,
    "seed": 9,
}
"""Another value than the default for every field that has two."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_flags(made)
    return made


def wrong_values(name: str) -> list[Any]:
    if name in CHOICES:
        return ["nonsense", "", None, 3]
    field = next(f for f in FIELDS if f.name == name)
    low, high = field.metadata["low"], field.metadata["high"]
    wrong: list[Any] = ["7", True, math.nan, [1]]
    if field.default is not None:
        wrong.append(None)
    wrong += [low - 1, high + 1, math.inf]
    if KINDS[name] is int:
        wrong += [1.5, 10**400]
    return wrong


CASES = [(f.name, wrong) for f in FIELDS for wrong in wrong_values(f.name)]


@pytest.mark.parametrize("name,wrong", CASES, ids=[f"{name}={wrong!r}" for name, wrong in CASES])
def test_a_wrong_value_is_named_with_its_field(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SessionConfig(**{name: wrong})
    words = str(caught.value)
    assert name in words and (repr(wrong) in words or str(wrong) in words) and "\n" not in words


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_bounds_themselves_are_allowed(field) -> None:
    for value in (field.metadata.get("low"), field.metadata.get("high")):
        if value is not None:
            # A long chunk keeps fps x chunk_seconds at one frame or more, whatever the other is.
            rest = {"chunk_seconds": 60, "fps": 60} | {field.name: value}
            if not (field.name == "fps" and value < 1):
                assert getattr(SessionConfig(**rest), field.name) == value
    for choice in CHOICES.get(field.name, ()):
        assert getattr(SessionConfig(**{field.name: choice}), field.name) == choice


def test_a_chunk_that_would_hold_no_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.0 s at 0\.5 fps"):
        SessionConfig(fps=0.5)
    assert SessionConfig(fps=0.5, chunk_seconds=2, window_seconds=16).window_chunks == 8
    assert SessionConfig(fps=0.1, chunk_seconds=10).fps == 0.1


@pytest.mark.parametrize("wrong", [5e-324, 1e-300, 9e-7])
def test_a_temperature_that_logits_cannot_be_divided_by_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature is {wrong}; give 0, or a number from 1e-06 on"):
        SessionConfig(temperature=wrong)
    assert SessionConfig(temperature=1e-6).temperature == 1e-6


def test_the_contract_names_are_fields() -> None:
    assert CONTRACT <= {f.name for f in FIELDS} == set(OTHER)


def test_flags_and_fields_are_one_to_one() -> None:
    flags = {action.option_strings[0] for action in parser()._actions if action.dest != "help"}
    assert flags == {"--" + f.name.replace("_", "-") for f in FIELDS}
    assert from_flags(parser().parse_args([])) == SessionConfig()


@pytest.mark.parametrize("name", list(OTHER))
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    config = from_flags(parser().parse_args([f"--{name.replace('_', '-')}", str(OTHER[name])]))
    assert asdict(config) == asdict(SessionConfig()) | {name: OTHER[name]}
    assert type(getattr(config, name)) is type(OTHER[name])


def test_all_flags_round_trip() -> None:
    words = [word for name, value in OTHER.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert from_flags(parser().parse_args(words)) == SessionConfig(**OTHER)


def test_zero_on_the_command_line_is_a_value() -> None:
    config = from_flags(parser().parse_args(["--top-k", "0", "--drop-threshold", "0", "--window-seconds", "0"]))
    assert (config.top_k, config.drop_threshold, config.window_seconds) == (0, 0.0, 0.0)


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{f.name.replace('_', '-')}" in shown for f in FIELDS)


def test_replace_validates_again_and_knows_its_names() -> None:
    config = SessionConfig()
    assert config.replace(top_k=5).top_k == 5 and config.top_k == SessionConfig().top_k
    with pytest.raises(ConfigError, match="-4"):
        config.replace(top_k=-4)
    with pytest.raises(ConfigError, match=r"'topk'.*top_k"):
        config.replace(topk=3)
