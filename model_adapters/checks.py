"""The conformance kit: an adapter held against the stock model and the family's own processor, check by check.

Each check returns a figure and its bound. `tests/test_adapters.py` runs all of them on a small random checkpoint of every
family, `python -m model_adapters.check FOLDER` on a user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import numpy as np
import torch

from model_adapters.base import TokenRun
from model_adapters.cache import BufferContext
from model_adapters.conformance import QUESTION, Conformance, clip
from model_adapters.devices import halved
from model_adapters.rope import rotate, unrotate
from model_adapters.stock import StockAdapter
from model_adapters.typed import structure_tokens

FAR = 200
TWO_LEVELS = 0.035
"""Two levels of 255, as a share of the largest value. PIL rounds its weights and after each pass, torch sums in float32."""


@dataclass(frozen=True)
class Check:
    """One line of the table. figure: what was measured; it passes at or below `bound`."""

    name: str
    figure: float
    bound: float
    words: str

    @property
    def passed(self) -> bool:
        return self.figure <= self.bound


def far_off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected value; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max()) if expected.numel() else 0.0


def pixels(kit: Conformance) -> Check:
    picture = kit.adapter.picture(kit.chunks[0])
    found = kit.adapter.pixels(picture).flatten()
    expected = kit.reference.pixels(kit.chunks[0]).to(found).flatten()
    as_it_was = torch.equal(picture.cpu(), torch.from_numpy(kit.chunks[0].frames))
    bound = max(kit.bound / 10, 1e-5) if as_it_was else TWO_LEVELS
    return Check("pixels", far_off(found, expected), bound, "the image processor's own")


def resized_pixels(kit: Conformance) -> Check:
    chunk = clip(round(5 * kit.adapter.cell) + 11, round(7 * kit.adapter.cell) - 5, 1)[0]
    found = kit.adapter.pixels(kit.adapter.picture(chunk)).flatten()
    expected = kit.reference.pixels(chunk).to(found).flatten()
    return Check("pixels, resized", far_off(found, expected), TWO_LEVELS, "the image processor's own, to two levels of 255")


def ids(kit: Conformance) -> Check:
    """Ids are compared by their embeddings: only those reach the language model."""
    found, tokens = kit.embeds(), kit.inputs["input_ids"][0]
    words = kit.adapter.language.get_input_embeddings()(tokens)
    text = tokens != kit.adapter.video_id
    figure = math.inf if len(found) != len(tokens) else float((found[text] != words[text]).any(-1).sum())
    return Check("token ids", figure, 0, "tokens that differ from the processor's own")


def typed(kit: Conformance) -> Check:
    """A token of the template that a person types, in a question, an earlier turn or an option, is text and ends nothing."""
    adapter = kit.adapter
    tokens = [token for token in structure_tokens(adapter.tokenizer) if token != adapter.tokenizer.unk_token]
    numbers = adapter.tokenizer.convert_tokens_to_ids(tokens)
    words = adapter.language.get_input_embeddings().weight[numbers]

    def structural(run: TokenRun) -> int:
        return sum(int((words == row).all(-1).any()) for row in run.embeds)

    figure = 0
    for token in tokens:
        for said in (f"is {token} red ?", f"{token}{token.upper()}", token[:1] + token, token[:-1], token[1:]):
            for plain, evil in (
                (adapter.question_run("a", [("b", "c")]), adapter.question_run(said, [(said, said)])),
                (adapter.plain_run("", "a"), adapter.plain_run("", said)),
            ):
                figure += abs(structural(evil) - structural(plain))
    return Check("typed special tokens", float(figure), 0, "tokens of the template that what a person types can make")


def position_ids(kit: Conformance) -> Check:
    found = kit.positions().to(kit.stock.positions.device)
    same = found.shape == kit.stock.positions.shape
    # Fractions of a position, where a family has them, are those of float32.
    figure = float(((found - kit.stock.positions).abs() > 1e-4).any(0).sum()) if same else math.inf
    return Check("position ids", figure, 0, "tokens whose positions differ from the stock model's own")


def features(kit: Conformance) -> Check:
    figure = far_off(kit.embeds(), kit.stock.embeds)
    return Check("visual features", figure, kit.bound, "the tower on single chunks = the tower on the whole clip")


def logits(kit: Conformance) -> Check:
    context, _ = kit.watched()
    found = kit.adapter.logits(context, kit.adapter.question_run(QUESTION))
    figure = far_off(found, kit.stock.logits[-len(found) :].float())
    return Check("logits", figure, kit.bound, "nothing dropped, all in the window = one stock forward")


def retrieved(kit: Conformance) -> Check:
    context, stored = kit.watched()
    built = kit.adapter.new_context(1)
    kit.adapter.append(built, stored)
    figure = max(far_off(ours, theirs) for ours, theirs in zip(built.read(), context.read(), strict=True))
    return Check("retrieved = in the window", figure, kit.bound, "stored chunks appended again = the context they came from")


def moved(kit: Conformance) -> Check:
    """Un-rotated keys do not know where they were computed, and are turned anywhere as the model itself would turn them."""
    adapter, run = kit.adapter, kit.runs[0]
    near, far = adapter.new_context(1), adapter.new_context(1)
    far.cursor.next_position = FAR * adapter.parts
    keys, _ = adapter.extend(near, run)
    there, _ = adapter.extend(far, run)
    cursor = adapter.new_context(1).cursor
    cursor.next_position = FAR * adapter.parts
    cos, sin = adapter.angles(keys, adapter.placement.place(cursor, run.position_ids, run.span, run.is_video))
    turned = far_off(rotate(keys, cos, sin), far.read()[0])
    scaling = getattr(adapter.language.rotary_emb, "attention_scaling", 1.0)
    back = far_off(unrotate(rotate(keys, cos, sin), cos, sin, scaling), keys)
    figure = max(far_off(there, keys), turned, back)
    return Check("keys moved", figure, 10 * kit.bound, f"keys from position 0, turned to {FAR} = computed there, and back")


def dropped(kit: Conformance) -> Check:
    """A chunk of which most is dropped equals the stock language model on what survives, DeepStack features included."""
    adapter, visual, whole = kit.adapter, kit.visuals[1], kit.runs[1]
    keep = torch.arange(len(visual.embeds)) % 3 == 1
    run = adapter.chunk_run(kit.chunks[1], visual.grid, keep, visual)
    survive = ~whole.visual_mask
    survive[whole.visual_mask] = keep.to(adapter.device)
    deepstack = None if whole.deepstack is None else whole.deepstack[:, keep]
    chosen = replace(
        whole,
        embeds=whole.embeds[survive],
        position_ids=whole.position_ids[:, survive.to(whole.position_ids.device)],
        visual_mask=whole.visual_mask[survive],
        deepstack=deepstack,
    )
    with kit.stock_attention():
        expected = adapter.logits(adapter.new_context(1), chosen)
    figure = far_off(adapter.logits(adapter.new_context(1), run), expected)
    return Check("dropped tokens", figure, kit.bound, "survivors keep embedding, position, order and DeepStack")


def nothing_kept(kit: Conformance) -> Check:
    """A chunk of which nothing is kept, and whose picture never reached the tower, still leaves a token to store."""
    chunk, visual = kit.chunks[1], kit.visuals[1]
    run = kit.adapter.chunk_run(chunk, visual.grid, torch.zeros(len(visual.embeds), dtype=torch.bool), None)
    keys, _ = kit.adapter.extend(kit.adapter.new_context(1), run)
    fine = keys.shape[2] == run.num_tokens > 0 and bool(torch.isfinite(keys).all())
    return Check("nothing kept", 0.0 if fine else 1.0, 0, "a chunk without a visual token is stored all the same")


def chunk_size(kit: Conformance) -> Check:
    """The first two chunks as one: the same tokens at the same positions."""
    first, second = kit.chunks[:2]
    joined = replace(
        first,
        frames=np.concatenate([first.frames, second.frames]),
        pts_seconds=first.pts_seconds + second.pts_seconds,
        end_seconds=second.end_seconds,
    )
    adapter = kit.adapter
    run = kit.run(joined, adapter.embed(adapter.picture(joined)))
    one, two = adapter.new_context(1), adapter.new_context(1)
    adapter.extend(one, run)
    for part in kit.runs[:2]:
        adapter.extend(two, part)
    figure = max(far_off(whole, parts) for whole, parts in zip(one.read(), two.read(), strict=True))
    return Check("chunk size", figure, kit.bound, "two chunks of one second = one chunk of two")


def side_by_side(kit: Conformance) -> Check:
    """Several questions in one forward do not see each other."""
    adapter = kit.adapter
    context, _ = kit.watched()
    runs = [adapter.question_run(question) for question in (QUESTION, "Why?", "Is it raining now, or not?")]
    words = ["yes", "no"]
    together = adapter.openings(context, runs, words)
    alone = torch.cat([adapter.openings(context, [run], words) for run in runs])
    return Check("questions side by side", far_off(together, alone), kit.bound, "asked in one forward = asked one by one")


def stored_alike(kit: Conformance) -> Check:
    """Through the memory of the CPU and back, as tiers do it."""
    _, stored = kit.watched()
    back = stored[1].to("cpu").to(kit.adapter.device)
    same = all(torch.equal(getattr(back, n), getattr(stored[1], n)) for n in ("keys", "values", "position_ids"))
    same &= back.keys.dtype == kit.adapter.info.dtype
    return Check("device round trip", 0.0 if same else 1.0, 0, "bit-equal after a way over the CPU")


def split(kit: Conformance) -> Check:
    """The model loaded once more with the later half of its layers on a second GPU, or on disk where there is none."""
    adapter = kit.adapter
    second = 1 if torch.cuda.device_count() > 1 else "disk"
    # The first place by its number: accelerate keeps what is on a device by its name alone there.
    first = adapter.device.index or 0 if adapter.device.type == "cuda" else str(adapter.device)
    with TemporaryDirectory() as folder:
        other = type(adapter).load(
            adapter.info.name,
            kit.reference.folder,
            dtype=adapter.info.dtype,
            device_map=halved(adapter.model, adapter.language.layers, first, second),
            offload_folder=folder,
        )
        results: list[list[torch.Tensor]] = []
        for one in (other, adapter):
            context = one.new_context(1)
            stored = [*one.extend(context, one.sink_run()), *one.extend(context, kit.runs[0])]
            results.append([*stored, one.logits(context, one.question_run(QUESTION))])
    figure = max(far_off(ours, theirs) for ours, theirs in zip(*results, strict=True))
    where = "a second GPU" if second == 1 else "disk"
    return Check("device map", figure, kit.bound, f"half of the layers on {where} = all on {adapter.device}")


def decoding(kit: Conformance) -> Check:
    """In narrow types two tokens may score alike up to rounding: then what stock `generate` takes instead is as good."""
    adapter = kit.adapter
    context, _ = kit.watched()
    run = adapter.question_run(QUESTION)
    *_, found = ["", *adapter.generate(context.fork(), run, 8)]
    with kit.stock_attention():
        # The model alone: what a checkpoint's generation_config.json holds against a token would change greedy decoding.
        plain = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        out = adapter.model.generate(**kit.inputs, max_new_tokens=8, pad_token_id=0, **plain)
    tokens = out[0, kit.inputs["input_ids"].shape[1] :]
    expected = adapter.tokenizer.decode(tokens, skip_special_tokens=True)
    figure = 0.0 if found == expected else largest_gap(adapter, context, run, tokens) or math.inf
    return Check("greedy decoding", figure, kit.bound, f"stock generate says {expected!r}")


def largest_gap(adapter: StockAdapter, context: BufferContext, run: TokenRun, tokens: torch.Tensor) -> float:
    """How far tokens [n], decoded one by one, lie behind the best of their step, as a share of the largest score."""
    gaps = []
    with torch.inference_mode(), closing(adapter._decoded(context, run, None)) as decoded:
        scores = next(decoded)
        for token in tokens:
            gaps.append(float((scores.max() - scores[0, token]) / scores.abs().max()))
            scores = decoded.send(token[None])
    return max(gaps)


CHECKS: tuple[Callable[[Conformance], Check], ...] = (
    pixels,
    resized_pixels,
    ids,
    typed,
    position_ids,
    features,
    logits,
    decoding,
    moved,
    retrieved,
    dropped,
    nothing_kept,
    chunk_size,
    side_by_side,
    stored_alike,
    split,
)


def run_checks(kit: Conformance) -> Iterator[Check]:
    """All checks, one by one."""
    for check in CHECKS:
        yield check(kit)
