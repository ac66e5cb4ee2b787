"""Parameters of which some stand for all in the everyday run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def everyday(values: Iterable[Any], quick: Collection[Any] | None = None) -> list[Any]:
    """For `parametrize`: the quick ones (default: the first) always, the others only where slow tests run, too."""
    every = list(values)
    always = every[:1] if quick is None else quick
    return [value if value in always else pytest.param(value, marks=pytest.mark.slow) for value in every]
