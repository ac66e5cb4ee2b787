"""A progress bar with an estimate, on stderr, for long work; a line now and then where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

QUIET_SECONDS = 15.0
"""Without a terminal, a line this often is enough to see that work goes on."""
BAR = 24


class Progress:
    """`update(done)` in the unit of `total` (None: unknown). A context manager that cleans its line up."""

    def __init__(self, label: str, total: float | None, unit: str = "s", out: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self._started = self._shown = time.monotonic()

    def update(self, done: float) -> None:
        now = time.monotonic()
        if now - self._shown < (0.1 if self.live else QUIET_SECONDS):
            return
        self._shown = now
        elapsed = now - self._started
        words = f"{self.label} {done:.0f}"
        if self.total:
            share = min(1.0, done / self.total)
            left = elapsed / share - elapsed if share > 0 else 0.0
            bar = "█" * round(BAR * share) + "·" * (BAR - round(BAR * share))
            words = f"{self.label} {bar} {done:.0f}/{self.total:.0f} {self.unit}, {left:.0f} s left"
        self.out.write(f"\r\x1b[K{words}" if self.live else f"{words}\n")
        self.out.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.out.write("\r\x1b[K")
            self.out.flush()
