"""Commentary as files that other programs read: WebVTT, SubRip, JSON lines and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import ConfigError
from vstream.commentary import Utterance

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


def to_vtt(shown: Sequence[Utterance]) -> str:
    """WebVTT. What would be markup or end a cue is made plain text."""
    blocks = [f"{_stamp(c.start_seconds, '.')} --> {_stamp(c.end_seconds, '.')}\n{_vtt_text(c.text)}\n" for c in shown]
    return "WEBVTT\n\n" + "\n".join(blocks)


def to_srt(shown: Sequence[Utterance]) -> str:
    """SubRip."""
    blocks = [
        f"{number}\n{_stamp(c.start_seconds, ',')} --> {_stamp(c.end_seconds, ',')}\n{_one_line(c.text).replace('-->', '→')}\n"
        for number, c in enumerate(shown, 1)
    ]
    return "\n".join(blocks)


def to_jsonl(shown: Sequence[Utterance]) -> str:
    """JSON lines {start_seconds, end_seconds, text}."""
    rows = ({"start_seconds": round(c.start_seconds, 3), "end_seconds": round(c.end_seconds, 3), "text": c.text} for c in shown)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def to_markdown(shown: Sequence[Utterance]) -> str:
    """A list with a line per utterance."""
    lines = [f"- **{_stamp(c.start_seconds, '.')[:-4]}** {_markdown_text(c.text)}\n" for c in shown]
    return "# Commentary\n\n" + "".join(lines)


WRITERS: dict[str, Callable[[Sequence[Utterance]], str]] = {
    "vtt": to_vtt,
    "srt": to_srt,
    "jsonl": to_jsonl,
    "md": to_markdown,
}


def kind_of(path: Path) -> str:
    """The format that a file's name asks for. Raises ConfigError for another one."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in WRITERS:
        raise ConfigError(f"{path.name} does not say what to write; end it in {', '.join(f'.{name}' for name in WRITERS)}")
    return kind


def write_captions(path: Path, utterances: Iterable[Utterance]) -> int:
    """Write what was said in the format of the file's ending. Returns the number of cues. Raises ConfigError."""
    kind, shown = kind_of(path), list(cues(utterances))
    try:
        path.write_text(WRITERS[kind](shown), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    return len(shown)


def _stamp(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _vtt_text(text: str) -> str:
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_text(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|!" else c for c in _one_line(text))
