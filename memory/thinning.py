"""What goes first when the lowest tier is full: not whole chunks, but the tokens of old chunks that say least.

A chunk gets older in steps: whole, its most telling tokens, one token that stands for all, gone. Every step has its share of
the tier; the step that is furthest over its share hands its oldest chunks on to the next. So the recent past is whole, and the
further back, the coarser memory gets. Which tokens tell most is a policy of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch

from data.errors import ConfigError
from model_adapters.base import ChunkKV

SUMMARY = 0.0
"""The share of tokens that means: one pooled token."""


class Saliency(ABC):
    """Which tokens of a chunk tell most."""

    @abstractmethod
    def order(self, chunk: ChunkKV) -> torch.Tensor:
        """int64 [S]: the chunk's tokens by number, the most telling first."""


class Evenly(Saliency):
    """Tokens from all over the chunk, whatever they say: the baseline."""

    def order(self, chunk: ChunkKV) -> torch.Tensor:
        # Halving again and again: any first part of this order is spread over the whole chunk.
        bits = max(1, chunk.num_tokens - 1).bit_length()
        mirrored = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(chunk.num_tokens)]
        return torch.tensor(sorted(range(chunk.num_tokens), key=mirrored.__getitem__), dtype=torch.long)


class Distinct(Saliency):
    """Tokens whose keys are unlike the chunk's mean key, and whose values are large, in equal parts by rank.

    Source: InfiniPot-V (arXiv 2506.15745), which joins the redundancy of keys and the norm of values. There redundancy is
    measured against the same place in other frames; here dropping has removed that already, so the mean of the chunk is used.
    """

    def order(self, chunk: ChunkKV) -> torch.Tensor:
        keys, values = chunk.keys.float(), chunk.values.float()
        alike = torch.cosine_similarity(keys, keys.mean(2, keepdim=True), dim=-1).mean((0, 1))
        norm = values.square().sum(-1).sqrt().mean((0, 1))
        return (_ranks(-alike) + _ranks(norm)).argsort(descending=True, stable=True).cpu()


POLICIES: dict[str, Callable[[], Saliency]] = {"evenly": Evenly, "distinct": Distinct}
"""Name → class."""


@dataclass(frozen=True)
class Thinning:
    """The steps a chunk goes through. token_shares: the share of its original tokens that is left after each step, falling;
    SUMMARY for one pooled token. byte_shares: of the tier, for whole chunks and for each step; they sum to 1.

    ConfigError if the shares make no sense.
    """

    saliency: Saliency
    token_shares: tuple[float, ...] = (0.5, SUMMARY)
    byte_shares: tuple[float, ...] = (0.5, 0.3, 0.2)

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip((1.0, *self.token_shares), self.token_shares, strict=False))
        if not falling or min((*self.token_shares, *self.byte_shares)) < 0 or abs(sum(self.byte_shares) - 1) > 1e-9:
            raise ConfigError(
                f"token shares {self.token_shares} must fall from below 1, byte shares {self.byte_shares} sum to 1"
            )
        if len(self.byte_shares) != len(self.token_shares) + 1:
            raise ConfigError(
                f"{len(self.token_shares)} steps need {len(self.token_shares) + 1} byte shares, {self.byte_shares} given"
            )

    def thin(self, chunk: ChunkKV, step: int, num_original: int) -> ChunkKV:
        """The chunk after `step` (1 the first). num_original: tokens that it had when it was whole.

        Tokens that stay keep their order, keys, values and positions; the chunk keeps its span and times.
        """
        share = self.token_shares[step - 1]
        if share == SUMMARY:
            return pooled(chunk)
        num = min(chunk.num_tokens, max(1, round(share * num_original)))
        kept = self.saliency.order(chunk)[:num].sort().values.to(chunk.keys.device)
        return _select(chunk, kept)


def create_thinning(name: str) -> Thinning | None:
    """Thinning by the policy called `name`; None for "off". ConfigError for an unknown name."""
    if name == "off":
        return None
    if name not in POLICIES:
        raise ConfigError(f"thinning={name!r} is not known; known are off, {', '.join(POLICIES)}")
    return Thinning(POLICIES[name]())


def pooled(chunk: ChunkKV) -> ChunkKV:
    """One token for all: the mean key and value, at the middle token's position. Its mean key is the chunk's own, so that
    retrieval by mean keys finds it as before. A chunk without tokens stays as it is."""
    if chunk.num_tokens < 2:
        return chunk
    middle = chunk.num_tokens // 2
    return ChunkKV(
        chunk.chunk_id,
        chunk.keys.float().mean(2, keepdim=True).to(chunk.keys.dtype),
        chunk.values.float().mean(2, keepdim=True).to(chunk.values.dtype),
        chunk.position_ids[:, middle : middle + 1].clone(),
        chunk.span,
        chunk.start_seconds,
        chunk.end_seconds,
    )


@dataclass
class Ages:
    """The chunks of the lowest tier by step, the oldest first. Says whose turn it is; moves nothing itself."""

    byte_shares: tuple[float, ...] = (1.0,)
    num_bytes: list[int] = field(default_factory=list)
    _order: list[list[tuple[float, int]]] = field(default_factory=list)
    _known: dict[int, tuple[int, float, int]] = field(default_factory=dict)
    """chunk_id → (step, start_seconds, num_bytes)"""

    def __post_init__(self) -> None:
        self.num_bytes = [0 for _ in self.byte_shares]
        self._order = [[] for _ in self.byte_shares]

    def add(self, chunk_id: int, step: int, start_seconds: float, num_bytes: int) -> None:
        insort(self._order[step], (start_seconds, chunk_id))
        self._known[chunk_id] = (step, start_seconds, num_bytes)
        self.num_bytes[step] += num_bytes

    def discard(self, chunk_id: int) -> None:
        """Forget a chunk; an unknown one is ignored."""
        if chunk_id in self._known:
            step, start, num_bytes = self._known.pop(chunk_id)
            del self._order[step][bisect_left(self._order[step], (start, chunk_id))]
            self.num_bytes[step] -= num_bytes

    def turns(self, pins: Collection[int]) -> Iterator[tuple[int, int]]:
        """(step, chunk_id) of unpinned chunks in the order in which they should go on: the step furthest over its share first,
        its oldest chunk first."""
        over = [(used / share if share else float("inf"), step) for step, (used, share) in enumerate(self._shares())]
        for _, step in sorted(over, key=lambda pair: (-pair[0], -pair[1])):
            for _, chunk_id in self._order[step]:
                if chunk_id not in pins:
                    yield step, chunk_id

    def _shares(self) -> list[tuple[int, float]]:
        return list(zip(self.num_bytes, self.byte_shares, strict=True))

    def step(self, chunk_id: int) -> int:
        return self._known[chunk_id][0]

    def chunk_ids(self, step: int | None = None) -> list[int]:
        """The chunks of one step, or of all, oldest first within a step."""
        return [i for one, order in enumerate(self._order) if step in (None, one) for _, i in order]

    def check_integrity(self) -> None:
        """AssertionError if counts and content disagree."""
        for step, order in enumerate(self._order):
            assert order == sorted(order), f"step {step} is out of order"
            total = sum(self._known[i][2] for _, i in order)
            assert total == self.num_bytes[step], f"step {step} counts {self.num_bytes[step]} bytes and holds {total}"
        assert sorted(self.chunk_ids()) == sorted(self._known), "a chunk is at no step, or at two"


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    return scores.argsort(stable=True).argsort(stable=True).float()


def _select(chunk: ChunkKV, kept: torch.Tensor) -> ChunkKV:
    return ChunkKV(
        chunk.chunk_id,
        chunk.keys[:, :, kept],
        chunk.values[:, :, kept],
        chunk.position_ids[:, kept],
        chunk.span,
        chunk.start_seconds,
        chunk.end_seconds,
    )
