"""What the engine knows of a model: its nouns, and the adapter that every family implements.

An adapter holds weights and no stream state; state comes in and goes out as values.
P is the number of position axes (3 for M-RoPE, 1 for plain RoPE), D the hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from data.frames import Chunk


@dataclass(frozen=True)
class VisualTokens:
    """The vision tower's merged tokens of one chunk, before dropping.

    embeds: [N, D]. grid: (slots, rows, columns) with N = slots * rows * columns. deepstack: [levels, N, D] or None.
    """

    embeds: torch.Tensor
    grid: tuple[int, int, int]
    deepstack: torch.Tensor | None = None


@dataclass(frozen=True)
class TokenRun:
    """Tokens ready for the language model, with positions counted from the run's own start.

    embeds: [S, D]. position_ids: int64 [P, S], from 0. span: positions that the run takes up; the next run starts there. Both
    count in parts of a position where a family has fractions of them (`DecoderAdapter.parts`).
    visual_mask: bool [S]. deepstack: [levels, visual tokens, D] or None. is_video: a chunk of the stream, not text around it.
    Families that tell the time by position (`placement.Timed`) count axis 0 of a chunk from the stream's start instead.
    """

    embeds: torch.Tensor
    position_ids: torch.Tensor
    span: int
    visual_mask: torch.Tensor
    deepstack: torch.Tensor | None = None
    is_video: bool = False

    @property
    def num_tokens(self) -> int:
        return self.embeds.shape[0]


@dataclass(frozen=True)
class ChunkKV:
    """What is stored of one chunk. Keys are not rotated, so they can be given any position later.

    keys, values: [layers, kv_heads, S, head_dim]. position_ids: int64 [P, S] and span as in `TokenRun`. Times are seconds of
    the stream. chunk_id: negative for what is no chunk of the stream, the sink.
    """

    chunk_id: int
    keys: torch.Tensor
    values: torch.Tensor
    position_ids: torch.Tensor
    span: int
    start_seconds: float
    end_seconds: float

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values, self.position_ids))

    def to(self, device: torch.device | str) -> ChunkKV:
        return ChunkKV(
            self.chunk_id,
            self.keys.to(device),
            self.values.to(device),
            self.position_ids.to(device),
            self.span,
            self.start_seconds,
            self.end_seconds,
        )


@dataclass(frozen=True)
class Query:
    """A question as the retriever sees it.

    per_layer: float32 [layers, kv_heads, head_dim], un-rotated queries averaged over the question's tokens and summed over
    the query heads that share a KV head, scaled by head_dim ** -0.5, so that a dot product with an un-rotated key is the
    exact mean of the attention logits without position. text: the question itself, for retrievers that read words.
    """

    per_layer: torch.Tensor
    text: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, for identities, budgets and reports."""

    name: str
    family: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_position_axes: int
    dtype: torch.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


@dataclass
class AttentionTrace:
    """Where the tokens of an answer looked: attention weight per context token, summed over steps, layers and heads.

    weights: float32 [context tokens], None before the first step, and throughout where the model was loaded with an attention
    that does not tell. Filled by `ModelAdapter.generate`.
    """

    weights: torch.Tensor | None = None


class KVContext(ABC):
    """A rotated KV prefix on the compute device: [sink][chunks...][question...], at contiguous positions from 0."""

    num_tokens: int
    next_position: int

    @abstractmethod
    def fork(self) -> KVContext:
        """An independent copy that may be extended without a trace in this one."""


class ModelAdapter(ABC):
    """One model family. All tensors live on `device`; nothing here remembers a stream."""

    info: ModelInfo
    device: torch.device
    cell: float
    """Side in pixels of one merged visual token on the resized picture; not always a whole number."""
    frames_per_slot: int
    """Frames that make one temporal slot."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """What all weights take up together."""

    @abstractmethod
    def compile_steps(self, asked: str) -> str:
        """Decode tokens by graphs from now on: `auto` where there is CUDA, `on` everywhere, `off` nowhere. Returns in words how
        it is done. What cannot be made a graph is decoded as without one, and that is logged."""

    @abstractmethod
    def picture(self, chunk: Chunk) -> torch.Tensor:
        """The chunk's frames resized for the tower: uint8 [T, 3, h, w], T a multiple of `frames_per_slot`."""

    def embed(self, picture: torch.Tensor) -> VisualTokens:
        """Run the vision tower on one chunk's picture."""
        return self.embed_many([picture])[0]

    @abstractmethod
    def embed_many(self, pictures: Sequence[torch.Tensor]) -> list[VisualTokens]:
        """Run the vision tower once on the pictures of several chunks. Each has the tokens that it would have alone, up to
        rounding. pictures: at least one, of any sizes that `picture` gives."""

    @abstractmethod
    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        """The chunk's time stamps and kept visual tokens. keep: bool [N]; visual may be None where nothing is kept."""

    @abstractmethod
    def sink_run(self) -> TokenRun:
        """What stands before every stream: the head of the prompt."""

    @abstractmethod
    def question_run(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> TokenRun:
        """What stands after the stream: earlier (question, answer) turns, the question, and the start of the answer."""

    @abstractmethod
    def new_context(self, capacity: int) -> KVContext:
        """An empty context with room for `capacity` tokens."""

    @abstractmethod
    def extend(self, context: KVContext, run: TokenRun) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward `run` behind what the context holds and add it. Returns its un-rotated keys and its values, each
        [layers, kv_heads, S, head_dim]."""

    @abstractmethod
    def append(self, context: KVContext, chunks: Sequence[ChunkKV]) -> None:
        """Add stored chunks to the context at its next positions, rotated for them."""

    @abstractmethod
    def append_layers(self, context: KVContext, chunks: Sequence[Sequence[ChunkKV]]) -> None:
        """Like `append`, with chunks of its own for every layer. Each layer's chunks end at the same position."""

    @abstractmethod
    def encode_question(self, question: str) -> Query:
        """The question's un-rotated queries, with only the sink before it."""

    @abstractmethod
    def logits(self, context: KVContext, run: TokenRun) -> torch.Tensor:
        """float32 [S, vocabulary]: forward `run` behind the context, adding it."""

    @abstractmethod
    def likelihoods(self, context: KVContext, run: TokenRun, answers: Sequence[str]) -> list[float]:
        """Mean log-probability per token of each answer behind the context and `run`.

        Extends the context, by what is the family's own matter; fork one that is still needed."""

    @abstractmethod
    def opening_id(self, word: str) -> int:
        """The token with which an answer that begins with `word` begins."""

    def openings(self, context: KVContext, runs: Sequence[TokenRun], words: Sequence[str]) -> torch.Tensor:
        """float32 [runs, words]: log-probability that the answer behind the context and each run begins with each word.

        Every run is put as if it were the only one, and the context stays as it is. This loop is the specification; a
        family may put all of them in one forward.
        """
        ids = [self.opening_id(word) for word in words]
        return torch.stack([self.logits(context.fork(), run)[-1].log_softmax(-1)[ids] for run in runs])

    @abstractmethod
    def generate(
        self,
        context: KVContext,
        run: TokenRun,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        trace: AttentionTrace | None = None,
    ) -> Iterator[str]:
        """Answer behind the context: yields the growing text, token by token. Extends the context; close it to cancel.

        trace, where given, learns which context tokens the answer looked at; all layers must then hold the same tokens."""
