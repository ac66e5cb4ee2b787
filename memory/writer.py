"""Write-behind: one thread that commits chunks to a stored memory, a bounded time of stream behind the newest."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from data.errors import MemoryBankError
from memory.records import ChunkRecord
from memory.rows import Gap
from memory.stored import Pending, StoredMemory
from memory.upkeep import merge
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)

LAG_SECONDS = 2.0
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 60.0


class WriteBehind:
    """`put` returns at once while what is not committed yet spans at most `lag_seconds` of stream, else it waits.

    Where committing fails, nobody waits: the newest `lag_seconds` are kept and tried again, what is older is given up,
    which `stats` says and `take_lost` hands out. The stream goes on in RAM.
    """

    def __init__(self, memory: StoredMemory, lag_seconds: float = LAG_SECONDS) -> None:
        self.memory = memory
        self.lag_seconds = lag_seconds
        self.error: str | None = None
        """Why committing fails; None while it works."""
        self.num_committed = 0
        self.num_waits = 0
        self.worst_lag_seconds = 0.0
        self.num_unwritten = 0
        self._pending: OrderedDict[int, Pending] = OrderedDict()
        self._in_commit: set[int] = set()
        self._unwritten: list[Gap] = []
        self._lost: list[int] = []
        self._gone: list[int] = []
        self._thinned: list[ChunkKV] = []
        self._changed = threading.Condition()
        self._closing = False
        self._stopped = False
        memory.on_drop = self._dropped
        memory.on_thin = self._shrank
        self._thread = threading.Thread(target=self._run, name="memory writer", daemon=True)
        self._thread.start()

    @property
    def pending_seconds(self) -> float:
        """How much of the stream is not on disk yet."""
        with self._changed:
            return self._span()

    def put(self, chunk: ChunkKV, record: ChunkRecord) -> None:
        """Hand a chunk over. MemoryBankError if the writer was closed or has died."""
        with self._changed:
            self._check_alive()
            self._pending[chunk.chunk_id] = Pending(chunk, record)
            self._changed.notify_all()
            if self._span() > self.lag_seconds and len(self._pending) > 1 and self.error is None:
                self.num_waits += 1
                self._changed.wait_for(self._may_go_on)
            self._give_up_the_oldest()
            self.worst_lag_seconds = max(self.worst_lag_seconds, self._span())
            self._check_alive()

    def pending(self, chunk_id: int) -> ChunkKV | None:
        """A chunk that is not on disk yet."""
        with self._changed:
            found = self._pending.get(chunk_id)
            return found.chunk if found else None

    def pending_records(self) -> list[ChunkRecord]:
        """The records of the chunks that are not on disk yet, oldest first."""
        with self._changed:
            return [one.record for one in self._pending.values()]

    def take_lost(self) -> tuple[list[int], list[int]]:
        """Ids that were given up unwritten, and ids whose KV went from the disk for its quota, since the last call."""
        with self._changed:
            lost, self._lost = self._lost, []
            gone, self._gone = self._gone, []
            return lost, gone

    def take_thinned(self) -> list[ChunkKV]:
        """What is left of the chunks that were thinned on disk for its quota since the last call."""
        with self._changed:
            thinned, self._thinned = self._thinned, []
            return thinned

    def flush(self) -> None:
        """Wait until everything that was handed over is on disk. MemoryBankError if it cannot be written."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending or self.error is not None or self._stopped)
            if self.error:
                raise MemoryBankError(self.error)
            if self._pending:
                self._check_alive()

    def close(self) -> None:
        """Commit what waits, trying once more if that fails, and end the thread. What is not written is logged. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=CLOSE_SECONDS)
        with self._changed:
            if self._pending:
                logger.warning("%d chunks were not written to %s: %s", len(self._pending), self.memory.folder, self.error)

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closing or self._stopped

    def stats(self) -> dict[str, object]:
        with self._changed:
            return {
                "num_committed": self.num_committed,
                "num_pending": len(self._pending),
                "num_unwritten": self.num_unwritten,
                "lag_seconds": self._span(),
                "worst_lag_seconds": self.worst_lag_seconds,
                "num_waits": self.num_waits,
                "error": self.error,
            }

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    if self.error and not self._closing:
                        self._changed.wait(RETRY_SECONDS)
                    else:
                        self._changed.wait_for(lambda: self._pending or self._closing)
                    batch = list(self._pending.values())
                    if not batch:
                        if self._closing:
                            return
                        continue
                    self._in_commit = {one.chunk.chunk_id for one in batch}
                    gaps = list(self._unwritten)
                error = self._commit(batch, gaps)
                with self._changed:
                    self._in_commit = set()
                    self._settle(batch, gaps, error)
                    self._changed.notify_all()
                    if error and self._closing:
                        return
                if not error:
                    self._merge()
        finally:
            # Whatever ended the thread, nobody may wait for it.
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _commit(self, batch: list[Pending], gaps: list[Gap]) -> str | None:
        try:
            self.memory.commit(batch, gaps)
        except MemoryBankError as error:
            return str(error)
        return None

    def _merge(self) -> None:
        try:
            merge(self.memory)
        except MemoryBankError as error:
            # Small segments are as good as merged ones; the next commit will tell whether the disk still works.
            logger.warning("%s", error)

    def _settle(self, batch: list[Pending], gaps: list[Gap], error: str | None) -> None:
        if error:
            if not self.error:
                logger.warning("%s; the stream goes on in RAM", error)
            self.error = error
            self._give_up_the_oldest()
            return
        if self.error:
            logger.warning("%s is written again", self.memory.folder)
        self.error = None
        self.num_committed += len(batch)
        del self._unwritten[: len(gaps)]
        for one in batch:
            self._pending.pop(one.chunk.chunk_id, None)

    def _give_up_the_oldest(self) -> None:
        """While committing fails, what waits is bounded too."""
        while self.error and self._span() > self.lag_seconds and len(self._pending) > 1:
            chunk_id = next(i for i in self._pending)
            if chunk_id in self._in_commit:
                return
            record = self._pending.pop(chunk_id).record
            self._lost.append(chunk_id)
            self.num_unwritten += 1
            self._unwritten.append(Gap(record.start_seconds, record.end_seconds, "not written"))

    def _dropped(self, chunk_ids: list[int]) -> None:
        with self._changed:
            self._gone.extend(chunk_ids)

    def _shrank(self, chunks: list[ChunkKV]) -> None:
        with self._changed:
            self._thinned.extend(chunks)

    def _span(self) -> float:
        if not self._pending:
            return 0.0
        first, last = next(iter(self._pending.values())), next(reversed(self._pending.values()))
        return last.record.end_seconds - first.record.start_seconds

    def _may_go_on(self) -> bool:
        return self._span() <= self.lag_seconds or len(self._pending) <= 1 or self.error is not None or self._stopped

    def _check_alive(self) -> None:
        if self.closed:
            raise MemoryBankError(f"the memory {self.memory.folder} is no longer written; open it again")
