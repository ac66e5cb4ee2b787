"""The language-model side of every stock decoder-only video LLM: contexts, prefill, retrieved chunks, decoding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper

from model_adapters.attention import Looked, hides_by_bool
from model_adapters.base import AttentionTrace, ChunkKV, KVContext, ModelAdapter, ModelInfo, Query, TokenRun
from model_adapters.cache import BufferContext, cache_name
from model_adapters.devices import device_of
from model_adapters.placement import Cursor, Packed, Placement
from model_adapters.rope import rotate
from model_adapters.runs import one_after_the_other, side_by_side
from model_adapters.steps import Steps
from model_adapters.tap import Tap
from model_adapters.typed import plain_pieces, structure_pattern


class DecoderAdapter(ModelAdapter):
    """What needs only a stock language model, its rotary embedding, its head, and a tokenizer.

    model: the whole stock model; language: its language model, with `layers` and `rotary_emb`. Position ids have 3 axes
    (M-RoPE) or 1, as `info.num_position_axes` says. video_id: the token that stands for one visual token. A model may be
    split over devices: its layers' keys and values stay where each layer computes, all else is brought together on `device`,
    where its tokens are embedded.
    """

    parts: int = 1
    """Parts of a position that position ids count in, since what is stored of them are whole numbers."""

    def __init__(self, model: Any, language: Any, tokenizer: Any, video_id: int, info: ModelInfo) -> None:
        self.model = model
        self.language = language
        self.cache_name = cache_name(language)
        self.tokenizer = tokenizer
        self.video_id = video_id
        self.info = info
        self.device = device_of(language.get_input_embeddings())
        self.devices = [device_of(layer) for layer in language.layers]
        self.head_device = device_of(model.lm_head)
        self.placement: Placement = Packed()
        self.tap = Tap(language.layers, info.head_dim, self.device)
        self.structure = structure_pattern(tokenizer)
        self._steps: dict[str, Steps] = {}
        self.compile_steps("off")
        eos = model.generation_config.eos_token_id
        self.stop_ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}

    @property
    def is_spread(self) -> bool:
        """Whether parts of the model compute or wait on several devices, and hooks move what is between them."""
        return any(weights.device != self.device for weights in self.model.parameters())

    @property
    def takes_masks(self) -> bool:
        """Whether the attention that the language model runs with takes masks of true and false as they are."""
        return hides_by_bool(self.language.config._attn_implementation)

    @property
    def weight_bytes(self) -> int:
        return sum(weights.nbytes for weights in self.model.parameters())

    def compile_steps(self, asked: str) -> str:
        # Kept under what was asked for: graphs that are made serve again.
        self.steps = self._steps.setdefault(asked, Steps(self, asked))
        return self.steps.words

    @abstractmethod
    def sink_run(self) -> TokenRun: ...

    def plain_run(self, *parts: str) -> TokenRun:
        """Text at consecutive positions. parts: as for `ids`."""
        ids = self.ids(*parts)
        return self.token_run(ids, torch.arange(len(ids)).expand(self.info.num_position_axes, -1), len(ids))

    def token_run(self, ids: Sequence[int], positions: torch.Tensor, span: int) -> TokenRun:
        """Tokens with the whole positions [P, S] that they are given; visual tokens with their placeholder's embedding."""
        tokens = torch.tensor(ids, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            embeds = self.language.get_input_embeddings()(tokens)
        return TokenRun(embeds, positions.to(self.device) * self.parts, span * self.parts, tokens == self.video_id)

    def ids(self, *parts: str) -> list[int]:
        """Token ids of what the template says and what a person said, in turns, the template first; none are added.

        Special tokens in the template's parts are structure. In what a person said they are the letters that they are
        written with.
        """
        pieces = plain_pieces(parts, self.structure)
        return [token for piece in pieces for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]

    def new_context(self, capacity: int) -> BufferContext:
        return BufferContext((self.info.num_kv_heads, capacity, self.info.head_dim), self.info.dtype, self.devices)

    def _batched(self, positions: torch.Tensor) -> torch.Tensor:
        """Position ids [P, S] as stock models take them for a batch of one: [3, 1, S], or [1, S] where P is 1."""
        whole = positions if self.parts == 1 else positions / self.parts
        return whole[:, None] if self.info.num_position_axes > 1 else whole

    def angles(self, like: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's own cos and sin [S, head_dim] for position ids [P, S], in the dtype of `like`."""
        cos, sin = self.language.rotary_emb(like, self._batched(positions.to(like.device)))
        return cos[0].to(like.device), sin[0].to(like.device)

    @torch.inference_mode()
    def _forward(
        self, context: KVContext, run: TokenRun, mask: torch.Tensor | None = None, looked: Looked | None = None
    ) -> torch.Tensor:
        """Hidden states [S, D] of `run` behind the context, which grows by it, where the last layer left them.

        mask: see `attention.attend`; None: causal. looked: learns where the last token looked."""
        assert isinstance(context, BufferContext)
        context.reserve(run.num_tokens)
        extra: dict[str, Any] = {self.cache_name: context.cache} | ({} if looked is None else {"looked": looked})
        if run.deepstack is not None:
            extra |= {"visual_pos_masks": run.visual_mask[None], "deepstack_visual_embeds": list(run.deepstack)}
        positions = self.placement.place(context.cursor, run.position_ids, run.span, run.is_video)
        out = self.language(
            inputs_embeds=run.embeds[None],
            position_ids=self._batched(positions),
            attention_mask=mask,
            use_cache=True,
            **extra,
        )
        return out.last_hidden_state[0]

    def extend(self, context: KVContext, run: TokenRun) -> tuple[torch.Tensor, torch.Tensor]:
        start = context.num_tokens
        with self.tap:
            self._forward(context, run)
            keys = self.tap.stacked_keys()
        return keys, context.read(start)[1]  # type: ignore[attr-defined]

    @torch.inference_mode()
    def append(self, context: KVContext, chunks: Sequence[ChunkKV]) -> None:
        assert isinstance(context, BufferContext)
        if not chunks:
            return
        cos, sin = self.angles(chunks[0].keys, self._placed(context.cursor, chunks))
        context.reserve(len(cos))
        at = 0
        # Chunk by chunk straight into the context: joining them first would copy all of them once more.
        for chunk in chunks:
            end = at + chunk.num_tokens
            context.write(rotate(chunk.keys, cos[at:end], sin[at:end]), chunk.values)
            at = end

    @torch.inference_mode()
    def append_layers(self, context: KVContext, chunks: Sequence[Sequence[ChunkKV]]) -> None:
        assert isinstance(context, BufferContext)
        context.reserve(max(sum(chunk.num_tokens for chunk in row) for row in chunks))
        ends = []
        for row in chunks:
            alone = context.cursor.copy()
            self._placed(alone, row)
            ends.append(alone.next_position)
        cursors = []
        for index, row in enumerate(chunks):
            cursors.append(context.cursor.copy())
            if row:
                self.placement.align(cursors[-1], ends, index)
                keys = torch.cat([chunk.keys[index] for chunk in row], dim=1)
                cos, sin = self.angles(keys, self._placed(cursors[-1], row))
                values = torch.cat([chunk.values[index] for chunk in row], dim=1)
                context.write_layer(index, rotate(keys, cos, sin), values)
        context.cursor = max(cursors, key=lambda cursor: (cursor.next_position, cursor.video_end))

    def _placed(self, cursor: Cursor, chunks: Sequence[ChunkKV]) -> torch.Tensor:
        """Positions [P, S] of stored chunks that join one after the other; moves the cursor."""
        return torch.cat(
            [self.placement.place(cursor, c.position_ids, c.span, is_video=c.chunk_id >= 0) for c in chunks]
            or [torch.zeros(self.info.num_position_axes, 0, dtype=torch.long)],
            dim=1,
        )

    def encode_question(self, question: str) -> Query:
        context = self.new_context(256)
        self._forward(context, self.sink_run())
        with self.tap:
            self._forward(context, self.plain_run("", question))
            queries = self.tap.stacked_queries().float().mean(2)
        heads = queries.view(self.info.num_layers, self.info.num_kv_heads, -1, self.info.head_dim)
        return Query(heads.sum(2) * self.info.head_dim**-0.5, question)

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [S, vocabulary] of hidden states [S, D], on `device`."""
        return self.model.lm_head(hidden.to(self.head_device)).to(self.device).float()

    @torch.inference_mode()
    def logits(self, context: KVContext, run: TokenRun) -> torch.Tensor:
        return self._scores(self._forward(context, run))

    @torch.inference_mode()
    def likelihoods(self, context: KVContext, run: TokenRun, answers: Sequence[str]) -> list[float]:
        found = []
        first = self.logits(context, run)[-1:] if len(answers) > 1 else None
        for answer in answers:
            ids = [*self.ids("", answer), self.tokenizer.eos_token_id]
            body = torch.arange(len(ids) - 1).expand(self.info.num_position_axes, -1)
            written = self.token_run(ids[:-1], body, len(ids) - 1)
            if first is None:
                # Nothing else stands behind the question: both go in one forward.
                hidden = self._forward(context, one_after_the_other(run, written))[run.num_tokens - 1 :]
                scores = self._scores(hidden)
            else:
                scores = torch.cat([first, self.logits(context.fork(), written)])
            chosen = scores.log_softmax(-1).gather(1, torch.tensor(ids, device=self.device)[:, None])
            found.append(float(chosen.mean()))
        return found

    def opening_id(self, word: str) -> int:
        return self.ids("", word)[0]

    @torch.inference_mode()
    def openings(self, context: KVContext, runs: Sequence[TokenRun], words: Sequence[str]) -> torch.Tensor:
        if not self.takes_masks:
            return super().openings(context, runs, words)
        asked, mask = side_by_side(runs, context.num_tokens)
        last = torch.tensor([run.num_tokens for run in runs]).cumsum(0) - 1
        hidden = self._forward(context.fork(), asked, mask)
        asked_for = torch.tensor([self.opening_id(word) for word in words], device=self.device)
        return self._scores(hidden[last.to(hidden.device)]).log_softmax(-1)[:, asked_for]

    @torch.inference_mode()
    def generate(
        self,
        context: KVContext,
        run: TokenRun,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        trace: AttentionTrace | None = None,
    ) -> Iterator[str]:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature > 0 else [])
        generator = torch.Generator(device=self.device).manual_seed(seed) if temperature > 0 else None
        written: list[int] = []
        decoded = self._decoded(context, run, trace)
        scores = next(decoded)
        with closing(decoded):
            while len(written) < max_new_tokens:
                if temperature > 0:
                    ids = torch.tensor([written], dtype=torch.long, device=self.device)
                    scores = warpers(ids, scores)  # type: ignore[arg-type]
                    chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)[0]
                else:
                    chosen = scores.argmax(-1)
                token = int(chosen)
                if token in self.stop_ids:
                    return
                written.append(token)
                yield self.tokenizer.decode(written, skip_special_tokens=True)
                if len(written) < max_new_tokens:
                    # The token never leaves the device on its way into the next step.
                    scores = decoded.send(chosen)

    def _decoded(
        self, context: KVContext, run: TokenRun, trace: AttentionTrace | None
    ) -> Generator[torch.Tensor, torch.Tensor, None]:
        """float32 logits [1, vocabulary] behind the context and `run`, then behind each token, int64 [1], that is sent.

        What is sent joins the context, at the latest when this is closed."""
        assert isinstance(context, BufferContext)
        looked = None if trace is None else Looked(context.num_tokens)
        while True:
            scores = self._scores(self._forward(context, run, looked=looked)[-1:])
            if trace is not None and looked is not None:
                trace.weights = looked.total(self.device)
            chosen = yield scores
            while True:
                with self.steps.lent(context, trace) as step:
                    while step is not None and not step.is_full:
                        chosen = yield step(chosen, trace)
                if step is None:
                    break
            origin = torch.zeros(self.info.num_position_axes, 1, dtype=torch.long, device=self.device)
            run = TokenRun(self.language.get_input_embeddings()(chosen), origin, self.parts, chosen == self.video_id)
