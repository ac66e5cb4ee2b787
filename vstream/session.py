"""A stream session: feed it frames, ask it questions. One session per stream; many sessions may share one model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from data.errors import MemoryBankError, QuestionError
from data.frames import PTS_TOLERANCE_SECONDS, Chunker, Frame, sample
from memory import Bank, DurableBank, MemoryBank
from memory.base import add_span
from memory.files import Fault, no_fault
from memory.records import Moment, PlainRecords, Records
from memory.reference import reference_of
from memory.stored import StoredMemory
from memory.stored_records import StoredRecords
from memory.thinning import create_thinning
from memory.writer import WriteBehind
from model_adapters.base import ModelAdapter
from retrieval.base import Retriever
from retrieval.compose import compose_retriever
from retrieval.restored import Restored
from vstream.answer import Answer, Answerer, View, checked_question, is_text
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord, Ingest, Seen
from vstream.remembered import Joined, join, leave_off, opened_memory, stored_settings
from vstream.stats import Stats
from vstream.together import never, num_at_once, together
from vstream.turns import Turns
from vstream.unasked import Speaking, Unasked


class StreamSession(Speaking):
    """Watches one stream in bounded memory and answers about any moment of it.

    One thread feeds; any number of threads may ask at the same time. `turns` is shared by all sessions of one model.
    memory: the folder of a memory that outlives the session. An empty or missing folder becomes a new one; one that holds a
    memory is continued, or with `read_only` only answered from. Without it nothing is written to disk, but for what a disk tier
    in `folder` holds until `close`. MemoryBankError if the memory cannot be used, or is of another model or other settings.
    config: default: that of the memory, where there is one. fault: see `memory.files.Fault`.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        config: SessionConfig | None = None,
        *,
        turns: Turns | None = None,
        folder: Path | None = None,
        memory: Path | None = None,
        read_only: bool = False,
        fault: Fault = no_fault,
    ) -> None:
        self.adapter = adapter
        self.config = config or SessionConfig(**stored_settings(memory))
        self.turns = turns or Turns()
        c = self.config
        self.memory: StoredMemory | None = None
        self.bank: Bank
        self.records: Records
        with ExitStack() as opened:
            if memory is None:
                budgets = (c.gpu_bytes, c.ram_bytes, c.disk_bytes)
                self.bank = MemoryBank(adapter.device, *budgets, folder, codec=c.kv_codec, thinning=create_thinning(c.thinning))
                self.records = PlainRecords()
            else:
                self.memory = opened_memory(memory, adapter.info, c, read_only, fault)
                opened.callback(self.memory.close)
                self.bank = DurableBank(self.memory, adapter.device, c.gpu_bytes, c.ram_bytes, write=not read_only)
                self.records = StoredRecords(self.memory.manifest)
            opened.callback(self.bank.close)
            self.retriever: Retriever = compose_retriever(c.retrieval, c.gate, index_bytes=c.index_bytes)
            with self.turns.ingest():
                self._take_up()
            opened.pop_all()
        self.unasked = Unasked(adapter, c, self.ingest, self.turns)
        self.unasked.remember(self.memory, self.records, self.writes)
        self.answerer = Answerer(adapter, c, self.bank, self.retriever, self.turns)
        self.chunker = Chunker(c.fps, c.chunk_seconds)
        self.stats = Stats()
        self._joined: Joined | None = None
        self._dropped: set[int] = set()
        self._lock = threading.RLock()
        """Guards what a question looks at while frames come in: records, window, chunker, now."""

    @classmethod
    def open(cls, adapter: ModelAdapter, memory: Path, config: SessionConfig | None = None) -> StreamSession:
        """Answer from a stored memory without its source. Others may go on writing it; what they add is not seen."""
        return cls(adapter, config, memory=memory, read_only=True)

    def _take_up(self) -> None:
        """The window, the time and the index as they were when the memory was left."""
        self._now: float | None = None
        self._end: float | None = None
        self._last_id = -1
        """The last chunk that was stored when the memory was opened."""
        recent = self.records.recent(math.inf, self.config.window_seconds)
        if recent and self.memory is not None:
            self._now, self._end, self._last_id = recent[0].last_pts_seconds, recent[0].end_seconds, recent[0].chunk_id
        if self.memory is not None:
            self.retriever = Restored(self.retriever, self.memory, self._last_id)
        self.ingest = Ingest(self.adapter, self.config, self.bank, self.retriever)
        if recent:
            start = recent[0].end_seconds - self.config.window_seconds - 1e-6
            self.ingest.restore(self.bank.get(sorted(r.chunk_id for r in recent if r.start_seconds >= start)))
        if self.memory is not None and (left := reference_of(self.memory, self._last_id)) is not None:
            self.ingest.drop.take_up(left)

    def join(self, label: str = "", key: str = "", place: str = "") -> Joined:
        """A source begins: how its times continue those of the memory. Without a memory they stay as they are.

        label: the source, safe to show. key: tells recorded sources apart (`Source.recording_key`), so that one that was
        watched before goes on where it was left. place: tells live ones apart (`Source.place_key`). Asked for by itself with
        the first frame, if nobody has.
        """
        with self._lock:
            self._joined = Joined()
            if self.memory is not None:
                if not self.writes:
                    raise MemoryBankError(f"the memory {self.memory.folder} was opened for reading only")
                self._joined = join(self.memory, self.config.chunk_seconds, label, key, place, self._end)
                if self._joined.gap is not None:
                    self.bank.gaps = add_span(self.bank.gaps, self._joined.gap)
                    self.ingest.drop.clear()
            return self._joined

    @property
    def offset_seconds(self) -> float:
        """What is added to the times of the source that is being watched."""
        return (self._joined or self.join()).offset_seconds

    def feed(self, frames: Iterable[Frame], waits: Callable[[], bool] = never) -> Iterator[ChunkRecord]:
        """Watch frames in stream order; yields the record of every chunk as it is stored. Lazy: iterate it to make it run.
        waits: whether a further frame is there already (`Source.waits`); such frames are looked at together."""
        shifted = (replace(frame, pts_seconds=frame.pts_seconds + self.offset_seconds) for frame in frames)
        for group in together(sample(shifted, self.config.fps, self._now), waits, lambda: num_at_once(self.config, self.turns)):
            yield from self._push(group)

    def push(self, *frames: Frame) -> list[ChunkRecord]:
        """Watch frames that are already sampled to `fps`, together. Returns the records of the chunks they completed."""
        return self._push([replace(frame, pts_seconds=frame.pts_seconds + self.offset_seconds) for frame in frames])

    def _push(self, frames: Sequence[Frame]) -> list[ChunkRecord]:
        # Cut and stored in one turn: a question in between would see neither the open chunk nor the stored one.
        with self.turns.ingest(), self._lock:
            chunks = [chunk for frame in frames for chunk in self.chunker.push(frame)]
            self._now = frames[-1].pts_seconds
            self.stats.num_frames += len(frames)
            records = [self._store(seen) for seen in self.ingest.look(chunks)]
        self.unasked.speak()
        return records

    def finish(self) -> list[ChunkRecord]:
        """The stream has ended: store its last, unfinished chunk."""
        with self.turns.ingest(), self._lock:
            records = [self._store(seen) for seen in self.ingest.look(self.chunker.flush())]
        self.unasked.speak()
        self.unasked.finish()
        return records

    def _store(self, seen: Seen) -> ChunkRecord:
        record, dropped = self.ingest.add(seen)
        self.records.add(record)
        self._end = record.end_seconds
        self._dropped.update(dropped)
        # What memory dropped while it is still in the window can be asked about until it leaves it.
        gone = self._dropped - {kv.chunk_id for kv in self.ingest.window}
        self.records.remove(gone)
        self._dropped -= gone
        self.stats.count(record)
        self.unasked.look(record)
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
        at, now = self._now if at is None else at, self._now
        if not 0 <= at <= now + self.config.chunk_seconds + PTS_TOLERANCE_SECONDS:
            raise QuestionError(f"{at:g} s is outside of what has been watched; ask for a time from 0 to {now:g} s")
        recent = self.records.recent(at + PTS_TOLERANCE_SECONDS, self.config.window_seconds)
        until = recent[0].end_seconds if recent else 0.0
        ids = {r.chunk_id for r in recent if r.start_seconds >= until - self.config.window_seconds - 1e-6}
        held = {kv.chunk_id: kv for kv in self.ingest.window}
        missing = self.bank.get(sorted(ids - held.keys()))
        window = sorted([*(kv for i, kv in held.items() if i in ids), *missing], key=lambda kv: kv.start_seconds)
        partial = self.chunker.partial(at) if at >= now - self.config.chunk_seconds else None
        return View(at, until, tuple(window), self.ingest.partial(partial) if partial else None)

    @property
    def writer(self) -> WriteBehind | None:
        """What brings chunks to disk; None if nothing does."""
        return self.bank.writer if isinstance(self.bank, DurableBank) else None

    @property
    def writes(self) -> bool:
        """Whether there is a memory on disk, and this session writes it."""
        return self.writer is not None

    @property
    def index_use(self) -> tuple[bool, int]:
        """Whether index vectors are kept in 8 bits, and how many chunks share theirs, since `index_bytes` are spent."""
        return (index.is_coarse, index.num_pooled) if (index := self.retriever.index) else (False, 0)

    @property
    def has_seen(self) -> bool:
        """Whether there is anything to ask about."""
        return self._now is not None

    def num_visual_tokens(self) -> tuple[int, int]:
        """Visual tokens seen and kept since the memory began, or since the session did where there is none."""
        num_seen, num_kept = self.memory.manifest.num_visual_tokens(self._last_id) if self.memory else (0, 0)
        return num_seen + self.stats.num_seen_tokens, num_kept + self.stats.num_kept_tokens

    @property
    def now_seconds(self) -> float:
        """Stream time of the newest frame; 0 before the first."""
        return self._now or 0.0

    @property
    def timeline(self) -> Sequence[Moment]:
        """What there is to draw of all stored chunks, in stream order."""
        return self.records.moments()

    def record(self, chunk_id: int) -> ChunkRecord | None:
        """The record of one chunk, if it is still stored."""
        return self.records.get(chunk_id)

    def save(self) -> None:
        """Wait until all complete chunks are on disk. MemoryBankError if they cannot be written, or there is no memory."""
        if self.writer is None:
            raise MemoryBankError("this session has no memory to save to; give one when it is made (memory=DIR)")
        self.writer.flush()

    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        """Really remove the chunks that overlap a span: KV, vectors, records and thumbnails, in RAM and on disk.

        Returns their ids. KV of later chunks was made with these in view; that trace cannot be taken out again.
        """
        with self.turns.ingest(), self._lock:
            ids = sorted({*self.bank.forget(start_seconds, end_seconds), *self.ingest.in_view(start_seconds, end_seconds)})
            self.retriever.remove(ids)
            self.records.remove(ids)
            self.ingest.forget(ids)
            self.chunker.discard(start_seconds, end_seconds)
            self.unasked.watches.forget(start_seconds, end_seconds)  # or they write it down with the next chunk
        self.unasked.forget(start_seconds, end_seconds)
        return ids

    def close(self) -> None:
        """Free the memory; what waits to be written to disk is written. Idempotent."""
        if isinstance(self.bank, DurableBank):
            leave_off(self.bank, self.ingest.drop.leave())
        self.unasked.close()
        self.bank.close()

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
