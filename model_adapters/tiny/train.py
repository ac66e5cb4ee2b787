"""Train the embedded model from nothing but the synthetic world: `python -m model_adapters.tiny.train`.

Three phases: the vision tower alone (warmup.py); the language model over contexts that grow, with the tower frozen; and
nothing else to download. State is saved as it goes under --runs; a new start resumes there, or from the shipped checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model_adapters.tiny.config import CHECKPOINT, build_model, build_tokenizer, load_checkpoint, save_checkpoint
from model_adapters.tiny.library import Library
from model_adapters.tiny.losses import Watcher, look_loss, match_loss, stamp_loss
from model_adapters.tiny.optim import Optimizers, save_state
from model_adapters.tiny.samples import QUESTION, Batch, Sampler
from model_adapters.tiny.searching import retrieval_loss
from model_adapters.tiny.states import StateHeads
from model_adapters.tiny.warmup import warm_up

STREAM_SECONDS = 48
SEARCHED = 2
"""Every how many steps the retrieval loss joins in."""
STAMP_WEIGHT, STATE_WEIGHT, SEARCH_WEIGHT, MATCH_WEIGHT = 0.2, 0.1, 0.2, 0.15
"""What the helping losses count beside that of the answers."""
REFRESHED = 4
"""Streams of the library that are replaced every ten steps."""
GROWTH = ((0, 4), (200, 8), (700, 16), (1800, 24))
"""(step, chunks): from this step on, stretches hold up to that many chunks."""


def inputs(model: Any, library: Library, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeds [B, S, D], the mask of visual tokens [B, S], and their DeepStack features [visual, D]."""
    embeds = model.get_input_embeddings()(batch.ids)
    visual = batch.rows >= 0
    cells = batch.rows[visual]
    embeds = embeds.masked_scatter(visual[..., None], library.embeds.flatten(0, 1)[cells].to(embeds.dtype))
    return embeds, visual, library.deepstack.flatten(0, 1)[cells].to(embeds.dtype)


def fix_numbers(model: Any, tokenizer: Any) -> None:
    """Leave the embeddings of whole numbers as they were drawn: as random codes they stay apart, and what is learned of one
    number (matching it, copying it) holds for all, also for those that training has hardly seen."""
    free = torch.ones(model.get_input_embeddings().weight.shape[0], 1)
    free[tokenizer.convert_tokens_to_ids("0") :] = 0
    model.get_input_embeddings().weight.register_hook(lambda grad: grad * free.to(grad.dtype))


def forward(model: Any, library: Library, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the labelled tokens [n, vocabulary] and their labels [n]."""
    embeds, visual, deepstack = inputs(model, library, batch)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=batch.positions,
        attention_mask=batch.attention_mask(),
        visual_pos_masks=visual,
        deepstack_visual_embeds=[deepstack],
        use_cache=False,
    ).last_hidden_state
    wanted = batch.labels != -100
    return model.lm_head(hidden[wanted]), batch.labels[wanted]


def exact_by_family(logits: torch.Tensor, batch: Batch) -> dict[str, list[bool]]:
    """Per family: whether each answer is right in all its tokens (teacher-forced)."""
    right = torch.ones_like(batch.labels, dtype=torch.bool)
    right[batch.labels != -100] = logits.argmax(-1) == batch.labels[batch.labels != -100]
    scores: dict[str, list[bool]] = {}
    for b, asked in enumerate(batch.asked):
        for q, a in enumerate(asked):
            scores.setdefault(a.family, []).append(bool(right[b][batch.owner[b] == QUESTION + q].all()))
    return scores


def train(
    model: Any, tokenizer, runs: Path, max_steps: int, tokens: int, matrix_lr: float, num_streams: int, seed: int
) -> None:
    """Train the language model with the tower frozen; saves state and checkpoint every few minutes."""
    device = torch.device("cpu")
    model.model.visual.requires_grad_(False)
    language = model.model.language_model
    fix_numbers(model, tokenizer)
    optimizers = Optimizers(language, matrix_lr=matrix_lr, other_lr=matrix_lr / 12)
    first_number = tokenizer.convert_tokens_to_ids("0")
    end_id = model.config.vision_end_token_id
    heads = StateHeads(model.get_input_embeddings().weight[first_number:].detach())
    head_optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-3, weight_decay=0.0)
    state, step = runs / "train.pt", 0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        step = saved["step"]
        if "heads" in saved:
            heads.load_state_dict(saved["heads"])
    rng = np.random.default_rng([seed, step])
    print("building the library", file=sys.stderr, flush=True)
    library = Library(model.model.visual, num_streams, STREAM_SECONDS, rng)
    held_out = Library(model.model.visual, 40, STREAM_SECONDS, np.random.default_rng(99))
    sampler = Sampler(tokenizer, library, rng)
    watcher = Watcher(language)
    torch._dynamo.config.recompile_limit = 64  # one graph per layer and kind of mask
    for layer in language.layers:
        layer.compile(dynamic=True)
    saved_at = started = time.monotonic()
    seen: dict[str, list[bool]] = {}
    mean_loss = mean_recall = mean_stamps = 0.0
    while step < max_steps:
        optimizers.set_scale(min(1.0, (step + 1) / 60) * min(1.0, 1.2 * (1 - step / max_steps) + 0.02))
        chunks = max(c for s, c in GROWTH if s <= step)
        if step % 10 == 0:
            library.refresh(REFRESHED)
        batch = sampler.batch(chunks if rng.random() < 0.5 else min(chunks, 10), tokens)
        with torch.autocast(device.type, torch.bfloat16):
            logits, labels = forward(model, library, batch)
            keys, looks = watcher.take()
            cos, sin = language.rotary_emb(keys[0], batch.positions)
            match = match_loss(keys, looks, batch, cos, sin, first_number) + look_loss(keys, looks, batch, cos, sin)
            answer_loss = F.cross_entropy(logits.float(), labels)
            stamps = stamp_loss(watcher.early, model, batch, first_number, end_id, rng)
            states, known = heads(watcher.middle, batch, end_id, rng)
            loss = answer_loss + STAMP_WEIGHT * stamps + STATE_WEIGHT * states + MATCH_WEIGHT * match
            if step % SEARCHED == 0:
                language(inputs_embeds=model.get_input_embeddings()(batch.question_ids), use_cache=False)
                _, queries = watcher.take()
                search_loss, recall = retrieval_loss(keys, queries, batch)
                loss = loss + SEARCH_WEIGHT * search_loss
                mean_recall = 0.9 * mean_recall + 0.1 * recall
        head_optimizer.zero_grad(set_to_none=True)
        optimizers.step(loss)
        head_optimizer.step()
        step += 1
        mean_loss = 0.95 * mean_loss + 0.05 * answer_loss.item()
        mean_stamps = 0.95 * mean_stamps + 0.05 * stamps.item()
        for family, hits in exact_by_family(logits, batch).items():
            seen[family] = (seen.get(family, []) + hits)[-400:]
        if step % 25 == 0:
            words = " ".join(f"{f} {np.mean(h):.2f}" for f, h in sorted(seen.items()))
            pace = (time.monotonic() - started) / 25
            print(
                f"step {step} chunks {chunks} loss {mean_loss:.3f} stamps {mean_stamps:.2f} match {match.item():.2f}"
                f" recall@8 {mean_recall:.2f}"
                f" states {' '.join(f'{k:.2f}' for k in known)}"
                f" | {words} | {pace:.2f} s/step",
                file=sys.stderr,
                flush=True,
            )
            started = time.monotonic()
        if step % 300 == 0:
            print("held out: " + held_out_words(model, tokenizer, held_out, watcher), file=sys.stderr, flush=True)
        if time.monotonic() - saved_at > 240 or step == max_steps:
            save_state(
                state,
                {"model": model.state_dict(), "optimizers": optimizers.state_dict(), "heads": heads.state_dict(), "step": step},
            )
            save_checkpoint(model, tokenizer, runs / "checkpoint")
            saved_at = time.monotonic()


@torch.no_grad()
def held_out_words(model: Any, tokenizer, library: Library, watcher: Watcher) -> str:
    """Accuracy by family on streams that training never saw, at three context lengths."""
    words = []
    for chunks in (8, 20, 40):
        sampler = Sampler(tokenizer, library, np.random.default_rng(5))
        scores: dict[str, list[bool]] = {}
        for _ in range(4):
            batch = sampler.batch(chunks, 8000)
            with torch.autocast("cpu", torch.bfloat16):
                logits, _ = forward(model, library, batch)
            watcher.take()
            for family, hits in exact_by_family(logits, batch).items():
                scores.setdefault(family, []).extend(hits)
        words.append(f"≤{chunks} chunks " + " ".join(f"{f} {np.mean(h):.3f}" for f, h in sorted(scores.items())))
    return " | ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny"), help="folder for state and logs")
    parser.add_argument("--max-steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=5000, help="tokens per step, about")
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--streams", type=int, default=300, help="encoded streams to cut contexts from at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="start from random weights, not from the shipped checkpoint")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    shipped = CHECKPOINT / "model.safetensors"
    if shipped.exists() and not args.fresh:
        model = load_checkpoint(CHECKPOINT)
    else:
        warm_up(model, args.runs / "warmup.pt", torch.device("cpu"))
    train(model, tokenizer, args.runs, args.max_steps, args.tokens, args.matrix_lr, args.streams, args.seed)


if __name__ == "__main__":
    main()
