"""Models of real shape with random weights, created on the device by a seed: what speed is measured on without a download.

`random:qwen3-vl-8b`, or smaller along any axis: `random:qwen3-vl-8b?layers=2&tower_layers=2&vocabulary=4096&seed=1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.errors import AdapterError
from model_adapters import attention
from model_adapters.budget import Budget, estimate
from model_adapters.loading import Checkpoint
from model_adapters.preprocess import PixelSpec
from model_adapters.qwen import QwenAdapter
from model_adapters.qwen2_5_vl import Qwen25VLAdapter
from model_adapters.qwen3_vl import Qwen3VLAdapter
from model_adapters.registry import RANDOM

TOKENS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The prompt of the Qwen-VL families."""


@dataclass(frozen=True)
class Shape:
    """What the published config of a model says of its size."""

    adapter: type[QwenAdapter]
    config: str
    patch_size: int
    text: dict[str, Any]
    vision: dict[str, Any]


INTERLEAVED = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
QWEN3_TEXT = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rope_parameters": INTERLEAVED,
}
QWEN3_VISION = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304}
SHAPES = {
    "qwen3-vl-8b": Shape(
        Qwen3VLAdapter,
        "Qwen3VLConfig",
        16,
        QWEN3_TEXT | {"hidden_size": 4096, "intermediate_size": 12288},
        QWEN3_VISION
        | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
        | {"deepstack_visual_indexes": [8, 16, 24]},
    ),
    "qwen3-vl-4b": Shape(
        Qwen3VLAdapter,
        "Qwen3VLConfig",
        16,
        QWEN3_TEXT | {"hidden_size": 2560, "intermediate_size": 9728},
        QWEN3_VISION
        | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560}
        | {"deepstack_visual_indexes": [5, 11, 17]},
    ),
    "qwen2.5-vl-7b": Shape(
        Qwen25VLAdapter,
        "Qwen2_5_VLConfig",
        14,
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    ),
}
AXES = {"layers": 1, "tower_layers": 1, "vocabulary": 512, "seed": 0}
"""What a name may set, and the smallest value."""


def byte_tokenizer(special: tuple[str, ...], template: str, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """One token per byte, and the family's special tokens behind them; says any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", eos, *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>", chat_template=template, model_max_length=1 << 20
    )


def parse(name: str) -> tuple[Shape, dict[str, int]]:
    """The shape behind `random:NAME?axis=value&...` and what it is changed to. Raises AdapterError with one line."""
    known, _, query = name.removeprefix(RANDOM).partition("?")
    if known not in SHAPES:
        raise AdapterError(f"{name} is no shape that is known here; known: {', '.join(RANDOM + shape for shape in SHAPES)}")
    changes: dict[str, int] = {}
    for axis, value in parse_qsl(query, keep_blank_values=True):
        if axis not in AXES or not value.isdecimal() or int(value) < AXES[axis]:
            bounds = ", ".join(f"{axis} (at least {least})" for axis, least in AXES.items())
            raise AdapterError(f"{name} sets {axis}={value}; what can be set, as a whole number: {bounds}")
        changes[axis] = int(value)
    return SHAPES[known], changes


def shaped(name: str) -> tuple[Shape, Any, PreTrainedTokenizerFast, int]:
    """The shape behind a name, its config, its tokenizer, and the seed. Raises AdapterError as `parse`."""
    shape, changes = parse(name)
    tokenizer = byte_tokenizer(TOKENS, TEMPLATE)
    start, end, image, video = (tokenizer.get_vocab()[token] for token in TOKENS[1:])
    text, vision = dict(shape.text), dict(shape.vision)
    text["num_hidden_layers"] = changes.get("layers", text["num_hidden_layers"])
    text["vocab_size"] = changes.get("vocabulary", text["vocab_size"])
    depth = vision["depth"] = changes.get("tower_layers", vision["depth"])
    for key in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if key in vision:
            vision[key] = [index for index in vision[key] if index < depth] or [depth - 1]
    text["eos_token_id"] = text["pad_token_id"] = tokenizer.pad_token_id
    config = getattr(transformers, shape.config)(
        text_config=text | {"bos_token_id": None},
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    return shape, config, tokenizer, changes.get("seed", 0)


def type_of(dtype: torch.dtype | None, device: str) -> torch.dtype:
    """What weights are made in: what was asked for, or what the device computes best."""
    return dtype or (torch.float32 if device == "cpu" else torch.bfloat16)


def random_budget(name: str, dtype: torch.dtype | None, device: str) -> Budget:
    """What a model of the named shape takes. Raises AdapterError."""
    _, config, _, _ = shaped(name)
    return estimate(Checkpoint(name, Path(), config.to_dict()), type_of(dtype, device), device)


def load_random(name: str, dtype: torch.dtype | None, device: str) -> QwenAdapter:
    """A model of the named shape. Its weights depend on the seed and the device, and mean nothing."""
    random_budget(name, dtype, device).check()
    shape, config, tokenizer, seed = shaped(name)
    attention.register()
    torch.manual_seed(seed)
    with torch.device(device):
        model = getattr(transformers, shape.adapter.model_class)._from_config(
            config,
            dtype=type_of(dtype, device),
            attn_implementation={"": "sdpa", "text_config": attention.NAME, "vision_config": "sdpa"},
        )
    half = (0.5, 0.5, 0.5)
    cell = 2 * shape.patch_size
    spec = PixelSpec(shape.patch_size, 2, 2, 4 * cell * cell, 1024 * cell * cell, half, half)
    return shape.adapter(model, tokenizer, spec, name, name)
