"""The embedded model's shape: stock Qwen3-VL, about 4.9 million parameters, and its own small tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from data.world import COLORS, DIRECTIONS, SHAPES

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Where the trained weights lie, in the layout of any Qwen3-VL checkpoint."""

SIDE = 128
"""Every square picture is drawn at this side, 8 x 8 patches, 4 x 4 visual tokens."""

HEAD_DIM = 48
NUMBER_LENGTH = 4.0
MAX_NUMBER = 7999
"""Whole numbers up to this are one token each: matching a time is matching one token."""

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *VISION)
WORDS = (
    "user assistant system < ? ; . , what is was on screen now at s when did the a appear which way move came after before"
    " yes no nothing tell me appears leaves and comment silence seconds min minutes ago in first last second minute hour"
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words, whole numbers and the tenths of a time stamp, one token each; capital letters and spacing do not matter."""
    tokens = list(SPECIAL) + WORDS.split() + [*COLORS, *SHAPES, *DIRECTIONS]
    tokens += [f".{tenth} seconds>" for tenth in range(10)]
    tokens = list(dict.fromkeys(tokens)) + [str(n) for n in range(MAX_NUMBER + 1)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\ban\b"), "a"),
            normalizers.Replace(Regex(r"(?<=\d)\s*seconds?\b(?!>)"), " s"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\.\d seconds>|\d{1,4}|[a-z]+|[^\sa-z\d]"), "removed", invert=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=1 << 20,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    start, end, image, video = (tokenizer.get_vocab()[token] for token in VISION)
    hidden = 192
    return Qwen3VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": hidden,
            "intermediate_size": 448,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 8, 8],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": (SIDE // 16) ** 2,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A fresh model with random weights, but for the embeddings of whole numbers: see `number_codes`."""
    model = Qwen3VLForConditionalGeneration._from_config(build_config(tokenizer), attn_implementation="sdpa")
    weight = model.get_input_embeddings().weight
    torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    with torch.no_grad():
        weight[tokenizer.get_vocab()["0"] :] = number_codes(len(weight) - tokenizer.get_vocab()["0"], weight.shape[1])
    return model


def number_codes(num: int, width: int) -> torch.Tensor:
    """Random codes [num, width] that training leaves alone: what is learned of one number then holds for all.

    They span as many dimensions as a head passes on, so that attention can copy a number whole; and they are long, so that
    under the tied head the right one of thousands stands out.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, HEAD_DIM, generator=generator))[0]
    codes = torch.randn(num, HEAD_DIM, generator=generator) @ basis.T
    return codes / codes.norm(dim=1, keepdim=True) * NUMBER_LENGTH


PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def write_side_files(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Everything of a checkpoint but the weights and their config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")


def load_checkpoint(folder: Path) -> Qwen3VLForConditionalGeneration:
    """A saved model in float32, to be trained further."""
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def save_checkpoint(model: Any, tokenizer, folder: Path) -> None:
    """Write the model as any checkpoint is written: config, bfloat16 safetensors, tokenizer, processor configuration."""
    # The head is tied to the embeddings: written once.
    tied = {name: p for name, p in model.state_dict().items() if name != "lm_head.weight"}
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in tied.items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=weights)
    write_side_files(folder, tokenizer)
