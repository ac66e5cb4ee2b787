"""Small randomly initialised checkpoints, saved to disk like real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

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
