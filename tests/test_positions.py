"""Where tokens are put: chunks packed or at their own time, rope types that scale, and what storage costs."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from families import BUILDERS
from qwen_checkpoints import save_qwen2_5_vl

from data.frames import Chunk
from model_adapters import checks, positions
from model_adapters.base import ChunkKV
from model_adapters.checks import run_checks
from model_adapters.conformance import Conformance
from model_adapters.placement import Cursor, Packed, Timed
from model_adapters.references import create_reference
from model_adapters.registry import load_adapter
from model_adapters.steps import Steps
from model_adapters.stock import StockAdapter


def text(size: int) -> torch.Tensor:
    return torch.arange(size).expand(3, -1)


def second(time: int, rows: int = 2, columns: int = 3) -> torch.Tensor:
    """Positions of one slot at a time on axis 0."""
    cells = torch.arange(rows * columns)
    return torch.stack([torch.full_like(cells, time), cells // columns, cells % columns])


def test_packed_leaves_no_gap() -> None:
    cursor = Cursor()
    placed = [Packed().place(cursor, text(n), n, is_video=n == 4) for n in (3, 4, 2)]
    assert torch.equal(torch.cat(placed, 1), text(9)) and cursor.next_position == 9


def test_timed_keeps_the_time_between_chunks_and_text_follows_all_of_them() -> None:
    cursor, rule = Cursor(), Timed(limit=1000)
    rule.place(cursor, text(5), 5, is_video=False)
    early = rule.place(cursor, second(20), 2, is_video=True)
    late = rule.place(cursor, second(420), 2, is_video=True)
    assert set(early[0].tolist()) == {25} and set(late[0].tolist()) == {425}
    assert torch.equal(early[1:], second(0)[1:] + 5) and torch.equal(late[1:], early[1:])
    after = rule.place(cursor, text(4), 4, is_video=False)
    assert after[:, 0].tolist() == [426] * 3 and cursor.next_position == 430


def test_short_videos_end_where_their_picture_does() -> None:
    cursor, rule = Cursor(), Timed(limit=1000)
    rule.place(cursor, second(0, rows=9), 2, is_video=True)
    assert cursor.next_position == 9


def test_beyond_the_limit_chunks_follow_without_gaps() -> None:
    """An hour is not told by positions that the model never saw; order and the steps within a chunk still are."""
    cursor, rule = Cursor(), Timed(limit=100)
    starts = [int(rule.place(cursor, second(time), 2, is_video=True)[0, 0]) for time in (10, 90, 5000, 5002, 90_000)]
    assert starts == [10, 90, 92, 94, 96]
    alone = Cursor()
    window = [int(rule.place(alone, second(time), 2, is_video=True)[0, 0]) for time in range(10_000, 10_010, 2)]
    assert window == [0, 2, 4, 6, 8], "a window far into the stream starts anew"


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> StockAdapter:
    folder = save_qwen2_5_vl(tmp_path_factory.mktemp("timed") / "model")
    return cast(StockAdapter, load_adapter(str(folder), device="cpu"))


@torch.inference_mode()
def test_a_retrieved_chunk_stands_at_its_own_time(timed: StockAdapter) -> None:
    """Chunks 0 and 7 of a longer stream equal the stock language model with the positions that the whole video had."""
    rng = np.random.default_rng(0)
    rows, stored, context = [], [], timed.new_context(8)
    for k, number in enumerate((0, 7)):
        frames = rng.integers(64, 192, (2, 3, 56, 84)).astype(np.uint8)
        chunk = Chunk(number, frames, (float(number), number + 0.5), float(number), number + 1.0)
        visual = timed.embed(timed.picture(chunk))
        run = timed.chunk_run(chunk, visual.grid, torch.ones(len(visual.embeds), dtype=torch.bool), visual)
        keys, values = timed.extend(context, run)
        stored.append(ChunkKV(number, keys, values, run.position_ids, run.span, chunk.start_seconds, chunk.end_seconds))
        rows.append((run.embeds, second(14 * k)))
    question = timed.question_run("What?")
    built = timed.new_context(8)
    timed.append(built, stored)
    layers = timed.new_context(8)
    timed.append_layers(layers, [stored] * timed.info.num_layers)
    assert layers.cursor == built.cursor and torch.equal(layers.read()[0], built.read()[0])
    found = timed.logits(built, question)
    embeds = torch.cat([*(row[0] for row in rows), question.embeds])
    places = torch.cat([*(row[1] for row in rows), question.position_ids + 15], 1)
    hidden = timed.language(inputs_embeds=embeds[None], position_ids=places[:, None]).last_hidden_state[0]
    expected = timed.model.lm_head(hidden)[-len(found) :]
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
@pytest.mark.parametrize("fps", [1.5, 3.0])
def test_times_between_two_positions_are_the_stock_models_own(family: str, fps: float, tmp_path) -> None:
    """Qwen3-Omni places slots and all that follows them at fractions; the others round down."""
    adapter = cast(StockAdapter, load_adapter(str(BUILDERS[family](tmp_path / "model")), device="cpu"))
    kit = Conformance(adapter, create_reference(adapter, tmp_path / "model"), fps)
    assert bool((kit.stock.positions % 1).any()) == (family == "qwen3_omni_moe_thinker")
    found = [check(kit) for check in (checks.position_ids, checks.logits, checks.decoding, checks.moved, checks.retrieved)]
    found.append(checks.chunk_size(kit))
    assert [one.name for one in found if not one.passed] == []
    adapter.steps = Steps(adapter, "on", "eager")
    assert checks.decoding(kit).passed and adapter.steps.kind in ("compiled", "off")


SCALED = [
    pytest.param({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, id="yarn"),
    pytest.param({"rope_type": "linear", "factor": 4.0}, id="linear", marks=pytest.mark.slow),
    pytest.param(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        id="llama3",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("rope", SCALED)
def test_rope_types_that_scale_conform(tmp_path, rope: dict) -> None:
    rope = {"rope_theta": 1e4, "mrope_section": [2, 3, 3]} | rope
    folder = save_qwen2_5_vl(tmp_path / "model", rope_parameters=rope)
    adapter = cast(StockAdapter, load_adapter(str(folder), device="cpu"))
    scaling = adapter.language.rotary_emb.attention_scaling
    assert (scaling > 1.1) == (rope["rope_type"] == "yarn")
    assert not [c for c in run_checks(Conformance(adapter, create_reference(adapter, folder))) if not c.passed]


def test_storing_keys_unrotated_costs_no_more_than_the_number_format() -> None:
    """At every position: the format's own rounding and the error of the angles, and nothing that grows beside them."""
    for position in positions.POSITIONS[:5]:
        angles, plain, narrow, turned, turned_narrow = positions.errors(position)
        assert plain <= angles + 1e-6 and narrow <= angles + 2**-8
        assert turned <= 2e-6 and turned_narrow <= 2**-7
    assert positions.errors(100)[0] < 1e-4 < positions.errors(100_000)[0]
