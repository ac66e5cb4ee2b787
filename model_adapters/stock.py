"""What every stock video LLM shares above its language model: loading, the prompt from the chat template, the layout of runs.

A family is one file with a subclass of `StockAdapter` and one row in `registry.FAMILIES`. It fills in
1. the class attributes below: the model class in transformers, the tokens it needs, what its template writes for a video;
2. `read_pixels(folder)`: how pixels are prepared, from the checkpoint's preprocessor_config.json; a value with at least `cell`
   and `temporal_patch_size`;
3. `picture(chunk)`, `pixels(picture)` and `embed_many(pictures)`: the resized picture, what the tower is fed with, and what it
   returns for several pictures through the model's own feature method;
4. `chunk_run(chunk, grid, keep, visual)`: which tokens stand for a chunk and at which positions; see `Layout`.
Everything else is inherited. tests/checkpoints.py gets a builder of a small random checkpoint, and the conformance kit
(tests/test_adapters.py, `python -m model_adapters.check FOLDER`) says what is not right yet.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from data.errors import AdapterError
from data.frames import Chunk
from model_adapters.base import ModelInfo, TokenRun, VisualTokens
from model_adapters.decoder import DecoderAdapter
from model_adapters.fingerprint import fingerprint
from model_adapters.preprocess import PixelSpec
from model_adapters.stock_model import load_model, load_tokenizer
from model_adapters.weights import AGAIN

MARKS = ("\u2063question\u2063", "\u2063answer\u2063", "\u2063next\u2063")
"""Stand for what is said while the chat template is rendered, to be split at; no template contains them."""


class Layout:
    """The tokens of a run as they are laid out: ids, and positions [P, S] counted from the run's own start."""

    def __init__(self, num_axes: int) -> None:
        self.num_axes = num_axes
        self.ids: list[int] = []
        self.positions: list[torch.Tensor] = []
        self.at = 0

    def text(self, ids: Sequence[int]) -> None:
        """Tokens at consecutive positions."""
        self.visual(ids, torch.arange(len(ids)).expand(self.num_axes, -1), len(ids))

    def visual(self, ids: Sequence[int], positions: torch.Tensor, span: int) -> None:
        """Tokens at positions [P, S] counted from here; what follows starts `span` further on."""
        self.ids += ids
        self.positions.append(positions + self.at)
        self.at += span

    @property
    def position_ids(self) -> torch.Tensor:
        return torch.cat(self.positions, dim=1)


class StockAdapter(DecoderAdapter):
    """A checkpoint of one family, loaded with stock transformers. `spec` is what `read_pixels` made."""

    model_class: ClassVar[str]
    """Name of the model's class in transformers."""
    special_tokens: ClassVar[tuple[str, ...]]
    """What the tokenizer must know; the first of them is the placeholder of one visual token."""
    video_part: ClassVar[str]
    """What the chat template writes for a video. What it says of it before stays in the sink, what follows in the question."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """How the names of weights begin that a checkpoint may hold and that are not loaded."""
    num_axes: ClassVar[int] = 1
    """Axes of the position ids: 1 for plain RoPE, 3 for M-RoPE."""

    def __init__(self, model: Any, tokenizer: Any, spec: Any, name: str, print_: str) -> None:
        self.spec = spec
        text = model.config.get_text_config()
        info = ModelInfo(
            name=name,
            family=type(model.config).model_type,
            # Stored positions of other parts would be read wrongly.
            fingerprint=print_ if self.parts == 1 else f"{print_}-{self.parts}",
            num_layers=text.num_hidden_layers,
            num_kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            num_position_axes=self.num_axes,
            dtype=model.dtype,
        )
        model.eval().requires_grad_(False)
        video_id = tokenizer.convert_tokens_to_ids(self.special_tokens[0])
        super().__init__(model, model.get_decoder(), tokenizer, video_id, info)
        self.cell = spec.cell
        self.frames_per_slot = spec.temporal_patch_size
        self.head, self.before, self.middle, self.between, self.tail = self._prompt_parts()

    @classmethod
    def load(
        cls,
        name: str,
        folder: Path,
        *,
        attn_implementation: str | None = None,
        max_pixels: int | None = None,
        **options: Any,
    ) -> StockAdapter:
        """Load from a local folder in the layout of a hub checkpoint. Raises AdapterError with one line.

        attn_implementation: of the language model; default: ours, which needs no mask. max_pixels: area of a frame. Other
        options go to `from_pretrained`.
        """
        model = load_model(name, folder, cls.model_class, cls.left_out, attn_implementation, options)
        tokenizer = load_tokenizer(name, folder)
        missing = [token for token in cls.special_tokens if token not in tokenizer.get_vocab()]
        if missing:
            raise AdapterError(
                f"the tokenizer of {name} lacks the special token {missing[0]}; use the checkpoint's own tokenizer"
            )
        num_known = model.get_input_embeddings().num_embeddings
        beyond = [token for token in cls.special_tokens if tokenizer.convert_tokens_to_ids(token) >= num_known]
        if beyond:
            raise AdapterError(
                f"the tokenizer of {name} gives {beyond[0]} a number beyond the {num_known:,} tokens of its model; use the"
                " checkpoint's own tokenizer"
            )
        spec = cls.read_pixels(folder)
        belongs_together(name, spec, model.config.vision_config)
        if max_pixels is not None:
            spec = limited(name, spec, max_pixels)
        return cls(model, tokenizer, spec, name, fingerprint(folder, max_pixels))

    @classmethod
    def read_pixels(cls, folder: Path) -> Any:
        """How this checkpoint prepares pixels."""
        return PixelSpec.from_folder(folder)

    def _prompt_parts(self) -> tuple[str, str, str, str, str]:
        """The chat template's text before the video, between it and the question, between question and answer, between an
        answer and the next question, and after the last question."""
        if not self.tokenizer.chat_template:
            raise AdapterError(f"{self.info.name} has no chat template (chat_template.jinja); {AGAIN}")
        question, answer, following = ({"type": "text", "text": mark} for mark in MARKS)
        rendered = self.tokenizer.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "video"}, question]},
                {"role": "assistant", "content": [answer]},
                {"role": "user", "content": [following]},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        parts = []
        for mark in (self.video_part, *MARKS):
            part, found, rendered = rendered.partition(mark)
            if not found:
                raise AdapterError(
                    f"the chat template of {self.info.name} has no place for a video and two questions about it;"
                    " use the checkpoint's own template"
                )
            parts.append(part)
        return parts[0], parts[1], parts[2], parts[3], without_thought(rendered)

    @abstractmethod
    def pixels(self, picture: torch.Tensor) -> torch.Tensor:
        """What the vision tower is fed with for a picture: the family's own pixel values."""

    def sink_run(self) -> TokenRun:
        return self.plain_run(self.head)

    def question_run(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> TokenRun:
        earlier = [part for asked, answered in turns for part in (asked, self.middle, answered, self.between)]
        return self.plain_run(self.before, *earlier, question, self.tail)

    def laid_out(self, layout: Layout, keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        """A layout as a run, with the kept visual tokens in their places. keep: bool [N]; visual: None where none is kept."""
        run = replace(self.token_run(layout.ids, layout.position_ids, layout.at), is_video=True)
        if visual is None:
            return run
        kept = keep.flatten().to(self.device)
        embeds = run.embeds.masked_scatter(run.visual_mask[:, None], visual.embeds.to(self.device)[kept])
        deepstack = None if visual.deepstack is None else visual.deepstack.to(self.device)[:, kept]
        return replace(run, embeds=embeds, deepstack=deepstack)

    def slot_seconds(self, chunk: Chunk, slot: int) -> float:
        """Time stamp of a temporal slot: the mean of its first and last frame's pts; a short slot repeats its last frame."""
        last = len(chunk.pts_seconds) - 1
        first = slot * self.frames_per_slot
        return (chunk.pts_seconds[min(first, last)] + chunk.pts_seconds[min(first + self.frames_per_slot - 1, last)]) / 2


def without_thought(prompt: str) -> str:
    """A prompt that opens a thought, as thinking checkpoints' do, with the thought left empty: the answer comes at once, and
    the first token of a yes or no is that word. Written as Qwen3's own template does where thinking is switched off."""
    opened = prompt.rstrip()
    return f"{opened}\n\n</think>\n\n" if opened.endswith("<think>") else prompt


def joined(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """What a tower made of several inputs, in one piece [N, D]. Some releases of transformers part it by input, some do not."""
    return features if isinstance(features, torch.Tensor) else torch.cat(tuple(features))


def shared_out(
    embeds: torch.Tensor, grids: Sequence[tuple[int, int, int]], deepstack: torch.Tensor | None = None
) -> list[VisualTokens]:
    """The tokens of several pictures that lie one behind the other: embeds [N, D], deepstack [levels, N, D]."""
    sizes = [slots * rows * columns for slots, rows, columns in grids]
    levels = [None] * len(sizes) if deepstack is None else deepstack.split(sizes, dim=1)
    return [VisualTokens(*parts) for parts in zip(embeds.split(sizes), grids, levels, strict=True)]


def limited(name: str, spec: Any, max_pixels: int) -> PixelSpec:
    """`spec` with frames of at most this area. Raises AdapterError where a family's frames have one size only."""
    if not isinstance(spec, PixelSpec):
        raise AdapterError(f"frames of {name} have one size, which max_pixels {max_pixels} cannot change; leave it out")
    if max_pixels < spec.cell**2:
        raise AdapterError(f"max_pixels is {max_pixels}, less than one token of {name}; give at least {spec.cell**2}")
    return replace(spec, max_pixels=max_pixels, min_pixels=min(spec.min_pixels, max_pixels))


def belongs_together(name: str, spec: Any, vision: Any) -> None:
    """Raises AdapterError where pixels are cut into other patches than the tower takes. vision: the tower's config."""
    for ours, its in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"), ("temporal_patch_size",) * 2):
        wanted, given = getattr(vision, its, None), getattr(spec, ours, None)
        if isinstance(spec, PixelSpec) and wanted is not None and wanted != given:
            raise AdapterError(f"the processor of {name} has {ours} {given}, and its config.json {wanted}; {AGAIN}")
