"""A stream session: feed it frames, ask it questions. One session per stream; many sessions may share one model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from data.errors import QuestionError
from data.frames import PTS_TOLERANCE_SECONDS, Chunk, Chunker, Frame, sample
from memory import MemoryBank
from model_adapters.base import ModelAdapter
from retrieval.compose import compose_retriever
from vstream.answer import Answer, Answerer, View, checked_question, is_text
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord, Ingest
from vstream.stats import Stats
from vstream.turns import Turns


class StreamSession:
    """Watches one stream in bounded memory and answers about any moment of it.

    One thread feeds; any number of threads may ask at the same time. `turns` is shared by all sessions of one model.
    `folder` is where the disk tier lies; without it nothing is written to disk. What the session wrote is removed at `close`.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        config: SessionConfig | None = None,
        *,
        turns: Turns | None = None,
        folder: Path | None = None,
    ) -> None:
        self.adapter = adapter
        self.config = config or SessionConfig()
        self.turns = turns or Turns()
        c = self.config
        self.bank = MemoryBank(adapter.device, c.gpu_bytes, c.ram_bytes, c.disk_bytes, folder, codec=c.kv_codec)
        self.retriever = compose_retriever(c.retrieval, c.gate)
        with self.turns.ingest():
            self.ingest = Ingest(adapter, c, self.bank, self.retriever)
        self.answerer = Answerer(adapter, c, self.bank, self.retriever, self.turns)
        self.chunker = Chunker(c.fps, c.chunk_seconds)
        self.stats = Stats()
        self._records: dict[int, ChunkRecord] = {}
        self._dropped: set[int] = set()
        self._now: float | None = None
        self._lock = threading.RLock()
        """Guards what a question looks at while frames come in: records, window, chunker, now."""

    def feed(self, frames: Iterable[Frame]) -> Iterator[ChunkRecord]:
        """Watch frames in stream order; yields the record of every chunk as it is stored. Lazy: iterate it to make it run."""
        for frame in sample(frames, self.config.fps, after_seconds=self._now):
            yield from self.push(frame)

    def push(self, frame: Frame) -> list[ChunkRecord]:
        """Watch one frame that is already sampled to `fps`. Returns the records of the chunks it completed."""
        # Cut and stored in one turn: a question in between would see neither the open chunk nor the stored one.
        with self.turns.ingest(), self._lock:
            self._now = frame.pts_seconds
            self.stats.num_frames += 1
            return [self._store(chunk) for chunk in self.chunker.push(frame)]

    def finish(self) -> list[ChunkRecord]:
        """The stream has ended: store its last, unfinished chunk."""
        with self.turns.ingest(), self._lock:
            return [self._store(chunk) for chunk in self.chunker.flush()]

    def _store(self, chunk: Chunk) -> ChunkRecord:
        record, dropped = self.ingest.add(chunk)
        self._records[record.chunk_id] = record
        self._dropped.update(dropped)
        # What memory dropped while it is still in the window can be asked about until it leaves it.
        in_window = {kv.chunk_id for kv in self.ingest.window}
        for chunk_id in self._dropped - in_window:
            self._records.pop(chunk_id, None)
            self._dropped.discard(chunk_id)
        self.stats.count(record)
        return record

    def ask(self, question: str, at: float | None = None, turns: Sequence[tuple[str, str]] = ()) -> Iterator[Answer]:
        """Ask about the stream as it was at stream time `at` (default: now). Yields the growing answer; close to cancel.

        turns: earlier (question, answer) pairs of the dialogue. Raises QuestionError for an empty or over-long question
        and for a time outside what has been watched.
        """
        question = checked_question(question)
        with self.turns.answer(), self._lock:
            view = self.view(at)
        for answer in self.answerer.answer(question, self.ingest.sink, view, turns):
            if answer.done:
                self._count(answer)
            yield answer

    def answer(self, question: str, at: float | None = None) -> Answer:
        """The finished answer to `question`."""
        *_, last = self.ask(question, at)
        return last

    def choose(self, question: str, options: Sequence[str], at: float | None = None) -> tuple[Answer, int]:
        """The option that the model finds likeliest as the answer, and its number. Raises QuestionError as `ask` does."""
        question = checked_question(question)
        if not options or not all(option.strip() and is_text(option) for option in options):
            raise QuestionError("there are no options, or one of them is empty or no text; give each in words")
        with self.turns.answer(), self._lock:
            view = self.view(at)
        answer, choice = self.answerer.choose(question, options, self.ingest.sink, view)
        self._count(answer)
        return answer, choice

    def _count(self, answer: Answer) -> None:
        with self._lock:
            self.stats.answered(answer)

    def view(self, at: float | None = None) -> View:
        """What a question at stream time `at` (default: now) may see. Raises QuestionError for a time that was not watched."""
        if self._now is None:
            raise QuestionError("nothing has been watched yet; wait for the first frame")
        now = self._now
        at = now if at is None else at
        if not 0 <= at <= now + self.config.chunk_seconds + PTS_TOLERANCE_SECONDS:
            raise QuestionError(f"{at:g} s is outside of what has been watched; ask for a time from 0 to {now:g} s")
        recent = self._recent(at)
        until = recent[0].end_seconds if recent else 0.0
        start = until - self.config.window_seconds - 1e-6
        ids = {r.chunk_id for r in recent if r.start_seconds >= start}
        held = {kv.chunk_id: kv for kv in self.ingest.window}
        missing = self.bank.get(sorted(ids - held.keys()))
        window = sorted([*(kv for i, kv in held.items() if i in ids), *missing], key=lambda kv: kv.start_seconds)
        partial = self.chunker.partial(at) if at >= now - self.config.chunk_seconds else None
        return View(at, until, tuple(window), self.ingest.partial(partial) if partial else None)

    def _recent(self, at: float) -> list[ChunkRecord]:
        """Records of chunks that were complete at `at` and may be in its window, newest first. Looks at no older ones."""
        recent: list[ChunkRecord] = []
        for record in reversed(self._records.values()):
            if record.last_pts_seconds > at + PTS_TOLERANCE_SECONDS:
                continue
            if recent and record.start_seconds < recent[0].end_seconds - self.config.window_seconds - 1e-6:
                break
            recent.append(record)
        return recent

    @property
    def now_seconds(self) -> float:
        """Stream time of the newest frame; 0 before the first."""
        return self._now or 0.0

    @property
    def timeline(self) -> list[ChunkRecord]:
        """The records of all stored chunks, in stream order."""
        # No lock: a page that draws this must not wait for the chunk that is being encoded. Copying a dict's values is atomic.
        return list(self._records.values())

    def record(self, chunk_id: int) -> ChunkRecord | None:
        """The record of one chunk, if it is still stored."""
        return self._records.get(chunk_id)

    def close(self) -> None:
        """Free the memory. Idempotent."""
        self.bank.close()

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
