"""The nouns of commentary: what is said, under which rules, and the interface of an engine that says it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from data.errors import ConfigError
from vstream.answer import is_text
from vstream.triggers import LiveChunk

ENGINES = ("auto", "prompted", "continuous")
STYLES: dict[str, str] = {
    "plain": "",
    "sports": "You are a lively sports commentator. ",
    "for blind listeners": "Your listeners cannot see: say what is where, in plain words. ",
    "brief": "Use as few words as you can. ",
}
MAX_BACKGROUND_CHARACTERS = 4000


@dataclass(frozen=True)
class Utterance:
    """Something that was said about [start_seconds, end_seconds) of the stream, in one piece."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class NarrationRules:
    """How a stream is commented. Raises ConfigError for a value that makes no sense.

    engine: auto: continuous for checkpoints that are known to be trained for it, else prompted.
    background: what the model should know (title, teams, what matters). style: one of `STYLES`. words_per_second: how much is
    said at most; None: as the model's prompts have it. vision_seconds: how much of the recent stream is in view (None: 8 s
    prompted, 16 s continuous). text_tokens: how much of its own words. poll_seconds: a look at least this often; 0: at every
    chunk. guard_last: an utterance that equals one of so many before it is not said again. silence_threshold: speak only where
    the chance of silence is below it.
    """

    engine: str = "auto"
    background: str = ""
    style: str = "plain"
    words_per_second: float | None = None
    vision_seconds: float | None = None
    text_tokens: int = 512
    poll_seconds: float = 4.0
    guard_last: int = 2
    silence_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"the engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        if self.style not in STYLES:
            raise ConfigError(f"the style is {self.style!r}; choose one of {', '.join(STYLES)}")
        if len(self.background) > MAX_BACKGROUND_CHARACTERS or not is_text(self.background):
            raise ConfigError(f"the background is no text of at most {MAX_BACKGROUND_CHARACTERS} characters; shorten it")
        for name, low, high in (
            ("words_per_second", 0.1, 100),
            ("vision_seconds", 1, 600),
            ("text_tokens", 0, 100_000),
            ("poll_seconds", 0, 86_400),
            ("guard_last", 0, 1000),
            ("silence_threshold", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; give a number from {low} to {high}")


class Commentator(ABC):
    """Comments on one stream. It looks at every chunk, in order, and keeps a context of its own over the shared weights."""

    spent_seconds: float = 0.0
    """Wall time that it has taken so far."""
    wants_live: bool = False
    """Whether it looks at `LiveChunk.live`, which must then be the moment's own."""

    @abstractmethod
    def look(self, moment: LiveChunk) -> list[Utterance]:
        """Look at the newest chunk. Returns what is complete to be said now, oldest first; usually nothing."""

    @abstractmethod
    def forget(self, start_seconds: float, end_seconds: float) -> None:
        """Let go of what is seen of a span of the stream."""

    @abstractmethod
    def finish(self) -> list[Utterance]:
        """The stream has ended: what was begun is said as one whole."""
