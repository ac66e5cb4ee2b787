"""Times that a question names, in the words that people type: "at 1:05", "two minutes ago", "in the first half hour".

A number needs a unit or a colon to be a time; "after the second red circle" names none. The patterns are tried in order and
each takes its words away from the next, so "between 5 and 10 minutes ago" is one span and not also "10 minutes ago".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TENS = {word: 10 * k for k, word in enumerate(_TENS, 2)}
_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
ORDINALS = {word: k for k, word in enumerate(_ORDINALS, 2)}
UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
"""By first letter: every unit below begins with its own."""

AGO_SLACK = 0.05
"""People round: "five minutes ago" is within this share of it on either side."""
FEW = 3.0
FEW_SLACK = 0.5
"""A "few" or "couple of" minutes are this vague."""

UNIT = r"(?:seconds?|secs?|s|minutes?|mins?|hours?|hrs?|h)"
WORD = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(ONES[1:10])}))?|{'|'.join(sorted(ONES, key=len, reverse=True))})"
NUMBER = rf"(?:\d+(?:\.\d+)?|{WORD})(?:\s+and\s+a\s+half)?"
PART = rf"(?:{NUMBER}(?:\s*-\s*|\s*){UNIT}\b|\d+m(?=\d|\b)|half\s+an?\s+(?:minute|hour)\b)"
DURATION = rf"(?:{PART}(?:\s*(?:,|and)?\s*{PART})*)"
CLOCK = r"(?:\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?(?![\d:])(?!\s*[ap]\.?m\b))"
INSTANT = rf"(?:{CLOCK}|{DURATION})"
VAGUE = rf"(?:(?:a\s+)?(?:few|couple(?:\s+of)?)\s+{UNIT}\b)"
SINGLE = rf"(?:an?\s+{UNIT}\b)"
LENGTH = rf"(?:{DURATION}|{VAGUE}|half\s+(?:minute|hour)\b|(?:minute|hour|second(?!\s+(?!of\b)[a-z]))\b)"
"""How long "the first …" or "the last …" is; "the first second object" is no length."""


@dataclass(frozen=True)
class TimeSpan:
    """[start_seconds, end_seconds] of stream time; start and end are the same for an instant."""

    start_seconds: float
    end_seconds: float


def parse_times(question: str, now_seconds: float) -> list[TimeSpan]:
    """The times named in `question`, asked at `now_seconds`, in the order of the words; empty if there are none.

    "ago" and "last" count back from `now_seconds`, to 0 at most; "after" and "since" end at `now_seconds`.
    A time that is wholly in the future, or before the stream began (negative), is returned as it is named.
    """
    rest = re.sub(r"[‐-–—]", "-", question.lower())
    spans: list[tuple[int, TimeSpan]] = []
    for pattern, to_span in _PATTERNS:
        for match in pattern.finditer(rest):
            spans.append((match.start(), to_span(match, now_seconds)))
            rest = rest[: match.start()] + "#" * len(match[0]) + rest[match.end() :]
    return [span for _, span in sorted(spans, key=lambda item: item[0])]


def seconds_of(text: str) -> float:
    """The seconds that an instant or a duration names: "1:05" → 65, "2 min and 5 s" → 125, "half an hour" → 1800."""
    if ":" in text:
        total = 0.0
        for field in text.split(":"):
            total = 60 * total + float(field)
        return total
    if re.fullmatch(VAGUE, text):
        return FEW * _unit(text) if "few" in text else 2 * _unit(text)
    if re.fullmatch(rf"{UNIT}|{SINGLE}", text):
        return _unit(text)
    return sum(_part_seconds(part) for part in re.findall(rf"{PART}|half\s+(?:minute|hour)", text))


def _part_seconds(part: str) -> float:
    half, number = re.match(r"half\s", part), re.match(NUMBER, part)
    if half or number is None:
        return 0.5 * _unit(part)
    return _number(number[0]) * _unit(part[number.end() :])


def _unit(text: str) -> float:
    """Seconds of the unit that `text` ends in."""
    return UNIT_SECONDS[re.findall(r"[a-z]+", text)[-1][0]]


def _number(text: str) -> float:
    half = 0.5 if "half" in text else 0.0
    text = re.sub(r"\s+and\s+a\s+half$", "", text)
    if text[0].isdigit():
        return float(text) + half
    return half + sum(TENS[word] if word in TENS else ONES.index(word) for word in re.split(r"[ -]", text))


def _instant(match: re.Match[str], now: float) -> TimeSpan:
    at = seconds_of(match["at"])
    slack = AGO_SLACK * at if "about" in match[0] or "around" in match[0] else 0.0
    return TimeSpan(max(0.0, at - slack), at + slack)


def _ago(match: re.Match[str], now: float) -> TimeSpan:
    back = seconds_of(match["at"])
    slack = (FEW_SLACK if re.fullmatch(VAGUE, match["at"]) else AGO_SLACK) * back
    end = min(now, now - back + slack)
    return TimeSpan(max(min(0.0, end), now - back - slack), end)


def _between(match: re.Match[str], now: float) -> TimeSpan:
    last = seconds_of(match["to"])
    # "between 10 and 20 s": the first number borrows the unit of the second.
    borrowed = re.fullmatch(NUMBER, match["at"])
    first = _number(match["at"]) * _unit(match["to"]) if borrowed else seconds_of(match["at"])
    low, high = sorted((first, last))
    if match["ago"]:
        low, high = max(0.0, now - high), max(0.0, now - low)
    return TimeSpan(low, high)


def _units_first(match: re.Match[str], now: float) -> TimeSpan:
    low, high = sorted(_number(match[name]) * _unit(match["unit"]) for name in ("at", "to"))
    return TimeSpan(low, high)


def _ordinal(match: re.Match[str], now: float) -> TimeSpan:
    word = match["nth"]
    unit = _unit(match["unit"])
    number = ORDINALS[word] if word in ORDINALS else int(re.match(r"\d+", word)[0])  # type: ignore[index]
    return TimeSpan((number - 1) * unit, number * unit)


def _last(match: re.Match[str], now: float) -> TimeSpan:
    return TimeSpan(max(0.0, now - seconds_of(match["at"])), now)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w:.#]){pattern}(?!\w)")


_FROM = rf"(?P<at>{INSTANT}|{NUMBER}(?=\s+(?:and|to|until|till)\s+{DURATION})|\d+(?:\.\d+)?(?=\s*-\s*{DURATION}))"
_TO = rf"(?P<to>{INSTANT})(?P<ago>\s+ago)?"
_AT = r"(?:at|around|about|near)(?:\s+(?:around|about|exactly|time|t))*\s*=?\s*(?:the\s+)?"
_PATTERNS: list[tuple[re.Pattern[str], Callable[[re.Match[str], float], TimeSpan]]] = [
    (_compile(rf"between\s+{_FROM}\s+and\s+{_TO}"), _between),
    (_compile(rf"(?:from\s+|at\s+)?{_FROM}\s*(?:-|to|until|till)\s*{_TO}"), _between),
    (_compile(rf"(?P<unit>seconds|minutes)\s+(?P<at>{NUMBER})\s*(?:-|to|and|until|till)\s*(?P<to>{NUMBER})"), _units_first),
    (_compile(rf"(?P<at>{DURATION}|{VAGUE}|{SINGLE})\s+(?:ago|earlier\s+than\s+now)"), _ago),
    (_compile(rf"(?:the\s+)?first\s+(?P<at>{LENGTH})"), lambda match, now: TimeSpan(0.0, seconds_of(match["at"]))),
    (_compile(rf"(?:the\s+)?(?:last|past|previous)\s+(?P<at>{LENGTH})"), _last),
    (_compile(rf"in\s+the\s+(?P<nth>\d+(?:st|nd|rd|th)|{'|'.join(ORDINALS)})\s+(?P<unit>minute|hour)"), _ordinal),
    (
        _compile(rf"(?:before|until|till|up\s+to)\s+(?P<at>{INSTANT})"),
        lambda match, now: TimeSpan(0.0, seconds_of(match["at"])),
    ),
    (
        _compile(rf"(?:after|since|from)\s+(?P<at>{INSTANT})"),
        lambda match, now: TimeSpan(seconds_of(match["at"]), max(now, seconds_of(match["at"]))),
    ),
    (_compile(rf"{_AT}(?P<at>{INSTANT})"), _instant),
    (_compile(rf"(?P<at>{DURATION})\s+into"), _instant),
    (
        _compile(rf"(?:at|in)\s+(?P<unit>second|minute|hour)\s+(?P<at>{NUMBER})"),
        lambda match, now: TimeSpan(_number(match["at"]) * _unit(match["unit"]), _number(match["at"]) * _unit(match["unit"])),
    ),
]
