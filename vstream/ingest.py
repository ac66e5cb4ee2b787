"""From a chunk to memory: resize, drop, embed, prefill behind the window, store, index."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from data.change import num_cells
from data.frames import Chunk
from memory.base import Bank, overlapping
from memory.records import ChunkRecord
from model_adapters.base import ChunkKV, KVContext, ModelAdapter, TokenRun, VisualTokens
from retrieval.base import Retriever
from vstream.config import SessionConfig
from vstream.token_drop import TokenDrop, create_token_drop

SINK_ID = -1
"""The id of what is never stored: the sink."""
THUMBNAIL_SIDE = 128
MANY_CELLS = 1024
"""Merged tokens beyond which chunks pass the tower one by one: it is busy with one, and memory is not for nothing."""


@dataclass(frozen=True)
class Seen:
    """A chunk that was looked at. grid: slots, rows, columns. keep: bool [N] on the CPU. visual: None if nothing is kept."""

    chunk: Chunk
    grid: tuple[int, int, int]
    keep: torch.Tensor
    visual: VisualTokens | None


class Ingest:
    """The frame path of one stream. `add` is called from one thread; `window` and `sink` are read by answers."""

    newest: tuple[ChunkKV, TokenRun]
    """What was stored last, and the tokens behind it; not there before the first chunk."""

    def __init__(self, adapter: ModelAdapter, config: SessionConfig, bank: Bank, retriever: Retriever) -> None:
        self.adapter = adapter
        self.config = config
        self.bank = bank
        self.retriever = retriever
        self.drop = create_token_drop(config, adapter.cell, adapter.frames_per_slot)
        self.window: deque[ChunkKV] = deque()
        self.live = adapter.new_context(1024)
        run = adapter.sink_run()
        keys, values = adapter.extend(self.live, run)
        self.sink = ChunkKV(SINK_ID, keys, values, run.position_ids, run.span, 0.0, 0.0)

    def look(self, chunks: Sequence[Chunk]) -> list[Seen]:
        """The next chunks through resizing, dropping and the tower, which they pass together. Each is then to be added, in this
        order. What is dropped is decided as for one chunk after the other."""
        return self._look(chunks, self.drop)

    def _look(self, chunks: Sequence[Chunk], drop: TokenDrop) -> list[Seen]:
        pictures = [self.adapter.picture(chunk) for chunk in chunks]
        tokens: list[VisualTokens | None]
        if drop.needs_tokens:
            tokens = [*self._embed(pictures)]
            masks = [drop.decide(picture, own) for picture, own in zip(pictures, tokens, strict=True)]
        else:
            masks = [drop.decide(picture, None) for picture in pictures]
            changed = iter(self._embed([picture for picture, keep in zip(pictures, masks, strict=True) if keep.any()]))
            tokens = [next(changed) if keep.any() else None for keep in masks]
        grids = [(len(p) // self.adapter.frames_per_slot, *num_cells(p, self.adapter.cell)) for p in pictures]
        return [Seen(*parts) for parts in zip(chunks, grids, masks, tokens, strict=True)]

    def _embed(self, pictures: Sequence[torch.Tensor]) -> list[VisualTokens]:
        """The tower on several pictures, in as few forwards as `MANY_CELLS` allows."""
        found: list[VisualTokens] = []
        group: list[torch.Tensor] = []
        num_held = 0
        for picture in pictures:
            rows, columns = num_cells(picture, self.adapter.cell)
            num_here = len(picture) // self.adapter.frames_per_slot * rows * columns
            if group and num_held + num_here > MANY_CELLS:
                found += self.adapter.embed_many(group)
                group, num_held = [], 0
            group.append(picture)
            num_held += num_here
        return found + (self.adapter.embed_many(group) if group else [])

    def add(self, seen: Seen) -> tuple[ChunkRecord, list[int]]:
        """Prefill and store one chunk. Returns its record and the ids of chunks that memory dropped to make room."""
        chunk, keep = seen.chunk, seen.keep
        kv, run = self._prefill(seen, self.live)
        self.newest = kv, run
        record = ChunkRecord(
            chunk_id=chunk.chunk_id,
            start_seconds=chunk.start_seconds,
            end_seconds=chunk.end_seconds,
            last_pts_seconds=chunk.pts_seconds[-1],
            num_tokens=kv.num_tokens,
            keep=keep.view(seen.grid).numpy(),
            thumbnail=thumbnail(chunk.frames[0]),
        )
        dropped = remember(self.bank, self.retriever, kv, record)
        self._slide(kv)
        return record, dropped

    def restore(self, window: Sequence[ChunkKV]) -> None:
        """Take up a stream where it was left. window: its last chunks, in stream order."""
        self.window = deque(window)
        self._renew()

    def in_view(self, start_seconds: float, end_seconds: float) -> list[int]:
        """The chunks of the window that overlap a span, also those that memory has dropped. MemoryBankError if it is none."""
        spans = [(kv.chunk_id, (kv.start_seconds, kv.end_seconds)) for kv in self.window]
        return overlapping(spans, start_seconds, end_seconds)

    def forget(self, chunk_ids: Collection[int]) -> None:
        """Take chunks out of the window, and out of what the next ones are compared with."""
        self.drop.clear()
        if any(kv.chunk_id in chunk_ids for kv in self.window):
            self.restore([kv for kv in self.window if kv.chunk_id not in chunk_ids])

    def partial(self, chunk: Chunk) -> ChunkKV:
        """The KV of an unfinished chunk, for one question; nothing that is stored changes."""
        (seen,) = self._look([chunk], self.drop.fork())
        return self._prefill(seen, self.live.fork())[0]

    def _prefill(self, seen: Seen, context: KVContext) -> tuple[ChunkKV, TokenRun]:
        chunk = seen.chunk
        run = self.adapter.chunk_run(chunk, seen.grid, seen.keep, seen.visual)
        keys, values = self.adapter.extend(context, run)
        return ChunkKV(chunk.chunk_id, keys, values, run.position_ids, run.span, chunk.start_seconds, chunk.end_seconds), run

    def _slide(self, newest: ChunkKV) -> None:
        """Move the window forward. What stays is given small positions again, so that they never grow."""
        self.window.append(newest)
        start = newest.end_seconds - self.config.window_seconds - 1e-6
        size = len(self.window)
        while self.window and self.window[0].start_seconds < start:
            self.window.popleft()
        if len(self.window) < size:
            self._renew()

    def _renew(self) -> None:
        num_tokens = self.sink.num_tokens + sum(kv.num_tokens for kv in self.window)
        self.live = self.adapter.new_context(2 * num_tokens)
        self.adapter.append(self.live, [self.sink, *self.window])


def remember(bank: Bank, retriever: Retriever, kv: ChunkKV, record: ChunkRecord | None = None) -> list[int]:
    """Store and index one chunk. Returns the ids of chunks that memory dropped to make room; what memory thinned is indexed
    anew."""
    dropped = bank.put(kv, record)
    # Added first: where no tier can hold it, the chunk itself is among the dropped.
    retriever.add(kv)
    retriever.remove(dropped)
    thinned = bank.take_thinned()
    retriever.remove([thinner.chunk_id for thinner in thinned])
    for thinner in thinned:
        retriever.add(thinner)
    return dropped


def thumbnail(frame: np.ndarray) -> bytes:
    """A JPEG of at most 128 x 128 pixels. frame: uint8 [3, H, W]."""
    image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()
