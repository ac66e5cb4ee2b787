"""The decode step as one graph: fixed buffers, fixed shapes, so that neither Python nor the allocator stands in its way.

A step works on buffers of its own, which an answer's context is copied into once; their capacity grows in a few sizes, so
that a graph made for one answer serves the next. On CUDA it is a CUDA graph, elsewhere what `torch.compile` makes of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from data.errors import reason_of
from model_adapters.attention import Looked
from model_adapters.base import AttentionTrace
from model_adapters.cache import BufferContext

if TYPE_CHECKING:
    from model_adapters.decoder import DecoderAdapter

LEAST, AHEAD = 256, 64
"""The smallest capacity, and the room for new tokens that a step is begun with at least."""
KEPT = 2
"""Steps that are kept for the next answer while none uses them; each holds buffers for keys and values."""
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""How far a graph may be from the operations that it was made of, as a share of the largest logit."""

log = logging.getLogger(__name__)


class StepLayer(CacheLayerMixin):
    """One layer's keys and values [kv_heads, capacity, head_dim]; the next token is written where `slot` says."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor) -> None:
        super().__init__()
        self.held_keys, self.held_values, self.slot = keys, values, slot
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states: [1, kv_heads, 1, head_dim]; returns the whole buffers, of which a mask hides the rest."""
        self.held_keys.index_copy_(1, self.slot, key_states[0])
        self.held_values.index_copy_(1, self.slot, value_states[0])
        return self.held_keys[None], self.held_values[None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.held_keys.shape[1], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.held_keys.shape[1]


class Step:
    """All that one decoded token reads and writes, at addresses that stay. Lent to one answer at a time.

    keys, values: [layers, kv_heads, capacity, head_dim]. token, slot: int64 [1], the token to come and its place in the
    buffers. positions: as the language model takes them for one token. looked: None where nobody asks.
    """

    def __init__(self, adapter: DecoderAdapter, capacity: int, traced: bool) -> None:
        info, device = adapter.info, adapter.device
        shape = (info.num_layers, info.num_kv_heads, capacity, info.head_dim)
        # Not empty: what a mask hides must still be numbers.
        self.keys, self.values = (torch.zeros(shape, dtype=info.dtype, device=device) for _ in range(2))
        self.capacity, self.traced = capacity, traced
        self.token, self.slot = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self.columns = torch.arange(capacity, device=device)
        axes = info.num_position_axes
        # As the language model takes them: of the type that it is given elsewhere.
        self.positions = adapter._batched(torch.zeros(axes, 1, dtype=torch.long, device=device)).clone()
        self.parts = adapter.parts
        self.layers = [StepLayer(keys, values, self.slot) for keys, values in zip(self.keys, self.values, strict=True)]
        self.cache = Cache(layers=list(self.layers))
        self.looked = Looked() if traced else None
        if self.looked is not None:
            self.looked.add(torch.zeros(1, 1, 1, capacity, device=device))
        self.at = 0
        self.run: Callable[[], torch.Tensor]
        """Forward `token` behind what is held, move on by one, and return float32 logits [1, vocabulary]."""

    @property
    def is_full(self) -> bool:
        return self.at == self.capacity

    def place(self, at: int, position: int) -> None:
        """The next token is number `at` and stands at `position`, in parts of one."""
        self.at = at
        self.slot.fill_(at)
        self.positions.fill_(position / self.parts)

    def take(self, context: BufferContext, trace: AttentionTrace | None) -> None:
        """Begin where a context, and what is known of where its answer looked, have come to."""
        size = context.num_tokens
        self.keys[:, :, :size], self.values[:, :, :size] = context.read()
        self.place(size, context.next_position)
        if trace is not None:
            row = self._row
            row.zero_()
            if trace.weights is not None:
                row[: len(trace.weights)] = trace.weights

    def give(self, context: BufferContext) -> None:
        """Add the tokens that came since `take` to the context that it took."""
        start = context.num_tokens
        context.write(self.keys[:, :, start : self.at], self.values[:, :, start : self.at])
        context.cursor.next_position += (self.at - start) * self.parts

    def __call__(self, token: torch.Tensor, trace: AttentionTrace | None) -> torch.Tensor:
        """float32 logits [1, vocabulary] behind `token`, int64 [1], which joins what is held."""
        self.token.copy_(token)
        scores = self.run()
        self.at += 1
        if trace is not None and trace.weights is not None:
            trace.weights = self._row[: len(trace.weights)].clone()
        return scores

    @property
    def _row(self) -> torch.Tensor:
        assert self.looked is not None
        return self.looked.row(self.keys.device)


class Steps:
    """The graphs of one model. asked: see `ModelAdapter.compile_steps`. backend: of `torch.compile`."""

    def __init__(self, adapter: DecoderAdapter, asked: str, backend: str | Callable = "inductor") -> None:
        self.adapter = adapter
        self.reason = ""
        """Why there are none although they were asked for."""
        cuda = adapter.device.type == "cuda"
        self.kind = "off" if asked == "off" or (asked == "auto" and not cuda) else "cuda" if cuda else "compiled"
        if self.kind != "off" and adapter.is_spread:
            self._stop("the model does not lie on one device")
        elif self.kind != "off" and not adapter.takes_masks:
            self._stop("its attention takes no such mask")
        self._compiled = torch.compile(self._forward, fullgraph=True, backend=backend) if self.kind == "compiled" else None
        self._free: list[Step] = []
        self._lock = threading.Lock()

    @property
    def words(self) -> str:
        """One line: how a token is decoded."""
        kinds = {"off": "one operation at a time", "cuda": "CUDA graphs", "compiled": "compiled by torch"}
        return kinds[self.kind] + (f", because {self.reason}" if self.reason else "")

    @contextmanager
    def lent(self, context: BufferContext, trace: AttentionTrace | None) -> Iterator[Step | None]:
        """A step that goes on behind the context, which has all its tokens when it is given back. None: there are no graphs,
        or the context's layers hold different chunks."""
        step = self._step(capacity_for(context.num_tokens + AHEAD), trace is not None) if context.is_even else None
        if step is None:
            yield None
            return
        step.take(context, trace)
        try:
            yield step
        finally:
            step.give(context)
            with self._lock:
                self._free = [*self._free, step][-KEPT:]

    def _step(self, capacity: int, traced: bool) -> Step | None:
        with self._lock:
            for step in self._free:
                if (step.capacity, step.traced) == (capacity, traced):
                    self._free.remove(step)
                    return step
        if self.kind == "off":
            return None
        try:
            step = Step(self.adapter, capacity, traced)
            self._prepare(step)
        except RuntimeError as error:
            # Whatever hinders a graph, memory included, does not hinder the answer.
            self._stop(reason_of(error))
            return None
        return step

    def _stop(self, reason: str) -> None:
        self.kind, self.reason = "off", reason
        log.warning("decoding goes %s", self.words)

    def _forward(self, step: Step) -> torch.Tensor:
        adapter = self.adapter
        extra: dict[str, Any] = {adapter.cache_name: step.cache} | ({} if step.looked is None else {"looked": step.looked})
        out = adapter.language(
            inputs_embeds=adapter.language.get_input_embeddings()(step.token)[None],
            position_ids=step.positions,
            attention_mask=(step.columns <= step.slot)[None, None, None],
            use_cache=True,
            **extra,
        )
        step.slot.add_(1)
        step.positions.add_(1)
        return adapter.model.lm_head(out.last_hidden_state[0]).float()

    def _prepare(self, step: Step) -> None:
        """Make the graph, and let it show on made-up keys and values that it computes what it was made of."""
        step.keys.normal_()
        step.values.normal_()

        def afresh() -> None:
            step.place(step.capacity // 2, step.capacity // 2 * step.parts)

        afresh()
        expected = self._forward(step).clone()
        afresh()
        step.run = self._captured(step, afresh) if self.kind == "cuda" else self._traced(step)
        afresh()
        found = step.run()
        # So put that what is no number does not pass.
        if not float((found - expected).abs().max()) <= BOUNDS[self.adapter.info.dtype] * float(expected.abs().max()):
            raise RuntimeError("its graph computes something else")

    def _traced(self, step: Step) -> Callable[[], torch.Tensor]:
        compiled = self._compiled
        assert compiled is not None
        for layer in step.layers:
            for buffer in (layer.held_keys, layer.held_values):
                torch._dynamo.mark_dynamic(buffer, 1)
        for buffer in (step.columns, *([] if step.looked is None else [step.looked.row(step.keys.device)])):
            torch._dynamo.mark_dynamic(buffer, 0)
        return lambda: compiled(step)

    def _captured(self, step: Step, afresh: Callable[[], None]) -> Callable[[], torch.Tensor]:
        device = self.adapter.device
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                # What libraries set up at their first call must not be captured.
                for _ in range(2):
                    self._forward(step)
                    afresh()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: others may copy chunks meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                scores = self._forward(step)

        def replay() -> torch.Tensor:
            graph.replay()
            return scores

        return replay


def capacity_for(num_tokens: int) -> int:
    """The next power of two, or the one and a half of one, so that at most a third is read in vain."""
    capacity = LEAST
    while capacity < num_tokens:
        capacity = capacity * 3 // 2 if capacity & (capacity - 1) == 0 else capacity * 4 // 3
    return capacity
