"""The one place that knows transformers' cache: preallocated buffers that a stock model writes into and reads from."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from model_adapters.base import KVContext
from model_adapters.placement import Cursor


def cache_argument(language: Any) -> str:
    """The argument by which a stock language model takes its cache: `cache`, or `past_key_values` as it was before."""
    return "cache" if "cache" in inspect.signature(type(language).forward).parameters else "past_key_values"


class Shelf:
    """Keys and values [layers, kv_heads, capacity, head_dim] of consecutive layers that lie on one device. first: the first
    of them in the model."""

    def __init__(self, first: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.first = first
        self.layers = slice(first, first + shape[0])
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def grow(self, capacity: int, used: int) -> None:
        """Move to larger buffers; `used` tokens are kept."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.empty((*old.shape[:2], capacity, old.shape[3]), dtype=old.dtype, device=old.device)
            new[:, :, :used] = old[:, :, :used]
            setattr(self, name, new)


class BufferLayer(CacheLayerMixin):
    """One layer's view of a `Shelf`. Writes behind what is there and returns views; nothing is concatenated."""

    is_sliding = False

    def __init__(self, shelf: Shelf, index: int) -> None:
        super().__init__()
        self.shelf = shelf
        self.row = index - shelf.first
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states: [1, kv_heads, S, head_dim]; returns everything so far, [1, kv_heads, length, head_dim]."""
        self.write(key_states[0], value_states[0])
        keys, values = self.held()
        return keys[None], values[None]

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add [kv_heads, S, head_dim], from whatever device; room must have been reserved."""
        end = self.length + keys.shape[1]
        self.shelf.keys[self.row, :, self.length : end] = keys
        self.shelf.values[self.row, :, self.length : end] = values
        self.length = end

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of all there is, [kv_heads, length, head_dim], on this layer's device."""
        return self.shelf.keys[self.row, :, : self.length], self.shelf.values[self.row, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.shelf.keys.shape[2]


class BufferContext(KVContext):
    """Rotated keys and values of all layers, each on its layer's device, in buffers that grow by doubling.

    shape: (kv_heads, capacity, head_dim). devices: one per layer, in order. The first of them is where stored chunks come
    from and go to.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
        self.dtype = dtype
        self.devices = tuple(devices)
        self.cursor = Cursor()
        self.shelves: list[Shelf] = []
        self.layers: list[BufferLayer] = []
        for device, row in groupby(self.devices):
            shelf = Shelf(len(self.layers), (len(list(row)), *shape), dtype, device)
            self.shelves.append(shelf)
            self.layers += [BufferLayer(shelf, index) for index in range(shelf.layers.start, shelf.layers.stop)]
        self.cache = Cache(layers=list(self.layers))

    @property
    def next_position(self) -> int:  # type: ignore[override]
        """Where text goes on."""
        return self.cursor.next_position

    @property
    def capacity(self) -> int:
        return self.shelves[0].keys.shape[2]

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        """Tokens of the longest layer; layers differ only where each has chunks of its own."""
        return max(layer.length for layer in self.layers)

    @property
    def is_even(self) -> bool:
        """Whether all layers hold the same number of tokens."""
        return all(layer.length == self.layers[0].length for layer in self.layers)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` more."""
        needed = self.num_tokens + num_tokens
        if needed > self.capacity:
            capacity, used = max(needed, 2 * self.capacity), self.num_tokens
            for shelf in self.shelves:
                shelf.grow(capacity, used)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rotated keys and values [layers, kv_heads, S, head_dim] of all layers at once, from whatever device."""
        self.reserve(keys.shape[2])
        if not self.is_even:
            for index in range(len(self.layers)):
                self.write_layer(index, keys[index], values[index])
            return
        start = self.layers[0].length
        end = start + keys.shape[2]
        for shelf in self.shelves:
            shelf.keys[:, :, start:end] = keys[shelf.layers]
            shelf.values[:, :, start:end] = values[shelf.layers]
        for layer in self.layers:
            layer.length = end

    def write_layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rotated keys and values [kv_heads, S, head_dim] of one layer; room must have been reserved."""
        self.layers[index].write(keys, values)

    def read(self, start: int = 0, end: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of rotated keys and values [layers, kv_heads, end - start, head_dim] on the first layer's device.

        end: default: what the longest layer holds; what stands behind a shorter one means nothing."""
        end = self.num_tokens if end is None else end
        home = self.devices[0]
        keys = torch.cat([shelf.keys[:, :, start:end].to(home) for shelf in self.shelves])
        return keys, torch.cat([shelf.values[:, :, start:end].to(home) for shelf in self.shelves])

    def fork(self) -> BufferContext:
        _, heads, capacity, dim = self.shelves[0].keys.shape
        twin = BufferContext((heads, capacity, dim), self.dtype, self.devices)
        for index, layer in enumerate(self.layers):
            twin.write_layer(index, *layer.held())
        twin.cursor = self.cursor.copy()
        return twin
