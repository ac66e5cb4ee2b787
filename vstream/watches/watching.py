"""All watches of one stream: gate, one forward for all that are due, confirmation, decision, log."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data.errors import WatchError
from memory.base import outside
from model_adapters.base import ModelAdapter, TokenRun
from vstream.config import SessionConfig
from vstream.prompts import Prompts
from vstream.triggers import LiveChunk, Poll, QueryJump, create_gate
from vstream.triggers.similarity import similarities
from vstream.triggers.yes_no import yes_probabilities
from vstream.watches.base import Alert, Findings, Watch, WatchDecision, WatchRules
from vstream.watches.condition import MAX_WATCHES, Condition, parse_condition
from vstream.watches.kept import KeptWatches
from vstream.watches.state import WatchState
from vstream.watches.webhook import Webhook

MAX_LOG = 20_000
MAX_ALERTS = 1000
CLIP_BEFORE_SECONDS = 1.0
"""A clip begins this long before what it shows, so that one sees it begin."""


class Watches:
    """The watches of one stream. `look` is called once for every chunk, in order, on the stream's own thread.

    All of them are asked every `config.poll_seconds` at least, whatever the gates say.
    on_alert: called for every alert; must return at once.
    """

    def __init__(self, adapter: ModelAdapter, config: SessionConfig, prompts: Prompts) -> None:
        self.adapter = adapter
        self.prompts = prompts
        self.on_alert: Callable[[Alert], None] | None = None
        self.alerts: deque[Alert] = deque(maxlen=MAX_ALERTS)
        self.log: deque[WatchDecision] = deque(maxlen=MAX_LOG)
        self.num_alerts = 0
        self.num_decisions = 0
        self.spent_seconds = 0.0
        """Wall time that looking has taken so far."""
        self.hooks: dict[int, Webhook] = {}
        """Where the alerts of a watch are posted, by its number; also of watches that have ended."""
        self._gate = create_gate(config)
        self._poll = Poll(config.poll_seconds)
        self._lock = threading.RLock()
        """Watches are set and taken back while the stream goes on."""
        self._states: dict[int, WatchState] = {}
        self._jumps: dict[int, QueryJump] = {}
        self._runs: dict[int, TokenRun] = {}
        """What the model is asked for each watch."""
        self._queries = torch.empty(0)
        """float32 [watches, layers, kv_heads, head_dim], in the order of `_jumps`."""
        self._num_set = 0
        self.restored_until = -1
        """The chunk of the newest alert that was there before the session; -1 if there was none."""
        self._kept: KeptWatches | None = None
        self._now = 0.0

    def take_up(self, kept: KeptWatches) -> int:
        """Go on with the watches of a stored memory, with their log and alerts, and keep them there from now on; of one that is
        only read, the log and the alerts. Returns how many watches go on. Raises MemoryBankError, and WatchError for damage."""
        with self._lock:
            self.log.extend(kept.decisions())
            self.alerts.extend(kept.alerts())
            self.num_decisions, self.num_alerts = kept.first_free("decision"), kept.first_free("alert")
            self.restored_until = self.alerts[-1].chunk_id if self.alerts else -1
            if not kept.write:
                return 0
            for state, active in kept.states(self.prompts):
                self._num_set = max(self._num_set, state.watch.number)
                if active:
                    self._register(state)
            self._kept = kept
            return len(self._states)

    def save(self, ended: Sequence[WatchState] = ()) -> None:
        """Bring everything to the stored memory, if there is one. ended: watches that were active until now."""
        if self._kept is not None:
            with self._lock:
                states = [*((state, True) for state in self._states.values()), *((state, False) for state in ended)]
                self._kept.save(states, self._now)

    def add(self, written: str, rules: WatchRules | None = None, at_seconds: float = 0.0, hook: Webhook | None = None) -> Watch:
        """Set a watch from stream time `at_seconds` on. hook: posts its alerts.

        Raises WatchError: see `parse_condition`; or one too many.
        """
        condition = parse_condition(written)
        with self._lock:
            watch = self._add(written, condition, rules or WatchRules(), at_seconds)
            if hook is not None:
                self.hooks[watch.number] = hook
            self.save()
            return watch

    def _add(self, written: str, condition: Condition, rules: WatchRules, at_seconds: float) -> Watch:
        active = self.active
        if len(active) >= MAX_WATCHES:
            raise WatchError(f"there are {MAX_WATCHES} watches, which is the most; remove one first")
        if any(watch.condition.text.lower() == condition.text.lower() for watch in active):
            raise WatchError(f'"{condition.text}" is being watched for already; remove that watch first, or word it otherwise')
        self._num_set += 1
        watch = Watch(self._num_set, written.strip(), condition, rules, at_seconds)
        self._register(WatchState(watch, self.prompts))
        return watch

    def _register(self, state: WatchState) -> None:
        number, condition = state.watch.number, state.watch.condition
        self._jumps[number] = QueryJump(self.adapter.encode_question(_gist(condition.subject or condition.text)))
        self._runs[number] = self.adapter.question_run(self.prompts.watch.format(condition=condition.text))
        self._states[number] = state
        self._queries = torch.stack([jump.query.per_layer for jump in self._jumps.values()])

    def remove(self, number: int) -> None:
        """End a watch; its alerts and its part of the log stay. Raises WatchError for a number that is not active."""
        with self._lock:
            ended = self._states.pop(number, None)
            if ended is None:
                raise WatchError(f"there is no watch number {number}; it may have ended already")
            del self._jumps[number], self._runs[number]
            if self._jumps:
                self._queries = torch.stack([jump.query.per_layer for jump in self._jumps.values()])
            self.save([ended])

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        """Take back alerts and decisions about a span of the stream."""
        with self._lock:
            self.alerts = deque((a for a in self.alerts if outside(a, start_seconds, end_seconds)), MAX_ALERTS)
            self.log = deque((d for d in self.log if outside(d.findings, start_seconds, end_seconds)), MAX_LOG)
            if self._kept is not None:
                self._kept.forget(start_seconds, end_seconds)

    @property
    def active(self) -> list[Watch]:
        """The watches that may still fire, in the order in which they were set."""
        return [state.watch for state in list(self._states.values())]

    def rows(self) -> dict[int, dict[str, Any]]:
        """The watches that may still fire, by number, with what they remember: what a log must begin with to be replayed."""
        with self._lock:
            return {number: state.row() for number, state in self._states.items()}

    def look(self, moment: LiveChunk) -> list[Alert]:
        """Decide on the newest chunk for every watch. Returns the alerts; leaves nothing in the stream's own context."""
        with self._lock:
            alerts = self._look(moment) if self._states else []
        for alert in alerts:
            if self.on_alert:
                self.on_alert(alert)
            if hook := self.hooks.get(alert.number):
                hook.send(alert)
        return alerts

    def _look(self, moment: LiveChunk) -> list[Alert]:
        started = time.perf_counter()
        decisions = [self._states[found.watch].decide(found) for found in self._find(moment)]
        alerts = [self._alert(decision, moment) for decision in decisions if decision.verdict == "fired"]
        self._now = moment.record.end_seconds
        if self._kept is not None:
            self._kept.decided(decisions, self.num_decisions)
            self._kept.alerted(alerts, self.num_alerts)
        self.log.extend(decisions)
        self.num_decisions += len(decisions)
        self.alerts.extend(alerts)
        self.num_alerts += len(alerts)
        for number in [number for number, state in self._states.items() if state.done]:
            self.remove(number)
        if self._kept is not None and (alerts or self._kept.due(self._now)):
            self.save()
        self.spent_seconds += time.perf_counter() - started
        return alerts

    def _find(self, moment: LiveChunk) -> list[Findings]:
        """What there is to know of every watch; the model is asked once for all that are due."""
        gates = self._gates(moment)
        states = {number: state for number, state in self._states.items() if gates[number][0]}
        asked = [number for number, state in states.items() if state.wants_score()]
        scores: dict[int, float] = {}
        if asked:
            runs = [self._runs[number] for number in asked]
            found = yes_probabilities(self.adapter, moment.live, runs, self.prompts.yes, self.prompts.no)
            scores = dict(zip(asked, found, strict=True))
        record = moment.record
        return [
            Findings(
                watch=number,
                at_seconds=moment.at_seconds,
                chunk_id=record.chunk_id,
                start_seconds=record.start_seconds,
                end_seconds=record.end_seconds,
                looked=looked,
                gate=words,
                score=scores.get(number),
                confirmed=self._confirmation(number, scores.get(number), moment) if looked else None,
            )
            for number, (looked, words) in gates.items()
        ]

    def _gates(self, moment: LiveChunk) -> dict[int, tuple[bool, str]]:
        """For every watch: whether the model is to be asked, and why."""
        gate, poll = self._gate.look(moment), self._poll.look(moment)
        gates, at = {}, moment.at_seconds
        alike = similarities(self._queries, moment.kv)
        for (number, state), trigger, similarity in zip(self._states.items(), self._jumps.values(), alike, strict=True):
            if state.pending:
                gates[number] = (True, "an answer waits for confirmation")
            elif poll.fired:
                gates[number] = (True, poll.reason)
            elif not gate.fired:
                gates[number] = (False, gate.reason)
            else:
                jump = trigger.decide(at, similarity)
                gates[number] = (jump.fired, f"{gate.reason}; {jump.reason} (z {jump.score:.1f})")
            trigger.remember(at, similarity)
        return gates

    def _confirmation(self, number: int, score: float | None, moment: LiveChunk) -> float | None:
        """How likely the confirming answer is, per token; None where it is not wanted."""
        state = self._states[number]
        if not state.wants_confirmation(score):
            return None
        run = self.adapter.question_run(self.prompts.confirm)
        answer = self.prompts.confirmed.format(subject=state.watch.condition.subject)
        (likelihood,) = self.adapter.likelihoods(moment.live.fork(), run, [answer])
        return math.exp(likelihood)

    def _alert(self, decision: WatchDecision, moment: LiveChunk) -> Alert:
        state = self._states[decision.findings.watch]
        return Alert(
            watch=state.watch.written,
            number=state.watch.number,
            fired_at_seconds=decision.findings.at_seconds,
            text=state.watch.condition.text,
            score=state.score,
            chunk_id=moment.record.chunk_id,
            start_seconds=max(0.0, state.clip_start_seconds - CLIP_BEFORE_SECONDS),
            end_seconds=moment.record.end_seconds,
            thumbnail=moment.record.thumbnail,
            reason=f"{decision.findings.gate}; {decision.reason}",
        )


def _gist(subject: str) -> str:
    """The subject without its article, which is alike to everything."""
    first, _, rest = subject.partition(" ")
    return rest if rest and first.lower() in ("a", "an", "the") else subject
