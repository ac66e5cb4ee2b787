"""`python -m model_adapters.positions`: what it costs to store keys un-rotated or rotated, by position and data type.

The table of docs/positions.md. Truth is rotation in float64 with angles in float64; angles under test come from stock
transformers' own rotary embedding, which computes them in float32 whatever the weights are.
"""

from __future__ import annotations

import torch
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from model_adapters.rope import rotate, unrotate

HEAD_DIM, THETA, NUM_KEYS = 128, 5e6, 512
POSITIONS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
COLUMNS = ("angles alone", "un-rotated f32", "un-rotated bf16", "rotated f32", "rotated bf16")


def rotary() -> Qwen3VLTextRotaryEmbedding:
    """The rotary embedding of Qwen3-VL-8B."""
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(head_dim=HEAD_DIM, rope_parameters=rope))


def exact_angles(position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 cos and sin [1, head_dim] at the same position on all axes."""
    inverse = THETA ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles = (position * inverse).repeat(2)[None]
    return angles.cos(), angles.sin()


def errors(position: int) -> list[float]:
    """Largest error of a key, as a share of the largest key, for each of COLUMNS.

    Un-rotated: stored as it is, turned to `position` when it is read. Rotated: stored turned to `position`, turned back to 0
    when it is read, as un-rotating a stock cache would do. Sums are float32; only storage is narrower.
    """
    keys = torch.randn(NUM_KEYS, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = rotate(keys, *exact_angles(position))
    cos, sin = (x[0] for x in rotary()(torch.zeros(1), torch.full((3, 1, 1), position)))
    found = [(rotate(keys, cos.double(), sin.double()), there)]
    found += [(rotate(keys.to(dtype).float(), cos, sin), there) for dtype in (torch.float32, torch.bfloat16)]
    for dtype in (torch.float32, torch.bfloat16):
        stored = rotate(keys.float(), cos, sin).to(dtype).float()
        found.append((unrotate(stored, cos, sin), keys))
    return [float((got - expected).abs().max() / keys.abs().max()) for got, expected in found]


def main() -> None:
    print(f"| position | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for position in POSITIONS:
        print(f"| {position:,} | {' | '.join(f'{error:.1e}' for error in errors(position))} |")


if __name__ == "__main__":
    main()
