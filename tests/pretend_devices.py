"""Two devices where there is none: CPU tensors that say they lie on another one, and refuse what a real one would refuse.

A `Placed` tensor computes on the CPU with real numbers, but says that it lies elsewhere. An operation over tensors
of two devices raises, as it does on real ones; only `to` and `copy_` may cross, and a single number on the CPU goes
anywhere. So a forgotten move shows here, and what comes out can be compared bit by bit with a model on one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

CPU = torch.device("cpu")
CROSSING = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Placed(torch.Tensor):
    """held: the real tensor, on the CPU. place: where it says it is."""

    held: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: torch.Tensor, place: torch.device) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
            requires_grad=False,
            dispatch_device=True,
        )
        made.held, made.place = held, place
        return made

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"Placed({self.held!r}, {self.place})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


class Devices(TorchDispatchMode):
    """What is made on a pretended device while this is on, is made on the CPU and says that it is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation on the CPU, placed where a real device would have left it. RuntimeError where it could not."""
    if func is torch.ops.prim.device.default:
        return args[0].place
    if func._can_decompose() and is_composite(func):
        # In inference mode they come whole; what they are made of is what is looked at.
        with Devices():
            return func.decompose(*args, **kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    places = {place_of(tensor) for tensor in tensors if tensor.dim() or isinstance(tensor, Placed)}
    if func in INDEXING:
        # A mask or numbers on the CPU may choose from a tensor elsewhere.
        places = {place_of(args[0])} | (places - {CPU})
    if len(places) > 1 and func not in CROSSING:
        raise RuntimeError(f"{func} got tensors of {sorted(map(str, places))}")
    asked = kwargs.get("device")
    place = place_of(args[0]) if func in CROSSING and asked is None else torch.device(asked) if asked else None
    place = place or next(iter(places), CPU)
    if asked is not None:
        kwargs["device"] = CPU
    bare_args, bare_kwargs = tree_map_only(Placed, lambda tensor: tensor.held, (args, kwargs))
    out = func(*bare_args, **bare_kwargs)
    if place == CPU:
        return out
    given = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Placed)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # What was written in place stays the tensor that it was.
        return given[id(value)] if id(value) in given else Placed(value, place)

    return tree_map(wrapped, out)


def is_composite(func: Any) -> bool:
    """Whether an operation is nothing but others in a row, as `to` and `reshape` are."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def place_of(tensor: torch.Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, Placed) else tensor.device


def dispatched(model: Any, split: Mapping[str, torch.device]) -> None:
    """Split a model over pretended devices as a device map says, with accelerate's own hooks."""
    for name, part in model.named_modules():
        for held in (part._parameters, part._buffers):
            for key, value in held.items():
                if value is not None:
                    full = f"{name}.{key}"
                    place = split[max((n for n in split if f"{full}.".startswith(f"{n}." if n else "")), key=len)]
                    there: Any = Placed(value.detach(), place)
                    held[key] = torch.nn.Parameter(there, requires_grad=False) if held is part._parameters else there
    # What `dispatch_model` does with a map, but for moving weights, which real devices are asked to take.
    attach_align_device_hook_on_blocks(
        model,
        execution_device={"": next(iter(split.values())), **split},
        offload=dict.fromkeys(split, False),
        skip_keys=model._skip_keys_device_placement,
    )


class Made(TorchFunctionMode):
    """What would ask the device itself: numbers that are written down are made on the CPU first, and attention is one
    operation, whose mask may be where it will."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if func is F.scaled_dot_product_attention and isinstance(args[0], Placed):
            if len({tensor.device for tensor in args}) > 1:
                raise RuntimeError(f"attention over tensors of {[tensor.device for tensor in args]}")
            bare, named = tree_map_only(Placed, lambda tensor: tensor.held, (args, kwargs))
            return Placed(func(*bare, **named), args[0].place)
        return func(*args, **kwargs)


class NoAccelerator(torch._C._acc.PrivateUse1Hooks):
    """There is a device of this kind to lie on, but nothing that would be chosen by itself."""

    def is_available(self) -> bool:
        return False

    def is_built(self) -> bool:
        return False

    def has_primary_context(self, device_index: int) -> bool:
        return False


@cache
def _registered() -> None:
    """Let torch know a kind of device that is written in Python. Once per process."""
    backend_registration._setup_privateuseone_for_python_backend(hook=NoAccelerator())


@contextmanager
def pretended() -> Iterator[tuple[torch.device, torch.device]]:
    """Two devices, while it lasts."""
    _registered()
    with Made(), Devices():
        yield torch.device("privateuseone", 0), torch.device("privateuseone", 1)
