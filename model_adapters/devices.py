"""Where the parts of a model compute: a device map for accelerate, and what it made of one, read back from its hooks."""

from __future__ import annotations

from typing import Any

import torch


def device_of(module: Any) -> torch.device:
    """The device on which a module computes, wherever its weights wait: offloaded ones are brought there by a hook."""
    weights = next(module.parameters()).device
    if weights.type != "meta":
        return weights
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    places = [place for hook in hooks for place in _places(hook) if place is not None]
    return torch.device("cuda", places[0]) if isinstance(places[0], int) else torch.device(places[0])


def halved(model: Any, layers: Any, first: Any, second: Any) -> dict[str, Any]:
    """A device map: the later half of `layers`, a module list within `model`, in the second place, all else in the first."""
    path = next(name for name, part in model.named_modules() if part is layers).split(".")
    found: dict[str, Any] = {}
    for depth in range(len(path)):
        above = ".".join(path[:depth])
        part = model.get_submodule(above)
        for name, _ in (*part.named_children(), *part.named_parameters(recurse=False)):
            if name != path[depth]:
                found[f"{above}.{name}".lstrip(".")] = first
    for index in range(len(layers)):
        found[f"{'.'.join(path)}.{index}"] = second if 2 * index >= len(layers) else first
    return found


def _places(hook: Any) -> list[Any]:
    """Where a hook, or each of several in a row, brings the weights."""
    several = getattr(hook, "hooks", None)
    return [place for one in several for place in _places(one)] if several else [getattr(hook, "execution_device", None)]
