"""Warm up the vision tower alone, so that the language model has something to read from its first step on.

A throw-away linear head on the merged tokens (log-sum-exp over tokens) names colour, shape and direction of one object.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data.world import COLORS, DIRECTIONS, SHAPES
from model_adapters.preprocess import patchify
from model_adapters.tiny.clips import SPEC, random_clip
from model_adapters.tiny.optim import Optimizers, save_state

CLASSES = (len(COLORS) + 1, len(SHAPES) + 1, len(DIRECTIONS) + 1)
BAR = 0.99


def embed(visual: Any, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [B, T, 3, 128, 128] to the tower's merged tokens [B, 16, D] and DeepStack features [B, 16, D]."""
    patches, grids = zip(*(patchify(clip, SPEC) for clip in clips), strict=True)
    out = visual(torch.cat(patches), grid_thw=torch.cat(grids), return_dict=True)
    size = (len(clips), -1, out.pooler_output.shape[-1])
    return out.pooler_output.view(size), out.deepstack_features[0].view(size)


def warm_up(model: Any, state: Path, device: torch.device, max_steps: int = 6000, batch: int = 48, seed: int = 0) -> None:
    """Train `model.model.visual` until all three labels exceed 99 % on fresh clips; resumes from `state`."""
    visual = model.model.visual
    width = model.config.text_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, sum(CLASSES)), nn.Linear(width, sum(CLASSES))]).to(device)
    modules = nn.ModuleDict({"visual": visual, "heads": heads})
    optimizers = Optimizers(modules, matrix_lr=0.01, other_lr=1e-3)
    step = 0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        modules.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        step = saved["step"]
    rng = np.random.default_rng([seed, step])
    right = np.zeros(3)
    start = time.monotonic()
    if step and saved["done"]:
        return
    while step < max_steps:
        drawn = [random_clip(rng) for _ in range(batch)]
        clips = [clip.pictures() for clip in drawn]
        target = torch.tensor([clip.labels for clip in drawn], device=device)
        optimizers.set_scale(min(1.0, (step + 1) / 100) * max(0.05, 1 - step / max_steps))
        with torch.autocast(device.type, torch.bfloat16):
            features = embed(visual, torch.stack(clips).to(device))
            logits = [torch.logsumexp(head(f).float(), dim=1) for head, f in zip(heads, features, strict=True)]
        losses, hits = [], []
        for logit in logits:
            parts = logit.split(CLASSES, dim=-1)
            losses += [F.cross_entropy(part, target[:, i]) for i, part in enumerate(parts)]
            hits.append([(part.argmax(-1) == target[:, i]).float().mean().item() for i, part in enumerate(parts)])
        optimizers.step(torch.stack(losses).sum())
        right = 0.98 * right + 0.02 * np.asarray(hits[0])
        step += 1
        if step % 50 == 0:
            words = " ".join(f"{name} {value:.3f}" for name, value in zip(("colour", "shape", "direction"), right, strict=True))
            print(f"warm-up {step} {words} {(time.monotonic() - start) / 50:.2f} s/step", file=sys.stderr, flush=True)
            start = time.monotonic()
        done = bool(right.min() > BAR)
        if step % 250 == 0 or done or step == max_steps:
            save_state(
                state, {"model": modules.state_dict(), "optimizers": optimizers.state_dict(), "step": step, "done": done}
            )
        if done:
            return
