"""What the tests of training sample from: a small random model, its library of encoded clips, and a sampler that remembers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from model_adapters.tiny.asking import Stretch
from model_adapters.tiny.config import build_tokenizer
from model_adapters.tiny.library import Library
from model_adapters.tiny.samples import Sampler

SECONDS = 18


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(random_folder):
    return Qwen3VLForConditionalGeneration.from_pretrained(random_folder, dtype=torch.float32, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def library(model) -> Library:
    return Library(model.model.visual, 2, SECONDS, np.random.default_rng(0))


class Recording(Sampler):
    """A sampler that remembers the stretches it asked about."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.stretches: list[Stretch] = []
        questions = self.asker.questions

        def remember(stretch: Stretch):
            self.stretches.append(stretch)
            return questions(stretch)

        self.asker.questions = remember  # type: ignore[method-assign]


def sampler(tokenizer, library: Library, seed: int, num_questions: int = 5) -> Recording:
    return Recording(tokenizer, library, np.random.default_rng(seed), num_questions)


def words_of(tokenizer, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)
