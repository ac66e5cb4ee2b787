"""What a stream says without being asked: its watches and its commentary, as a part of a session."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.errors import MemoryBankError, WatchError
from memory.base import outside
from memory.notes import Notes
from memory.records import Records
from memory.stored import StoredMemory
from model_adapters.base import ModelAdapter
from vstream.commentary import Commentator, KeptNarration, NarrationRules, Utterance, create_commentator
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord, Ingest
from vstream.prompts import prompts_for
from vstream.triggers import LiveChunk
from vstream.turns import Turns
from vstream.watches import MAX_WATCHES, KeptWatches, Watch, Watches, WatchRules, Webhook, parse_condition

logger = logging.getLogger(__name__)

MAX_UTTERANCES = 20_000


@dataclass(frozen=True)
class Wishes:
    """What somebody wants to be told unasked, whatever the stream. watches: what was written, its rules, and its webhook."""

    watches: tuple[tuple[str, WatchRules, Webhook | None], ...] = ()
    narration: NarrationRules | None = None


class Unasked:
    """The side of a session that speaks by itself. It reads what ingest made of a chunk and changes nothing of it.

    Alerts gather in `watches.alerts`, decisions in `watches.log`, and what was said in `utterances`.
    """

    def __init__(self, adapter: ModelAdapter, config: SessionConfig, ingest: Ingest, turns: Turns) -> None:
        self.adapter = adapter
        self.config = config
        self.ingest = ingest
        self.turns = turns
        self.prompts = prompts_for(adapter.info.name, config.prompts)
        self.watches = Watches(adapter, config, self.prompts)
        self.commentator: Commentator | None = None
        self.utterances: deque[Utterance] = deque(maxlen=MAX_UTTERANCES)
        self.num_utterances = 0
        self.narration: NarrationRules | None = None
        """The rules of the commentary that is wanted, also when the stream has ended."""
        self.suggested: NarrationRules | None = None
        """The rules by which this stream was commented on when it was watched before, in the same memory."""
        self._kept_narration: KeptNarration | None = None
        self.kept = ""
        """What goes on from the stream before, in words for the page."""
        self._begins = not ingest.window
        """Whether no chunk of the stream has come yet."""
        self._fresh: deque[LiveChunk] = deque()
        self._voice = threading.Lock()
        """Held while the commentator speaks, so that it is not changed in the middle of a sentence."""

    def watch(self, written: str, rules: WatchRules | None, at_seconds: float, hook: Webhook | None = None) -> Watch:
        """See `Speaking.watch`."""
        if not self.config.window_seconds:
            raise WatchError("window_seconds is 0, so nothing is in view that could be watched; give a longer window")
        with self.turns.answer():
            return self.watches.add(written, rules, at_seconds, hook)

    def remember(self, memory: StoredMemory | None, records: Records, write: bool) -> None:
        """Go on with the watches of a stored memory, if there is one, keep them there, and know how it was commented on.
        Damage is logged and left."""
        if memory is None:
            return

        def picture_of(chunk_id: int) -> bytes:
            record = records.get(chunk_id)
            return record.thumbnail if record else b""

        notes = Notes(memory.manifest)
        kept = KeptWatches(notes, picture_of, write)
        self._kept_narration = KeptNarration(notes, write)
        try:
            self.suggested = self._kept_narration.load()
            with self.turns.answer():
                num = self.watches.take_up(kept)
        except (MemoryBankError, WatchError) as error:
            logger.warning("%s; the watches of this memory are lost", error)
            return
        self.kept = f"Kept in this memory: {_count(num)}." if num else ""

    @property
    def wishes(self) -> Wishes:
        """What may go on with another stream."""
        active = self.watches.active
        return Wishes(tuple((w.written, w.rules, self.watches.hooks.get(w.number)) for w in active), self.narration)

    def take_over(self, wishes: Wishes) -> None:
        """Watch and comment as on the stream before; nothing is seen or said yet. What this stream's memory watches for
        already goes on as it is, and where this stream was commented on before, it is in the same way again."""
        now = self.ingest.window[-1].end_seconds if self.ingest.window else 0.0
        known = {watch.condition.text.lower(): watch.number for watch in self.watches.active}
        num = 0
        for written, rules, hook in wishes.watches:
            number = known.get(parse_condition(written).text.lower())
            if number is None and len(known) + num < MAX_WATCHES:
                self.watch(written, rules, now, hook)
                num += 1
            elif number is not None and hook is not None:
                self.watches.hooks[number] = hook
        parts = [_count(num)] if num else []
        if wishes.narration:
            self.narrate(self.suggested or wishes.narration)
            parts.append("the commentary")
        self.kept += f" Kept from the stream before: {' and '.join(parts)}." if parts else ""
        self.kept = self.kept.strip()

    def look(self, record: ChunkRecord) -> None:
        """The newest chunk, in the turn in which it was stored: the watches look at it, and commentary is to."""
        before = tuple(self.ingest.window)[:-1]
        moment = LiveChunk(record, *self.ingest.newest, self.ingest.live, before, self._begins)
        self._begins = False
        self.watches.look(moment)
        if commentator := self.commentator:
            # Later chunks extend what is live before this one is commented on.
            self._fresh.append(replace(moment, live=moment.live.fork()) if commentator.wants_live else moment)

    def speak(self) -> None:
        """Show new chunks to the commentator, token by token between other turns. Only the feeding thread gets here."""
        with self._voice:
            while self._fresh:
                moment = self._fresh.popleft()
                if self.commentator:
                    self._say(self.commentator.look(moment))

    def narrate(self, rules: NarrationRules | None) -> None:
        """See `StreamSession.narrate`."""
        rules = rules or NarrationRules()
        made = create_commentator(self.adapter, self.config, self.prompts, rules, self.ingest.sink, self.turns)
        self.narration = rules
        if self._kept_narration:
            self._kept_narration.save(rules)
        self._change_voice(made)

    def quiet(self) -> None:
        """Stop commenting; a sentence that was begun is still told."""
        self.narration = None
        self._change_voice(None)

    def finish(self) -> None:
        """The stream has ended: a sentence that was begun is told."""
        self._change_voice(None)

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        """Take back what was said about a span, and what commentary sees of it or is still to see. Not within a turn: it may
        wait for one."""
        with self._voice:
            with self.turns.ingest():
                self._fresh = deque(m for m in self._fresh if outside(m.record, start_seconds, end_seconds))
            self.utterances = deque((u for u in self.utterances if outside(u, start_seconds, end_seconds)), MAX_UTTERANCES)
            if self.commentator:
                self.commentator.forget(start_seconds, end_seconds)

    def close(self) -> None:
        """Bring what waits to the stored memory. Idempotent."""
        self.watches.save()

    def _change_voice(self, commentator: Commentator | None) -> None:
        with self._voice:
            if self.commentator:
                self._say(self.commentator.finish())
            self.commentator = commentator

    def _say(self, utterances: Sequence[Utterance]) -> None:
        self.utterances.extend(utterances)
        self.num_utterances += len(utterances)


def _count(num_watches: int) -> str:
    return f"{num_watches} {'watch' if num_watches == 1 else 'watches'}"


class Speaking:
    """What a session offers of it."""

    unasked: Unasked

    @property
    def now_seconds(self) -> float:
        raise NotImplementedError

    def watch(self, written: str, rules: WatchRules | None = None, hook: Webhook | None = None) -> Watch:
        """Tell me when …: watch for a condition from now on; alerts gather in `unasked.watches`, and are posted by `hook`.

        Raises WatchError for a watch that is empty, contradicts itself, or is one too many.
        """
        return self.unasked.watch(written, rules, self.now_seconds, hook)

    def narrate(self, rules: NarrationRules | None = None) -> None:
        """Comment on the stream from now on, in `unasked.utterances`, until `unasked.quiet()`; again: under new rules."""
        self.unasked.narrate(rules)
