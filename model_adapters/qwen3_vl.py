"""Qwen3-VL on stock transformers: time stamps as text before every slot, interleaved M-RoPE, DeepStack features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper
from transformers.utils import logging as transformers_logging

from data.errors import AdapterError
from data.frames import Chunk
from model_adapters import attention
from model_adapters.base import AttentionTrace, ChunkKV, KVContext, ModelAdapter, ModelInfo, Query, TokenRun, VisualTokens
from model_adapters.cache import BufferContext
from model_adapters.fingerprint import fingerprint
from model_adapters.preprocess import PixelSpec, patchify, resize
from model_adapters.rope import rotate
from model_adapters.tap import Tap

VIDEO_PART = "<|vision_start|><|video_pad|><|vision_end|>"
QUESTION_MARK = "\u2063question\u2063"
"""Stands for the question while the chat template is rendered, to be split at; no template contains it."""


class Qwen3VLAdapter(ModelAdapter):
    """Any checkpoint whose config says `model_type: qwen3_vl`."""

    def __init__(self, model: Any, tokenizer: Any, spec: PixelSpec, name: str, print_: str) -> None:
        text = model.config.text_config
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.spec = spec
        self.device = model.device
        self.cell = spec.cell
        self.frames_per_slot = spec.temporal_patch_size
        self.info = ModelInfo(
            name=name,
            family=model.config.model_type,
            fingerprint=print_,
            num_layers=text.num_hidden_layers,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            num_position_axes=3,
            dtype=model.dtype,
        )
        self.language = model.model.language_model
        self.tap = Tap(self.language.layers)
        self.start_id, self.end_id, self.video_id = (
            tokenizer.convert_tokens_to_ids(t) for t in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
        )
        eos = model.generation_config.eos_token_id
        self.stop_ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        self.head, self.tail = self._prompt_parts()

    @classmethod
    def load(cls, name: str, folder: Path, **options) -> Qwen3VLAdapter:
        """Load from a local folder in the layout of a hub checkpoint. Raises AdapterError with one line."""
        attention.register()
        transformers_logging.disable_progress_bar()
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder,
            use_safetensors=True,
            attn_implementation={"text_config": attention.NAME, "vision_config": "sdpa"},
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        model, loading = loaded
        if loading["missing_keys"]:
            lost = sorted(loading["missing_keys"])
            raise AdapterError(f"{name} lacks {len(lost)} of its weights, {lost[0]} among them; download the checkpoint again")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        missing = [t for t in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>") if t not in tokenizer.get_vocab()]
        if missing:
            raise AdapterError(
                f"the tokenizer of {name} lacks the special token {missing[0]}; use the checkpoint's own tokenizer"
            )
        return cls(model, tokenizer, PixelSpec.from_folder(folder), name, fingerprint(folder))

    def _prompt_parts(self) -> tuple[str, str]:
        """The chat template's text before the video and after the question."""
        content = [{"type": "video"}, {"type": "text", "text": QUESTION_MARK}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        head, found, rest = rendered.partition(VIDEO_PART)
        _, marked, tail = rest.partition(QUESTION_MARK)
        if not found or not marked:
            raise AdapterError(
                f"the chat template of {self.info.name} has no place for a video; use the checkpoint's own template"
            )
        return head, tail

    def picture(self, chunk: Chunk) -> torch.Tensor:
        frames = torch.from_numpy(chunk.frames).to(self.device)
        short = -len(frames) % self.frames_per_slot
        if short:
            frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
        return resize(frames, self.spec)

    @torch.inference_mode()
    def embed(self, picture: torch.Tensor) -> VisualTokens:
        patches, grid = patchify(picture, self.spec, self.model.dtype)
        out = self.model.model.get_video_features(patches, grid)
        t, rows, columns = grid[0].tolist()
        merge = self.spec.merge_size
        deepstack = torch.stack([torch.cat(level) for level in out.deepstack_features]) if out.deepstack_features else None
        return VisualTokens(torch.cat(out.pooler_output), (t, rows // merge, columns // merge), deepstack)

    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        slots, rows, columns = grid
        keep = keep.view(slots, rows * columns).cpu()
        ids: list[int] = []
        positions: list[tuple[int, int, int]] = []
        at = 0
        for slot in range(slots):
            stamp = [*self._ids(f"<{self._slot_seconds(chunk, slot):.1f} seconds>"), self.start_id]
            cells = keep[slot].nonzero().flatten().tolist()
            ids += stamp + [self.video_id] * len(cells) + [self.end_id]
            positions += [(at + i,) * 3 for i in range(len(stamp))]
            at += len(stamp)
            positions += [(at, at + c // columns, at + c % columns) for c in cells]
            at += max(rows, columns)
            positions.append((at,) * 3)
            at += 1
        run = self._text_run(ids, positions, at)
        if visual is None:
            return run
        kept = keep.flatten().to(self.device)
        embeds = run.embeds.masked_scatter(run.visual_mask[:, None], visual.embeds[kept])
        deepstack = None if visual.deepstack is None else visual.deepstack[:, kept]
        return TokenRun(embeds, run.position_ids, at, run.visual_mask, deepstack)

    def _slot_seconds(self, chunk: Chunk, slot: int) -> float:
        """Time stamp of a temporal slot: the mean of its first and last frame's pts; a short slot repeats its last frame."""
        last = len(chunk.pts_seconds) - 1
        first = slot * self.frames_per_slot
        return (chunk.pts_seconds[min(first, last)] + chunk.pts_seconds[min(first + self.frames_per_slot - 1, last)]) / 2

    def sink_run(self) -> TokenRun:
        return self._plain_run(self.head)

    def question_run(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> TokenRun:
        text = ""
        for asked, answered in turns:
            text += asked + self.tail + answered + self.tokenizer.eos_token + "\n" + self.head
        return self._plain_run(text + question + self.tail)

    def _plain_run(self, text: str) -> TokenRun:
        ids = self._ids(text)
        return self._text_run(ids, [(i,) * 3 for i in range(len(ids))], len(ids))

    def _text_run(self, ids: list[int], positions: list[tuple[int, int, int]], span: int) -> TokenRun:
        tokens = torch.tensor(ids, dtype=torch.long, device=self.device)
        position_ids = torch.tensor(positions, dtype=torch.long, device=self.device).reshape(-1, 3).T
        with torch.inference_mode():
            embeds = self.model.get_input_embeddings()(tokens)
        return TokenRun(embeds, position_ids, span, tokens == self.video_id)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def new_context(self, capacity: int) -> BufferContext:
        shape = (self.info.num_layers, self.info.num_kv_heads, capacity, self.info.head_dim)
        return BufferContext(shape, self.info.dtype, self.device)

    @torch.inference_mode()
    def _forward(self, context: KVContext, run: TokenRun) -> torch.Tensor:
        """Hidden states [S, D] of `run` behind the context, which grows by it."""
        assert isinstance(context, BufferContext)
        context.reserve(run.num_tokens)
        deepstack = None if run.deepstack is None else list(run.deepstack)
        out = self.language(
            inputs_embeds=run.embeds[None],
            position_ids=(run.position_ids + context.next_position)[:, None],
            past_key_values=context.cache,
            visual_pos_masks=None if deepstack is None else run.visual_mask[None],
            deepstack_visual_embeds=deepstack,
            use_cache=True,
        )
        context.next_position += run.span
        return out.last_hidden_state[0]

    def extend(self, context: KVContext, run: TokenRun) -> tuple[torch.Tensor, torch.Tensor]:
        start = context.num_tokens
        with self.tap:
            self._forward(context, run)
            keys = self.tap.stacked_keys()
        return keys, context.values[:, :, start : context.num_tokens].clone()  # type: ignore[attr-defined]

    @torch.inference_mode()
    def append(self, context: KVContext, chunks: Sequence[ChunkKV]) -> None:
        assert isinstance(context, BufferContext)
        if not chunks:
            return
        keys, positions, span = _joined([chunk.keys for chunk in chunks], chunks)
        cos, sin = self.language.rotary_emb(keys, (positions + context.next_position)[:, None])
        context.write(rotate(keys, cos[0], sin[0]), torch.cat([chunk.values for chunk in chunks], dim=2))
        context.next_position += span

    @torch.inference_mode()
    def append_layers(self, context: KVContext, chunks: Sequence[Sequence[ChunkKV]]) -> None:
        assert isinstance(context, BufferContext)
        spans = [sum(chunk.span for chunk in row) for row in chunks]
        context.reserve(max(sum(chunk.num_tokens for chunk in row) for row in chunks))
        for index, row in enumerate(chunks):
            if row:
                keys, positions, span = _joined([chunk.keys[index] for chunk in row], row)
                start = context.next_position + max(spans) - span
                cos, sin = self.language.rotary_emb(keys, (positions + start)[:, None])
                values = torch.cat([chunk.values[index] for chunk in row], dim=1)
                context.write_layer(index, rotate(keys, cos[0], sin[0]), values)
        context.next_position += max(spans)

    def encode_question(self, question: str) -> Query:
        context = self.new_context(256)
        self._forward(context, self.sink_run())
        with self.tap:
            self._forward(context, self._plain_run(question))
            queries = self.tap.stacked_queries().float().mean(2)
        heads = queries.view(self.info.num_layers, self.info.num_kv_heads, -1, self.info.head_dim)
        return Query(heads.sum(2) * self.info.head_dim**-0.5, question)

    @torch.inference_mode()
    def logits(self, context: KVContext, run: TokenRun) -> torch.Tensor:
        return self.model.lm_head(self._forward(context, run)).float()

    @torch.inference_mode()
    def likelihoods(self, context: KVContext, run: TokenRun, answers: Sequence[str]) -> list[float]:
        first = self.logits(context, run)[-1:]
        found = []
        for answer in answers:
            ids = [*self._ids(answer), self.tokenizer.eos_token_id]
            body = self._text_run(ids[:-1], [(i,) * 3 for i in range(len(ids) - 1)], len(ids) - 1)
            scores = torch.cat([first, self.logits(context.fork(), body)]).log_softmax(-1)
            found.append(float(scores.gather(1, torch.tensor(ids, device=self.device)[:, None]).mean()))
        return found

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
        size = context.num_tokens
        warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature > 0 else [])
        generator = torch.Generator(device=self.device).manual_seed(seed)
        written: list[int] = []
        for _ in range(max_new_tokens):
            with self.tap if trace is not None else nullcontext():
                scores = self.model.lm_head(self._forward(context, run)[-1:]).float()
                if trace is not None:
                    trace.add(self._attention(context, run, size))
            scores = warpers(torch.tensor([written], dtype=torch.long, device=self.device), scores)  # type: ignore[arg-type]
            if temperature > 0:
                token = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
            else:
                token = int(scores.argmax(-1))
            if token in self.stop_ids:
                return
            written.append(token)
            yield self.tokenizer.decode(written, skip_special_tokens=True)
            run = self._text_run([token], [(0, 0, 0)], 1)

    def _attention(self, context: KVContext, run: TokenRun, size: int) -> torch.Tensor:
        """float32 [layers, heads, size]: what the last token of `run`, just forwarded under the tap, looked at."""
        assert isinstance(context, BufferContext)
        position = context.next_position - run.span + run.position_ids[:, -1:]
        queries = self.tap.stacked_queries()[:, :, -1:]
        cos, sin = self.language.rotary_emb(queries, position[:, None])
        queries = rotate(queries, cos[0], sin[0]).unflatten(1, (self.info.num_kv_heads, -1)).squeeze(3)
        keys = context.keys[:, :, : context.num_tokens]
        logits = torch.einsum("lhgd,lhnd->lhgn", queries, keys).float() * self.info.head_dim**-0.5
        return logits.softmax(-1)[..., :size].flatten(1, 2)


def _joined(keys: list[torch.Tensor], chunks: Sequence[ChunkKV]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Chunks one behind the other: keys joined along the tokens, position ids [P, S] from 0, and their whole span."""
    positions, at = [], 0
    for chunk in chunks:
        positions.append(chunk.position_ids + at)
        at += chunk.span
    return torch.cat(keys, dim=-2), torch.cat(positions, dim=1), at
