"""Commentary: its guards, its two engines, and that neither memory nor commentary touches the other."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from data.errors import ConfigError
from data.frames import Frame
from data.questions import comment_at
from data.world import make_world
from model_adapters.base import ChunkKV, KVContext, ModelAdapter, TokenRun
from model_adapters.registry import load_adapter
from vstream.commentary import ContinuousCommentator, NarrationRules, PromptedCommentator, Utterance
from vstream.commentary.guards import DuplicateGuard, WordBudget, is_silence, shortened, without_loop
from vstream.config import SessionConfig
from vstream.prompts import PRESETS
from vstream.session import StreamSession
from vstream.triggers import LiveChunk
from vstream.turns import Turns


@pytest.mark.parametrize(
    ("text", "kept", "loops"),
    [
        ("a red circle appears", "a red circle appears", False),
        ("very very good", "very very good", False),
        ("go go go go", "go", True),
        ("he runs left, he runs left, he", "he runs left,", True),
        ("one two one two", "one two one two", False),
        ("one two one two one two", "one two", True),
    ],
)
def test_loops_are_cut_at_their_first_round(text: str, kept: str, loops: bool) -> None:
    assert without_loop(text) == (kept, loops)


def test_words_over_the_budget_are_cut_at_a_sentence_if_one_fits() -> None:
    assert shortened("one two three", 3) == "one two three"
    assert shortened("He scores. What a goal by the reds", 5) == "He scores."
    assert shortened("what a, goal by the reds", 2) == "what a …"


@pytest.mark.parametrize(
    ("text", "silent"),
    [("", True), ("...", True), ("Silence.", True), ("silence", True), ("silence falls", True), ("silent night", False)],
)
def test_silence_in_its_spellings(text: str, silent: bool) -> None:
    assert is_silence(text, "silence") == silent


def test_duplicates_are_forgotten_after_a_while() -> None:
    guard = DuplicateGuard(2)
    guard.add("A red circle appears!")
    assert guard.seen("a red  circle appears") and not guard.seen("a red star appears")
    guard.add("one")
    guard.add("two")
    assert not guard.seen("a red circle appears")


def test_words_are_earned_by_the_second_and_not_without_end() -> None:
    budget = WordBudget(3.0)
    assert budget.available(1.0) == 12
    budget.spend("one two three four five six seven eight nine ten")
    assert [budget.available(t) for t in (1.0, 2.0, 100.0)] == [2, 5, 12]


@pytest.mark.parametrize(
    "rules",
    [{"engine": "loud"}, {"style": "odd"}, {"words_per_second": 0}, {"vision_seconds": 0.5}, {"background": "x" * 4001}],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NarrationRules(**rules)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["prompted", "continuous"])
def test_answers_are_bit_identical_with_and_without(random_adapter: ModelAdapter, frames: list[Frame], engine: str) -> None:
    questions = ["what is on screen now ?", "when did the red circle appear ?"]

    def watched(unasked: bool) -> tuple[list[object], list[ChunkKV], StreamSession]:
        with StreamSession(random_adapter, SessionConfig(max_new_tokens=4, window_seconds=3, poll_seconds=0)) as session:
            if unasked:
                session.watch("a red circle appears")
                session.watch("the door opens")
                session.narrate(NarrationRules(engine=engine, poll_seconds=0, words_per_second=1))
            list(session.feed(frames[:12]))
            answers = [session.answer(question) for question in questions]
            found = [(a.text, [(e.chunk_id, e.score) for e in a.evidence], a.num_context_tokens) for a in answers]
            return found, session.bank.get(session.bank.chunk_ids()), session

    plain, kept, _ = watched(False)
    busy, also_kept, session = watched(True)
    assert plain == busy
    assert all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in zip(kept, also_kept, strict=True))
    assert session.unasked.watches.num_decisions == 12 and any(d.findings.looked for d in session.unasked.watches.log)
    assert session.unasked.commentator is not None and session.unasked.commentator.spent_seconds > 0


@dataclass
class Piece:
    kind: str
    run: TokenRun
    start_seconds: float
    keys: torch.Tensor
    values: torch.Tensor


class SlowContinuous:
    """StreamingVLM's context said plainly: all pieces ever, and for every step a new context of those that are in view."""

    def __init__(self, adapter: ModelAdapter, vision_seconds: float, text_tokens: int) -> None:
        self.adapter, self.vision_seconds, self.text_tokens = adapter, vision_seconds, text_tokens
        self.pieces: list[Piece] = []
        run = adapter.sink_run()
        self.sink = ChunkKV(0, *adapter.extend(adapter.new_context(64), run), run.position_ids, run.span, 0, 0)

    def view(self, now: float) -> list[Piece]:
        text = [p for p in self.pieces if p.kind == "text"]
        first, size = [], 0
        for piece in text:
            if size + piece.run.num_tokens > self.text_tokens:
                break
            first.append(piece)
            size += piece.run.num_tokens
        last, size = [], 0
        for piece in reversed([p for p in text if not any(p is f for f in first)]):
            if size + piece.run.num_tokens > self.text_tokens:
                break
            last.append(piece)
            size += piece.run.num_tokens
        fresh = [p for p in self.pieces if p.kind == "vision" and p.start_seconds >= now - self.vision_seconds - 1e-6]
        return [p for p in self.pieces if any(p is q for q in (*first, *last, *fresh))]

    def step(self, vision: TokenRun, text: TokenRun, start_seconds: float, now: float) -> KVContext:
        """Vision, then text, each computed behind what is in view; the context that the next step stands behind."""
        pieces = self.view(now)
        for kind, run in (("vision", vision), ("text", text)):
            piece = Piece(kind, run, start_seconds, *self.adapter.extend(self.context(pieces), run))
            pieces.append(piece)
            self.pieces.append(piece)
        return self.context(pieces)

    def context(self, pieces: list[Piece]) -> KVContext:
        context = self.adapter.new_context(16)
        chunks = [ChunkKV(0, p.keys, p.values, p.run.position_ids, p.run.span, 0, 0) for p in pieces]
        self.adapter.append(context, [self.sink, *chunks])
        return context


def spoken_run(adapter: ModelAdapter, text: str) -> TokenRun:
    """The start of an answer, its words, and what closes the turn and opens the next."""
    whole, tail = adapter.question_run("", [("", text)]), adapter.question_run("").num_tokens
    size = whole.num_tokens - tail
    return TokenRun(whole.embeds[:size], whole.position_ids[:, :size], size, whole.visual_mask[:size])


class Scripted(ContinuousCommentator):
    """Says what it is told to say, so that both sides of a comparison say the same."""

    words = ""

    def _speak(self, num_words: int) -> str:
        return self.words


SCRIPT = [
    "a red circle appears .",
    "",
    "the blue star",
    "leaves and a",
    "white ring appears .",
    "",
    "",
    "a green cross",
    "appears",
]


@pytest.mark.parametrize(("vision_seconds", "text_tokens"), [(16.0, 512), (3.0, 24)])
def test_continuous_equals_the_slow_reference(
    random_adapter: ModelAdapter, frames: list[Frame], vision_seconds: float, text_tokens: int
) -> None:
    adapter = random_adapter
    rules = NarrationRules("continuous", vision_seconds=vision_seconds, text_tokens=text_tokens)
    slow = SlowContinuous(adapter, vision_seconds, text_tokens)
    probe = adapter.question_run("comment")
    said: list[Utterance] = []
    with StreamSession(adapter, SessionConfig(window_seconds=2)) as session:
        engine = Scripted(adapter, PRESETS["general"], rules, session.ingest.sink, Turns())
        for record, words in zip(session.feed(frames), SCRIPT, strict=False):
            engine.words = words
            kv, run = session.ingest.newest
            said += engine.look(LiveChunk(record, kv, run, session.ingest.live))
            text = spoken_run(adapter, words or "silence")
            expected = slow.step(run, text, record.start_seconds, record.end_seconds)
            found = adapter.logits(engine.context.fork(), probe)
            torch.testing.assert_close(found, adapter.logits(expected, probe), atol=1e-3, rtol=1e-3)
        said += engine.finish()
    assert [(u.start_seconds, u.end_seconds, u.text) for u in said] == [
        (0, 1, SCRIPT[0]),
        (2, 5, "the blue star leaves and a white ring appears ."),
        (7, 9, "a green cross appears"),
    ], "the stream ended in the middle of a sentence, which is told nevertheless"
    num_steps = len(SCRIPT)
    gone = 2 * num_steps - len(slow.view(num_steps))
    assert (gone > 0) == (vision_seconds < 16), "one case is with everything in view, the other is not"
    if not gone:
        whole = joined([adapter.sink_run(), *(piece.run for piece in slow.pieces), probe])
        stock = adapter.logits(adapter.new_context(16), whole)[-probe.num_tokens :]
        torch.testing.assert_close(found, stock, atol=1e-3, rtol=1e-3)


def joined(runs: list[TokenRun]) -> TokenRun:
    """Runs one behind the other, as one."""
    starts = [sum(run.span for run in runs[:i]) for i in range(len(runs))]
    levels = [run.deepstack for run in runs if run.deepstack is not None]
    return TokenRun(
        torch.cat([run.embeds for run in runs]),
        torch.cat([run.position_ids + start for run, start in zip(runs, starts, strict=True)], dim=1),
        sum(run.span for run in runs),
        torch.cat([run.visual_mask for run in runs]),
        torch.cat(levels, dim=1) if levels else None,
    )


def test_continuous_decodes_within_its_budget(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(random_adapter) as session:
        session.narrate(NarrationRules("continuous", words_per_second=0.5, background="Reds against blues."))
        list(session.feed(frames[:12]))
        session.finish()
        words = [len(utterance.text.replace("…", "").split()) for utterance in session.unasked.utterances]
        assert sum(words) <= 2 + 0.5 * 6
        assert all(0 <= u.start_seconds < u.end_seconds <= 6 for u in session.unasked.utterances)


@pytest.fixture(scope="module")
def embedded() -> ModelAdapter:
    return load_adapter("embedded")


@pytest.mark.slow
def test_commentary_on_the_world(embedded: ModelAdapter) -> None:
    """Entries and exits are told in their second, and hardly anything else is."""
    world = make_world(seed=12, seconds=20, side=128)
    with StreamSession(embedded) as session:
        session.narrate()
        list(session.feed(world.frames()))
        said = {int(u.start_seconds): u.text for u in session.unasked.utterances}
        assert session.unasked.num_utterances == len(said)
    truth = {t: comment_at(world, t) for t in range(20) if comment_at(world, t)}
    right = [t for t, words in truth.items() if said.get(t) == words]
    assert len(right) >= 0.8 * len(truth) and len(said) <= len(truth) + 2


def test_what_a_stream_begins_with_has_come_and_an_empty_beginning_is_silent(embedded: ModelAdapter) -> None:
    """Nothing is invented in the first moment, and nothing can have left before it."""
    told = []
    for seed in range(20, 32):
        world = make_world(seed, seconds=4, side=128)
        with StreamSession(embedded) as session:
            session.narrate()
            next(iter(session.feed(world.frames())))
            said = [u.text for u in session.unasked.utterances]
        if comment_at(world, 0):
            told.append(said == [comment_at(world, 0)])
        else:
            assert said == []
    assert len(told) >= 3 and sum(told) >= 0.8 * len(told)


class Overheard(PromptedCommentator):
    """Notes what is in view whenever it is asked for words."""

    def _comment(self, num_words: int) -> str:
        self.__dict__.setdefault("heard", []).append([kv.chunk_id for kv in self._vision])
        return ""


@pytest.mark.parametrize(
    ("window_seconds", "first", "expected"),
    [
        (3, 0, [[0], [0, 1]]),
        (3, 5, [[3, 4, 5], [3, 4, 5, 6]]),
        (0, 0, [[0], [0, 1]]),
        (0, 5, [[5, 6], [5, 6, 7]]),
    ],
)
def test_commentary_knows_what_was_there_before_it_began(
    random_adapter: ModelAdapter, frames: list[Frame], window_seconds: float, first: int, expected: list[list[int]]
) -> None:
    """Without anything before in view, only the stream's own first moment is told; any other is looked at in silence."""
    config = SessionConfig(window_seconds=window_seconds)
    with StreamSession(random_adapter, config) as session:
        list(session.feed(frames[: 2 * first]))
        rules = NarrationRules(poll_seconds=0)
        prompts, sink = session.unasked.prompts, session.ingest.sink
        session.unasked.commentator = engine = Overheard(random_adapter, config, prompts, rules, sink, session.turns)
        list(session.feed(frames[2 * first :]))
    assert engine.__dict__["heard"][:2] == expected


def test_the_tail_of_own_words_is_bounded(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    """A model that reads its own words gets the last of them only."""
    with StreamSession(random_adapter, SessionConfig(prompts="general")) as session:
        session.narrate(NarrationRules(poll_seconds=0, text_tokens=30, guard_last=0))
        engine = session.unasked.commentator
        assert isinstance(engine, PromptedCommentator)
        list(session.feed(frames[:8]))
        names = ("red circle", "blue star", "white ring", "green cross")
        engine._said.extend(Utterance(100.0 + t, 101.0 + t, f"the {name} leaves") for t, name in enumerate(names))
        said, tail = [utterance.text for utterance in engine._said], list(engine._tail())
        alone, full = (random_adapter.question_run(engine._question(words)).num_tokens for words in ((), tail))
        assert 0 < len(tail) < len(said) and tail == said[-len(tail) :] and full - alone <= 30


@pytest.mark.parametrize("engine", ["prompted", "continuous"])
def test_nothing_is_told_of_a_forgotten_span_afterwards(
    random_adapter: ModelAdapter, frames: list[Frame], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Neither what was begun in it, nor what was still to be looked at; and no model reads what was said about it."""
    words = iter(f"word {letter}" for letter in "abcdefghij")
    monkeypatch.setattr(random_adapter, "generate", lambda *_: iter([next(words)]))
    with StreamSession(random_adapter, SessionConfig(prompts="general")) as session:
        session.narrate(NarrationRules(engine, poll_seconds=0))
        list(session.feed(frames[:8]))
        with monkeypatch.context() as patch:
            # As where a question is answered meanwhile: commentary is behind.
            patch.setattr(session.unasked, "speak", lambda: None)
            list(session.feed(frames[8:12]))
        session.forget(2.0, 5.0)
        session.unasked.speak()
        voice = session.unasked.commentator
        assert not isinstance(voice, PromptedCommentator) or voice._tail() == ("word a", "word b", "word e")
        session.finish()
        told = session.unasked.utterances
        assert " ".join(said.text for said in told).split() == ["word", "a", "word", "b", "word", "e"]


@pytest.mark.parametrize(
    ("name", "opening"), [("LiveCC-7B-Instruct", "Please describe the video."), ("StreamingVLM", "Commentate on this match")]
)
def test_published_commentators_get_their_engine_and_their_words(
    random_folder: Path, tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch, name: str, opening: str
) -> None:
    adapter = load_adapter(str(shutil.copytree(random_folder, tmp_path / name)), device="cpu")
    steps = iter(["and the reds ...", "score ...", " ...", " ..."])
    monkeypatch.setattr(adapter, "generate", lambda *_: iter([next(steps)]))
    with StreamSession(adapter) as session:
        session.narrate()
        engine = session.unasked.commentator
        assert isinstance(engine, ContinuousCommentator)
        alone = engine.context.num_tokens - session.ingest.sink.num_tokens
        assert alone == spoken_question(adapter, f"{opening}\n")
        list(session.feed(frames[:8]))
        assert [u.text for u in session.unasked.utterances] == ["and the reds score"], "without the sign for a pause"
        said = [segment.kv.num_tokens for segment in engine._segments if segment.kind != "vision"][1:]
        words = ["and the reds ...", "score ...", " ..."]
        assert said[:3] == [spoken_run(adapter, w).num_tokens for w in words], "with it, as they were trained"
        session.narrate(NarrationRules(engine="prompted"))
        assert isinstance(session.unasked.commentator, PromptedCommentator)
    with StreamSession(adapter, SessionConfig(prompts="general")) as session:
        session.narrate()
        assert isinstance(session.unasked.commentator, PromptedCommentator), "what the user asks for goes first"


def spoken_question(adapter: ModelAdapter, question: str) -> int:
    """Tokens of a question without the start of its answer."""
    return adapter.question_run(question).num_tokens - adapter.question_run("").num_tokens
