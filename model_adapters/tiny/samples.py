"""Training contexts: a stretch of an encoded stream and many questions that cannot see each other.

One forward pass serves all questions of a stream. A chunk sees the sink and its recent window, as ingest shows it; a
question sees the sink, its own set of retrieved chunks with gaps and distractors, the full window, and itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from data.world import World
from model_adapters.tiny.asking import Asked, Asker, Stretch
from model_adapters.tiny.config import MAX_NUMBER
from model_adapters.tiny.labels import chunk_states
from model_adapters.tiny.library import CELLS, Library

SINK, PAD, QUESTION = -1, -2, 10_000
"""Values of `owner` for tokens that are not of a chunk; question q of a stream has owner QUESTION + q."""
GRID = 4


@dataclass
class Batch:
    """Padded token arrays of B stretches, S tokens each.

    ids, owner, labels: int64 [B, S]. positions: int64 [3, B, S]. rows: int64 [B, S], flat library cell of a visual token
    or -1. states: int64 [B, C, 6], see labels.py. visible: bool [B, Q, C]. asked: per stretch. question_ids: int64
    [B * Q, L], padded; question_mask likewise.
    """

    ids: torch.Tensor
    owner: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    states: torch.Tensor
    visible: torch.Tensor
    asked: list[list[Asked]]
    question_ids: torch.Tensor
    question_mask: torch.Tensor
    window: int

    def attention_mask(self) -> torch.Tensor:
        """bool [B, 1, S, S]: which token (row) sees which (column)."""
        own, other = self.owner[:, :, None], self.owner[:, None, :]
        size = self.ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()[None]
        in_view = (other >= 0) & (other < QUESTION) & (own < QUESTION) & (own >= 0) & (other >= own - self.window)
        sink = other == SINK
        same = own == other
        question = (own >= QUESTION) & (other >= 0) & (other < QUESTION)
        q_index = (self.owner - QUESTION).clamp(min=0)
        rows = self.visible.gather(1, q_index[:, :, None].expand(-1, -1, self.visible.shape[2]))
        seen = rows.gather(2, self.owner.clamp(0, self.visible.shape[2] - 1)[:, None, :].expand(-1, size, -1))
        mask = causal & (in_view | sink | same | (question & seen))
        return (mask | torch.eye(size, dtype=torch.bool)[None]).unsqueeze(1)


class Sampler:
    """Cuts batches from a library. `max_chunks` bounds the stretch, `tokens` the batch."""

    def __init__(self, tokenizer, library: Library, rng: np.random.Generator, num_questions: int = 18) -> None:
        self.tokenizer = tokenizer
        self.library = library
        self.rng = rng
        self.num_questions = num_questions
        self.asker = Asker(rng, num_questions)
        self.ids = {
            t: tokenizer.convert_tokens_to_ids(t)
            for t in ("<", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "user")
        }
        self.zero = tokenizer.convert_tokens_to_ids("0")
        self.tenth = tokenizer.convert_tokens_to_ids(".0 seconds>")

    def batch(self, max_chunks: int, tokens: int) -> Batch:
        rng = self.rng
        num = int(rng.integers(max(1, max_chunks // 2), max_chunks + 1))
        window = int(rng.integers(4, 13))
        size = max(2, tokens // (num * 12 + self.num_questions * 13))
        return self._pack([self._stretch(num, window) for _ in range(size)], window)

    def _stretch(self, num: int, window: int) -> tuple[list[tuple[int, np.ndarray, str]], list[Asked], np.ndarray]:
        """A random stretch: per chunk its library row, its kept cells and its time stamp; and the questions about it."""
        rng = self.rng
        stream = self.library.streams[int(rng.integers(len(self.library.streams)))]
        first = int(rng.integers(0, stream.world.seconds - num + 1))
        start = _start_time(rng, num)
        last = first + num - 1
        partial = num > 1 and last in stream.partial and rng.random() < 0.5
        stretch = Stretch(_cut(stream.world, first, num, start), num, start, window, partial)
        dropping = rng.random() < 0.85
        middle = 0.25 + (float(rng.uniform(0, 0.08)) if rng.random() < 0.4 else 0.0)
        chunks = []
        for k in range(num):
            row = stream.partial[last] if stretch.is_half(k) else int(stream.rows[first + k])
            keep = stream.keep[first + k] if dropping and k > 0 else np.ones(CELLS, bool)
            chunks.append((row, keep, f"{start + k + (0.0 if stretch.is_half(k) else middle):.1f}"))
        return chunks, self.asker.questions(stretch), chunk_states(stretch)

    def _pack(self, stretches, window: int) -> Batch:
        texts = [a.question for _, asked, _ in stretches for a in asked]
        prompts = self.tokenizer([f"{t}<|im_end|>\n<|im_start|>assistant\n" for t in texts])["input_ids"]
        answers = self.tokenizer([f"{a.answer}<|im_end|>" for _, asked, _ in stretches for a in asked])["input_ids"]
        bare = self.tokenizer(texts)["input_ids"]
        items = []
        for b, (chunks, asked, _) in enumerate(stretches):
            items.append(self._tokens(chunks, asked, prompts[b * len(asked) :], answers[b * len(asked) :]))
        size = max(len(item[0]) for item in items)
        ids, owner, labels, rows = (torch.full((len(items), size), fill) for fill in (0, PAD, -100, -1))
        positions = torch.zeros(3, len(items), size, dtype=torch.long)
        for b, (i, o, lab, r, p) in enumerate(items):
            n = len(i)
            ids[b, :n], owner[b, :n], labels[b, :n], rows[b, :n] = map(torch.tensor, (i, o, lab, r))
            positions[:, b, :n] = torch.tensor(p).T
        sink = [self.ids["<|im_start|>"], self.ids["user"]]
        length = max(len(q) for q in bare) + len(sink)
        question_ids = torch.zeros(len(bare), length, dtype=torch.long)
        question_mask = torch.zeros(len(bare), length, dtype=torch.bool)
        for j, q in enumerate(bare):
            question_ids[j, : len(q) + len(sink)] = torch.tensor(sink + q)
            question_mask[j, len(sink) : len(q) + len(sink)] = True
        asked_all = [asked for _, asked, _ in stretches]
        visible = torch.from_numpy(np.stack([[a.visible for a in asked] for asked in asked_all]))
        states = torch.from_numpy(np.stack([s for _, _, s in stretches]))
        return Batch(ids, owner, labels, positions, rows, states, visible, asked_all, question_ids, question_mask, window)

    def _tokens(self, chunks, asked: list[Asked], prompts: list[list[int]], answers: list[list[int]]):
        ids = [self.ids["<|im_start|>"], self.ids["user"]]
        owner, labels, rows = [SINK] * 2, [-100] * 2, [-1] * 2
        positions = [(0, 0, 0), (1, 1, 1)]
        at = 2
        ends = []
        for k, (row, keep, stamp) in enumerate(chunks):
            second, tenth = stamp.split(".")
            head = [self.ids["<"], self.zero + int(second), self.tenth + int(tenth), self.ids["<|vision_start|>"]]
            cells = np.flatnonzero(keep)
            ids += [*head, *([self.ids["<|video_pad|>"]] * len(cells)), self.ids["<|vision_end|>"]]
            rows += [-1] * 4 + [row * CELLS + int(c) for c in cells] + [-1]
            positions += [(at + i,) * 3 for i in range(4)]
            positions += [(at + 4, at + 4 + int(c) // GRID, at + 4 + int(c) % GRID) for c in cells]
            at += 4 + GRID
            positions.append((at,) * 3)
            at += 1
            owner += [k] * (len(cells) + 5)
            labels += [-100] * (len(cells) + 5)
            ends.append(at)
        for q, (a, prompt, answer) in enumerate(zip(asked, prompts, answers, strict=False)):
            ids += prompt + answer
            owner += [QUESTION + q] * (len(prompt) + len(answer))
            labels += [-100] * (len(prompt) - 1) + answer + [-100]
            rows += [-1] * (len(prompt) + len(answer))
            positions += [(ends[a.chunk] + i,) * 3 for i in range(len(prompt) + len(answer))]
        return ids, owner, labels, rows, positions


def _start_time(rng: np.random.Generator, num: int) -> int:
    high = int(rng.choice([1, 100, 700, 4000, MAX_NUMBER - num]))
    return int(rng.integers(0, max(1, min(high, MAX_NUMBER - num))))


def _cut(world: World, first: int, num: int, start: int) -> World:
    """The stretch [first, first + num) of `world`, with its clock moved to begin at `start`."""
    shift = start - first
    stays = [
        replace(s, start_seconds=s.start_seconds + shift, end_seconds=s.end_seconds + shift)
        for s in world.stays
        if s.end_seconds > first and s.start_seconds < first + num
    ]
    names = [s.name for s in stays]
    needles = tuple(s.name for s in stays if names.count(s.name) == 1 and s.start_seconds >= start)
    return World(start + num, tuple(stays), world.background, world.side, needles)
