"""Small randomly initialised checkpoints, saved to disk like real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)

from model_adapters.tiny.config import build_config, build_tokenizer, write_side_files


def save_qwen3_vl(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Another shape than the embedded model's: three layers, groups of two query heads, DeepStack on two levels."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config: Qwen3VLConfig = build_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 3, 64, 96
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 24
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4], "mrope_interleaved": True}
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 3, 32, 48, 2
    vision.out_hidden_size, vision.deepstack_visual_indexes = 64, [0, 1]
    model = Qwen3VLForConditionalGeneration(config)
    # Untrained weights give almost flat attention; larger ones make every mistake in order or position show.
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder)
    write_side_files(folder, tokenizer)
    return folder


# Families that see every frame alone. Their tokenizer is a byte-level BPE trained on what the families write around frames, so
# that pieces of text which would merge across a border do.

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}VIDEO{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMAL = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": False,
}
"""A small text model of the Llama shape, that of every family's checkpoint: three layers, two query heads to a KV head."""


def build_bpe(special: tuple[str, ...], template: str | None, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 600 tokens with the given special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    stamps = [f",Time {t / 2:.1f}s:\nFrame at {t}.5s: \n\nFrame from 00:{t:02d}:" for t in range(60)]
    talk = ["user assistant User: Assistant:\n\n when did the red circle appear ? what is on screen now ? <0.5 seconds>"] * 20
    known = ["<pad>", "<|im_start|>", "<|im_end|>", eos, *special]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(dict.fromkeys(known)), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(stamps + talk, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos, chat_template=template, model_max_length=1 << 20
    )


def save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, seed: int) -> None:
    """Save with weights large enough, biases included, for every mistake in order or position to show."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and "embed_tokens" not in name:
            torch.nn.init.normal_(weight, std=1.5 * weight[0].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    model.to(dtype).save_pretrained(folder)


def save_llava_onevision(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Frames of 50 x 50 pixels, 5 x 5 patches pooled to 3 x 3 tokens: a cell is no whole number of pixels, as in real ones."""
    tokenizer = build_bpe(("<image>", "<video>"), TURNS.replace("VIDEO", "<video>\n"))
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 50,
            "patch_size": 10,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT, "eos_token_id": tokenizer.eos_token_id},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[50, 50]],
    )
    save_model(LlavaOnevisionForConditionalGeneration(config), folder, dtype, seed)
    tokenizer.save_pretrained(folder)
    side = {"height": 50, "width": 50}
    settings = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": side, **CLIP}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaOnevisionProcessor"}))
    return folder


def save_internvl(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Frames of 64 x 64 pixels, 8 x 8 patches shuffled to 4 x 4 tokens; a Qwen3 language model, as InternVL3.5 has."""
    special = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    tokenizer = build_bpe(special, TURNS.replace("VIDEO", "<video>\n"))
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [64, 64],
            "patch_size": [8, 8],
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tokenizer),
            **TEXT,
            "head_dim": 24,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    save_model(InternVLForConditionalGeneration(config), folder, dtype, seed)
    tokenizer.save_pretrained(folder)
    video = {"video_processor_type": "InternVLVideoProcessor", "size": {"height": 64, "width": 64}, **CLIP}
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "InternVLProcessor", "video_processor": video})
    )
    return folder


def save_smolvlm(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    image_size: int = 48,
    patch_size: int = 8,
    scale_factor: int = 2,
) -> Path:
    """Frames of 48 x 48 pixels, 6 x 6 patches shuffled to 3 x 3 tokens; a Llama language model; a template without videos."""
    special = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    tokenizer = build_bpe(special, "{{ 'no videos here' }}", eos="<end_of_utterance>")
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            **TEXT,
            "pad_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=scale_factor,
        pad_token_id=0,
    )
    save_model(SmolVLMForConditionalGeneration(config), folder, dtype, seed)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 192},
        "max_image_size": {"longest_edge": image_size},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 2 * image_size}},
        **NORMAL,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_video_llama_3(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Patches of 8 pixels merged two by two; at most 24 tokens per frame."""
    tokenizer = build_bpe(("<|image_pad|>", "<|video_pad|>"), TURNS.replace("VIDEO", "<|video_pad|>\n"))
    config = VideoLlama3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT, "eos_token_id": tokenizer.eos_token_id},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    save_model(VideoLlama3ForConditionalGeneration(config), folder, dtype, seed)
    tokenizer.save_pretrained(folder)
    shared = {"patch_size": 8, "temporal_patch_size": 1, **NORMAL}
    image = {"image_processor_type": "VideoLlama3ImageProcessor", "merge_size": 1, **shared}
    image["size"] = {"shortest_edge": 256, "longest_edge": 65536}
    video = {"video_processor_type": "VideoLlama3VideoProcessor", "merge_size": 2, "max_frames": 10, **shared}
    video["size"] = {"shortest_edge": 1024, "longest_edge": 61440}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder
