"""A pytest plugin: torchvision beside a CPU-only torch, for its pictures' transforms.

The families' video processors use transforms that are plain torch. torchvision's wheel also registers compiled operators, which
do not load beside a torch without CUDA, and its import asks for two of them by name. The names are enough: nothing here calls
them. `make video-processors` uses it; the program itself never does.
"""

from __future__ import annotations

import torch

NAMES = ("nms", "qnms")
LIBRARY = torch.library.Library("torchvision", "DEF")
"""Kept: names live as long as their library."""
for _name in NAMES:
    LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
