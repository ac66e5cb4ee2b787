"""Times, sizes and pictures as text that is safe to put into a page."""

from __future__ import annotations

import base64
import html
import re

from data.errors import QuestionError


def escaped(text: object) -> str:
    """The text with every character that means something to HTML made harmless, quotes included."""
    return html.escape(str(text), quote=True)


def clock(seconds: float) -> str:
    """A moment of the stream: `02:14`, or `1:02:14` from the first hour on."""
    whole = max(0, int(seconds + 1e-6))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes:02d}:{whole % 60:02d}"


def span(start_seconds: float, end_seconds: float) -> str:
    """A part of the stream: `02:14–02:22`."""
    return f"{clock(start_seconds)}–{clock(end_seconds)}"


def seconds_of(text: str | None) -> float | None:
    """The stream time that somebody typed: `134`, `134.5`, `2:14`, `1:02:14`. None for no text. Raises QuestionError."""
    text = (text or "").strip()
    if not text:
        return None
    if not re.fullmatch(r"(\d{1,4}:)?(\d{1,4}:)?\d{1,9}(\.\d{1,6})?", text, re.ASCII):
        raise QuestionError(f"{text!r} is not a stream time; write seconds like 134, or 2:14")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def size(num_bytes: float) -> str:
    """A number of bytes in the unit that keeps it short: `0 B`, `12.5 MiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int) -> str:
    """A count in at most four characters or so: `950`, `12.3k`, `4.1M`."""
    for limit, unit in ((1_000_000, "M"), (10_000, "k")):
        if number >= limit:
            return f"{number / (1000 if unit == 'k' else 1_000_000):.1f}{unit}"
    return str(number)


def percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def jpeg_uri(jpeg: bytes) -> str:
    """The picture itself as an address, so that showing it needs neither a file nor a request."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
