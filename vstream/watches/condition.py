"""What a watch waits for, as a person writes it: `tell me when a red circle appears`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.errors import WatchError
from vstream.answer import is_text

MAX_WATCHES = 16
MAX_CHARACTERS = 300
ASKING = re.compile(
    r"^(please\s+)?((tell|alert|warn|notify|inform|remind)\s+me|let\s+me\s+know|say|shout)?\s*"
    r"(when(ever)?|if|once|as soon as)\s+",
    re.IGNORECASE,
)
APPEARING = re.compile(r"\s+(appears?|shows? up|enters?|comes? in(to view)?|arrives?|becomes? visible)$", re.IGNORECASE)
NEGATION = re.compile(r"\b(not|no|never|n't|isn't|aren't|doesn't|don't|without)\b", re.IGNORECASE)
FILLING = {"a", "an", "the", "is", "are", "does", "do", "there", "any", "it", "one"}
OPPOSITES = (("appear", "disappear"), ("appear", "leave"), ("enter", "leave"), ("open", "close"), ("start", "stop"))


@dataclass(frozen=True)
class Condition:
    """text: the condition itself. subject: the thing that is to appear, where that is what it says; else empty."""

    text: str
    subject: str


def parse_condition(written: str) -> Condition:
    """The condition in what a person wrote, with or without "tell me when". Raises WatchError in one line."""
    if not is_text(written):
        raise WatchError("the watch holds characters that are no text; write it in UTF-8")
    text = " ".join(written.split())
    text = ASKING.sub("", f"{text} ").strip().rstrip(" .!?;,")
    if not any(character.isalnum() for character in text):
        raise WatchError('the watch is empty; say what to wait for, like "tell me when a red circle appears"')
    if len(text) > MAX_CHARACTERS:
        raise WatchError(f"the watch has {len(text)} characters; {MAX_CHARACTERS} is the most, shorten it")
    if re.fullmatch(r"(tell|alert|warn|notify|inform|remind) me|let me know|when(ever)?|if|once", text, re.IGNORECASE):
        raise WatchError(f'"{text}" does not say what to wait for; write "tell me when a red circle appears"')
    clash = _contradiction(text)
    if clash:
        raise WatchError(
            f'the watch contradicts itself ("{clash[0]}" and "{clash[1]}"); watch for one of them, or set two watches'
        )
    found = APPEARING.search(text)
    joined = re.search(r"\b(and|or|but|while)\b|,", text, re.IGNORECASE)
    return Condition(text, text[: found.start()] if found and not joined and not NEGATION.search(text) else "")


def _contradiction(text: str) -> tuple[str, str] | None:
    """Two parts of a condition that cannot both hold at a moment: a thing and its negation, or opposite verbs about it."""
    if re.search(r"\bor\b", text, re.IGNORECASE):
        return None
    parts = [part.strip() for part in re.split(r"\band\b|\bbut\b|\bwhile\b|,", text, flags=re.IGNORECASE) if part.strip()]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            differs = bool(NEGATION.search(one)) != bool(NEGATION.search(other))
            if differs and _core(one) == _core(other):
                return one, other
            if not NEGATION.search(one) and not NEGATION.search(other) and _opposite(_core(one), _core(other)):
                return one, other
    return None


def _core(part: str) -> list[str]:
    """The telling words of a part, without negation, articles and the endings of verbs."""
    words = re.findall(r"[\w']+", NEGATION.sub(" ", part).lower())
    return [re.sub(r"(?<=\w{3})s$", "", word) for word in words if word not in FILLING]


def _opposite(one: list[str], other: list[str]) -> bool:
    return one[:-1] == other[:-1] and any({one[-1], other[-1]} == set(pair) for pair in OPPOSITES if one and other)
