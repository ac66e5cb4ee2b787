"""Teach a trained tower to see the same in any light: `python -m model_adapters.tiny.steady`.

What the tower says of a picture in full light is kept as it is and is asked of the same picture in dim light too (distillation:
the teacher sees the brighter picture). A language model that was trained on the tower's words can go on with them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_adapters.tiny.clips import FULL_LIGHT, Clip, random_clip
from model_adapters.tiny.config import CHECKPOINT, build_tokenizer, load_checkpoint, save_checkpoint
from model_adapters.tiny.optim import Optimizers
from model_adapters.tiny.warmup import embed


def apart(visual: Any, teacher: Any, clips: list[Clip]) -> torch.Tensor:
    """[2]: how far `visual` is, on these clips, from what `teacher` says of them in full light; tokens and DeepStack features.

    Mean squares as a share of how much the teacher's words differ at all, so that both outputs weigh the same.
    """
    with torch.no_grad():
        wanted = embed(teacher, torch.stack([clip.pictures(FULL_LIGHT) for clip in clips]))
    said = embed(visual, torch.stack([clip.pictures() for clip in clips]))
    return torch.stack([((s - w).float() ** 2).mean() / w.float().var() for s, w in zip(said, wanted, strict=True)])


def steady(visual: Any, max_steps: int, batch: int, matrix_lr: float, seed: int) -> None:
    """Train `visual` to say of clips in any light what it said at first of the same clips in full light."""
    teacher = copy.deepcopy(visual).requires_grad_(False)
    optimizers = Optimizers(visual, matrix_lr=matrix_lr, other_lr=matrix_lr / 12)
    rng = np.random.default_rng([seed, 7])
    mean = torch.zeros(2)
    for step in range(max_steps):
        optimizers.set_scale(min(1.0, (step + 1) / 40) * (1 - step / max_steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = apart(visual, teacher, [random_clip(rng) for _ in range(batch)])
        optimizers.step(loss.sum())
        mean = 0.95 * mean + 0.05 * loss.detach()
        if (step + 1) % 25 == 0:
            print(f"steady {step + 1} off by {mean[0]:.4f} {mean[1]:.4f} of the variance", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny/steady"), help="folder for the checkpoint")
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=48, help="clips per step")
    parser.add_argument("--matrix-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_checkpoint(CHECKPOINT)
    steady(model.model.visual, args.max_steps, args.batch, args.matrix_lr, args.seed)
    save_checkpoint(model, build_tokenizer(), args.out)


if __name__ == "__main__":
    main()
