"""The one place that knows transformers' cache: preallocated buffers that a stock model writes into and reads from."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from model_adapters.base import KVContext
from model_adapters.placement import Cursor


class BufferLayer(CacheLayerMixin):
    """One layer's view of a `BufferContext`. Writes behind what is there and returns views; nothing is concatenated."""

    is_sliding = False

    def __init__(self, context: BufferContext, index: int) -> None:
        super().__init__()
        self.context = context
        self.index = index
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states: [1, kv_heads, S, head_dim]; returns everything so far, [1, kv_heads, length, head_dim]."""
        end = self.length + key_states.shape[2]
        keys, values = self.context.keys[self.index], self.context.values[self.index]
        keys[:, self.length : end] = key_states[0]
        values[:, self.length : end] = value_states[0]
        self.length = end
        return keys[None, :, :end], values[None, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.context.capacity


class BufferContext(KVContext):
    """Rotated keys and values of all layers in two buffers [layers, kv_heads, capacity, head_dim] that grow by doubling."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.cursor = Cursor()
        self.layers = [BufferLayer(self, index) for index in range(shape[0])]
        self.cache = Cache(layers=list(self.layers))

    @property
    def next_position(self) -> int:  # type: ignore[override]
        """Where text goes on."""
        return self.cursor.next_position

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        """Tokens of the longest layer; layers differ only where each has chunks of its own."""
        return max(layer.length for layer in self.layers)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` more."""
        needed = self.num_tokens + num_tokens
        if needed > self.capacity:
            self._move_to(max(needed, 2 * self.capacity))

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rotated keys and values [layers, kv_heads, S, head_dim] of all layers at once."""
        self.reserve(keys.shape[2])
        start = self.layers[0].length
        if all(layer.length == start for layer in self.layers):
            end = start + keys.shape[2]
            self.keys[:, :, start:end] = keys
            self.values[:, :, start:end] = values
            for layer in self.layers:
                layer.length = end
            return
        for index in range(len(self.layers)):
            self.write_layer(index, keys[index], values[index])

    def write_layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rotated keys and values [kv_heads, S, head_dim] of one layer; room must have been reserved."""
        layer = self.layers[index]
        end = layer.length + keys.shape[1]
        self.keys[index, :, layer.length : end] = keys
        self.values[index, :, layer.length : end] = values
        layer.length = end

    def fork(self) -> BufferContext:
        layers, heads, capacity, dim = self.keys.shape
        twin = BufferContext((layers, heads, capacity, dim), self.keys.dtype, self.keys.device)
        for index, layer in enumerate(self.layers):
            twin.write_layer(index, self.keys[index, :, : layer.length], self.values[index, :, : layer.length])
        twin.cursor = self.cursor.copy()
        return twin

    def _move_to(self, capacity: int) -> None:
        used = self.num_tokens
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.empty((*old.shape[:2], capacity, old.shape[3]), dtype=old.dtype, device=old.device)
            new[:, :, :used] = old[:, :, :used]
            setattr(self, name, new)
