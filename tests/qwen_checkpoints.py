"""Small randomly initialised checkpoints of the Qwen families, saved to disk like real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import TEXT
from safetensors.torch import load_file, save_file

from model_adapters.random_weights import TEMPLATE as QWEN_TEMPLATE
from model_adapters.random_weights import TOKENS as QWEN_TOKENS
from model_adapters.random_weights import byte_tokenizer
from model_adapters.tiny.config import PREPROCESSOR

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OMNI_TEMPLATE = QWEN_TEMPLATE.replace("vision_start|><|video_pad|><|vision_end", "vision_bos|><|VIDEO|><|vision_eos")
OMNI_TOKENS = ("<|im_start|>", "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>", "<|audio_bos|>")


def save_random(model: Any, tokenizer: Any, folder: Path, preprocessor: dict[str, Any], dtype: torch.dtype) -> Path:
    """Write a model with random weights and all that stands beside them in a checkpoint."""
    # Untrained weights give almost flat attention; larger ones make every mistake in order or position show.
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and "embed" not in name:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n")
    return folder


def text_shape(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """`TEXT` with three axes of positions and this tokenizer's ids."""
    shape = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [2, 3, 3]},
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return TEXT | shape | changes


def experts(**changes: Any) -> dict[str, Any]:
    """The fields of a text model of the Qwen3 MoE shape: four experts, two of them for each token."""
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 24}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4], "mrope_interleaved": True}
    return shape | {"rope_parameters": rope} | changes


QWEN2_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN25_VISION = QWEN2_VISION | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "depth": 3,
}
QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
QWEN2_PIXELS = PREPROCESSOR | {
    "patch_size": 14,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 32},
}
QWEN3_PIXELS = PREPROCESSOR | {"size": {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 32}}


def qwen_ids(tokenizer: Any, tokens: tuple[str, ...] = QWEN_TOKENS) -> dict[str, Any]:
    start, end, image, video = (tokenizer.get_vocab()[token] for token in tokens[1:5])
    return {"image_token_id": image, "video_token_id": video, "vision_start_token_id": start, "vision_end_token_id": end}


def save_qwen2_vl(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_TEMPLATE)
    vision = QWEN2_VISION | {"embed_dim": 32, "hidden_size": 64}
    config = transformers.Qwen2VLConfig(text_config=text_shape(tokenizer), vision_config=vision, **qwen_ids(tokenizer))
    return save_random(transformers.Qwen2VLForConditionalGeneration(config), tokenizer, folder, QWEN2_PIXELS, dtype)


def save_qwen2_5_vl(folder: Path, dtype: torch.dtype = torch.float32, **text: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_TEMPLATE)
    vision = QWEN25_VISION | {"tokens_per_second": 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_shape(tokenizer, **text), vision_config=vision, **qwen_ids(tokenizer)
    )
    return save_random(transformers.Qwen2_5_VLForConditionalGeneration(config), tokenizer, folder, QWEN2_PIXELS, dtype)


def save_qwen3_vl_moe(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_TEMPLATE)
    config = transformers.Qwen3VLMoeConfig(
        text_config=text_shape(tokenizer, **experts()), vision_config=QWEN3_VISION, **qwen_ids(tokenizer)
    )
    return save_random(transformers.Qwen3VLMoeForConditionalGeneration(config), tokenizer, folder, QWEN3_PIXELS, dtype)


AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 64}


def save_qwen2_5_omni_thinker(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(OMNI_TOKENS, OMNI_TEMPLATE)
    ids = qwen_ids(tokenizer, OMNI_TOKENS)
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config=text_shape(tokenizer),
        vision_config=QWEN25_VISION,
        audio_config=AUDIO,
        image_token_index=ids["image_token_id"],
        video_token_index=ids["video_token_id"],
        audio_token_index=tokenizer.get_vocab()["<|AUDIO|>"],
        audio_start_token_id=tokenizer.get_vocab()["<|audio_bos|>"],
        vision_start_token_id=ids["vision_start_token_id"],
        position_id_per_seconds=25,
    )
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    return save_random(model, tokenizer, folder, QWEN2_PIXELS, dtype)


def save_qwen3_omni_moe_thinker(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    tokens = (*QWEN_TOKENS, "<|audio_pad|>", "<|audio_start|>")
    tokenizer = byte_tokenizer(tokens, QWEN_TEMPLATE)
    ids = qwen_ids(tokenizer)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text_shape(tokenizer, **experts()),
        vision_config=QWEN3_VISION,
        audio_config=AUDIO | {"downsample_hidden_size": 8},
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        audio_token_id=tokenizer.get_vocab()["<|audio_pad|>"],
        audio_start_token_id=tokenizer.get_vocab()["<|audio_start|>"],
        vision_start_token_id=ids["vision_start_token_id"],
        position_id_per_seconds=13,
    )
    model = transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)
    return save_random(model, tokenizer, folder, QWEN3_PIXELS, dtype)


def as_whole_omni(thinker: Path, folder: Path, family: str) -> Path:
    """A thinker's checkpoint in the layout of a whole Omni one: config and weights one level down, a stray talker beside."""
    folder.mkdir(parents=True)
    for path in thinker.iterdir():
        if path.suffix not in (".safetensors",) and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((thinker / "config.json").read_text())
    whole = {"model_type": family, "thinker_config": config, "enable_audio_output": False}
    (folder / "config.json").write_text(json.dumps(whole))
    weights = {f"thinker.{name}": weight for name, weight in load_file(thinker / "model.safetensors").items()}
    save_file(weights | {"talker.stray.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_qwen2_5_omni(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    thinker = save_qwen2_5_omni_thinker(folder.with_name("thinker_of_" + folder.name), dtype)
    return as_whole_omni(thinker, folder, "qwen2_5_omni")


def save_qwen3_omni_moe(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    thinker = save_qwen3_omni_moe_thinker(folder.with_name("thinker_of_" + folder.name), dtype)
    return as_whole_omni(thinker, folder, "qwen3_omni_moe")
