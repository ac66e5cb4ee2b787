"""Numbers that the flags of an evaluation take, within bounds; anything else ends the command with one line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

MOST = 10**9
MOST_SEED = 2**62


def whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """The type of a flag that takes a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        return int(_within(int, text, low, high))

    return parse


def amount(low: float, high: float = MOST) -> Callable[[str], float]:
    """The type of a flag that takes a number from `low` to `high`."""

    def parse(text: str) -> float:
        return _within(float, text, low, high)

    return parse


SEED = whole(0, MOST_SEED)


def _within(kind: type[int] | type[float], text: str, low: float, high: float) -> float:
    try:
        value = kind(text)
        if low <= value <= high:
            return value
    except ValueError:
        pass
    raise ArgumentTypeError(f"{text[:40]!r} is none; give a {'whole ' if kind is int else ''}number from {low:g} to {high:g}")
