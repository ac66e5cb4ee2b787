"""Commentary as files that other programs read: WebVTT, SubRip, JSON lines and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import ConfigError
from vstream.commentary import Utterance
from vstream.commentary.continuous import MAX_SENTENCE_SECONDS
from vstream.written import TextFile

READING_WORDS_PER_SECOND = 3.0
MIN_CUE_SECONDS = 1.0


def cues(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Utterances with times that can be read: each stays as long as its words take, but not into the next one. Lazy by one."""
    held: Utterance | None = None
    for utterance in utterances:
        if held is not None:
            yield _stretched(held, utterance.start_seconds)
        held = utterance
    if held is not None:
        yield _stretched(held, float("inf"))


def _stretched(utterance: Utterance, limit_seconds: float) -> Utterance:
    needed = max(MIN_CUE_SECONDS, len(utterance.text.split()) / READING_WORDS_PER_SECOND)
    end = min(max(utterance.end_seconds, utterance.start_seconds + needed), max(limit_seconds, utterance.end_seconds))
    return Utterance(utterance.start_seconds, end, utterance.text)


@dataclass(frozen=True)
class Format:
    """How a file of one kind is put together. block: from a cue and its number, from 1; `between` stands between two blocks."""

    header: str
    block: Callable[[int, Utterance], str]
    between: str = ""


def _vtt_block(number: int, cue: Utterance) -> str:
    """What would be markup or end a cue is made plain text."""
    return f"{_stamp(cue.start_seconds, '.')} --> {_stamp(cue.end_seconds, '.')}\n{_vtt_text(cue.text)}\n"


def _srt_block(number: int, cue: Utterance) -> str:
    stamps = f"{_stamp(cue.start_seconds, ',')} --> {_stamp(cue.end_seconds, ',')}"
    return f"{number}\n{stamps}\n{_one_line(cue.text).replace('-->', '→')}\n"


def _jsonl_block(number: int, cue: Utterance) -> str:
    """{start_seconds, end_seconds, text}"""
    row = {"start_seconds": round(cue.start_seconds, 3), "end_seconds": round(cue.end_seconds, 3), "text": cue.text}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _markdown_block(number: int, cue: Utterance) -> str:
    return f"- **{_stamp(cue.start_seconds, '.')[:-4]}** {_markdown_text(cue.text)}\n"


FORMATS: dict[str, Format] = {
    "vtt": Format("WEBVTT\n\n", _vtt_block, "\n"),
    "srt": Format("", _srt_block, "\n"),
    "jsonl": Format("", _jsonl_block),
    "md": Format("# Commentary\n\n", _markdown_block),
}


def kind_of(path: Path) -> str:
    """The format that a file's name asks for. Raises ConfigError for another one."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"{path.name} does not say what to write; end it in {', '.join(f'.{name}' for name in FORMATS)}")
    return kind


class CaptionFile:
    """A file that is written while the words come, in the format of its ending. A context manager.

    Every cue goes to the file in one piece as soon as its end is known: when the next one begins, or when none can begin before
    it ends. So whatever ends the program, what is there can be read. Raises ConfigError if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.format = FORMATS[kind_of(path)]
        self.num_cues = 0
        self._held: Utterance | None = None
        self._file = TextFile(path, "--out")
        self._file.write(self.format.header)

    def say(self, utterance: Utterance) -> None:
        """The next thing that was said."""
        self._settle(utterance.start_seconds)
        self._held = utterance

    def passed(self, now_seconds: float) -> None:
        """The stream has come to `now_seconds`; what is said from now on began `MAX_SENTENCE_SECONDS` ago at the earliest."""
        if self._held is not None and _stretched(self._held, float("inf")).end_seconds <= now_seconds - MAX_SENTENCE_SECONDS:
            self._settle(float("inf"))

    def close(self) -> None:
        """Write what is held back, and close the file. Idempotent."""
        if not self._file.closed:
            self._settle(float("inf"))
            self._file.close()

    def _settle(self, limit_seconds: float) -> None:
        held, self._held = self._held, None
        if held is not None:
            self.num_cues += 1
            between = self.format.between if self.num_cues > 1 else ""
            self._file.write(between + self.format.block(self.num_cues, _stretched(held, limit_seconds)))

    def __enter__(self) -> CaptionFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def write_captions(path: Path, utterances: Iterable[Utterance]) -> int:
    """Write what was said in the format of the file's ending. Returns the number of cues. Raises ConfigError."""
    with CaptionFile(path) as file:
        for utterance in utterances:
            file.say(utterance)
    return file.num_cues


def _stamp(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _vtt_text(text: str) -> str:
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_text(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|!&~" else c for c in _one_line(text))
