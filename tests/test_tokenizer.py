"""The embedded model's tokenizer: one token per number, and a person's way of typing does not matter."""

from __future__ import annotations

import numpy as np
import pytest

from data.questions import comment_at, questions_about
from data.world import make_world
from model_adapters.tiny.config import COLORS, DIRECTIONS, MAX_NUMBER, SHAPES, SPECIAL, VISION, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_every_number_is_one_token_of_its_own(tokenizer) -> None:
    found = [ids(tokenizer, str(n)) for n in range(MAX_NUMBER + 1)]
    assert {len(tokens) for tokens in found} == {1}
    assert len({tokens[0] for tokens in found}) == MAX_NUMBER + 1
    # In order without a gap: the sampler and the fixed number codes count on it.
    assert [tokens[0] - found[0][0] for tokens in found] == list(range(MAX_NUMBER + 1))
    assert tokenizer.unk_token_id not in {tokens[0] for tokens in found}


@pytest.mark.parametrize(
    "typed",
    [
        "what was on screen at 37 s ?",
        "What was on screen at 37s?",
        "WHAT WAS ON SCREEN AT 37 S?",
        "  what  was on\tscreen at 37 seconds ?",
        "What was on screen at 37 seconds?",
        "what was on screen at 37second ?",
    ],
)
def test_capitals_spaces_and_units_do_not_matter(tokenizer, typed: str) -> None:
    expected = ids(tokenizer, "what was on screen at 37 s ?")
    assert ids(tokenizer, typed) == expected and len(expected) == 8
    assert tokenizer.unk_token_id not in expected


def test_an_is_a(tokenizer) -> None:
    assert ids(tokenizer, "Did an orange star appear?") == ids(tokenizer, "did a orange star appear ?")
    # Only as a word of its own: "orange" holds "an" too.
    assert len(ids(tokenizer, "an orange an")) == 3


def test_different_questions_stay_different(tokenizer) -> None:
    texts = [
        "what was on screen at 37 s ?",
        "what was on screen at 38 s ?",
        "what was on screen at 3 s ?",
        "what was on screen at 370 s ?",
        "what is on screen now ?",
        "did a red circle appear ?",
        "when did the red circle appear ?",
        "did a red ring appear ?",
    ]
    assert len({tuple(ids(tokenizer, text)) for text in texts}) == len(texts)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 9.9, 10.3, 37.0, 99.95, 730.5, 7999.9])
def test_a_time_stamp_is_three_tokens(tokenizer, seconds: float) -> None:
    whole, tenth = f"{seconds:.1f}".split(".")
    found = tokenizer.convert_ids_to_tokens(ids(tokenizer, f"<{seconds:.1f} seconds>"))
    assert found == ["<", whole, f".{tenth} seconds>"]
    # Its whole seconds are the very token that a question names.
    assert ids(tokenizer, f"at {whole} s")[1] == ids(tokenizer, f"<{seconds:.1f} seconds>")[1]


def test_special_tokens_are_whole_and_dropped_in_decoding(tokenizer) -> None:
    for token in SPECIAL:
        assert ids(tokenizer, token) == [tokenizer.convert_tokens_to_ids(token)]
    text = f"<|im_start|>user\n<0.2 seconds>{''.join(VISION)}now ?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, text))[:5] == ["<|im_start|>", "user", "<", "0", ".2 seconds>"]
    assert tokenizer.decode(ids(tokenizer, "yes<|im_end|>"), skip_special_tokens=True) == "yes"
    assert tokenizer.eos_token == "<|im_end|>"


def test_every_answer_and_comment_survives_a_round_trip(tokenizer) -> None:
    words = {"nothing", "yes", "no", "silence", *DIRECTIONS, *(f"at {n} s" for n in (0, 7, 35, 600, 7999))}
    words |= {f"a {color} {shape}" for color in COLORS for shape in SHAPES}
    rng = np.random.default_rng(0)
    for seed in range(4):
        world = make_world(seed, 40)
        words |= {question.answer for at in (9.5, 39.5) for question in questions_about(world, at, rng, 3)}
        words |= {comment_at(world, second) for second in range(40)} - {""}
    for text in words:
        tokens = ids(tokenizer, text)
        assert tokenizer.unk_token_id not in tokens and tokenizer.decode(tokens, skip_special_tokens=True) == text
        # A world's words are a token each.
        assert len(tokens) == len(text.split())


def test_every_question_is_known_words(tokenizer) -> None:
    rng = np.random.default_rng(1)
    for seed in range(6):
        for question in questions_about(make_world(seed, 60), 59.5, rng, per_family=4):
            assert tokenizer.unk_token_id not in ids(tokenizer, question.question), question.question
    for text in ("tell me when a red circle appears", "comment", "when is now ?"):
        assert tokenizer.unk_token_id not in ids(tokenizer, text)


def test_what_is_not_known_is_said_so(tokenizer) -> None:
    for text in ("elephant", "0037", str(MAX_NUMBER + 1), "é", "🙂"):
        assert tokenizer.unk_token_id in ids(tokenizer, text)


def test_chat_template_puts_a_turn_in_its_place(tokenizer) -> None:
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "now ?"}]}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>now ?<|im_end|>\n<|im_start|>assistant\n"
    )
