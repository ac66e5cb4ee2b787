"""The synthetic world as a source, paced by the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import parse_qsl

from data.errors import SourceError
from data.frames import PTS_TOLERANCE_SECONDS, Frame
from data.sources.base import Slots, Source, SourceInfo
from data.world import PAIRS, make_world

FIELDS = ("seed", "seconds", "speed", "side", "needles")
MAX_SECONDS = 7 * 24 * 3600
EXAMPLE = "world:?seed=7&seconds=600&speed=1"


class WorldSource(Source):
    """`data.world.make_world`, frame by frame. `world` is its truth.

    speed: stream seconds per second of the clock; 0 gives frames as fast as they are asked for. Frames appear when they are
    due and none is dropped: drawing is cheap, so a reader that was slow catches up. Raises SourceError for bad values.
    """

    def __init__(
        self, seed: int = 7, seconds: int = 600, speed: float = 1.0, side: int = 128, needles: int = 6, label: str = ""
    ) -> None:
        _within("seed", seed, 0, 2**63 - 1)
        _within("seconds", seconds, 1, MAX_SECONDS)
        _within("speed", speed, 0, 1000)
        _within("side", side, 16, 2048)
        _within("needles", needles, 0, len(PAIRS) // 2)
        self.speed = speed
        self._key = f"world {seed} {seconds} {side} {needles}"
        try:
            self.world = make_world(seed, seconds, side, num_needles=needles)
        except (ValueError, IndexError) as error:
            raise SourceError(
                f"world: cannot be drawn with seed={seed}, seconds={seconds}, needles={needles}: {error}"
            ) from None
        super().__init__(
            SourceInfo(
                kind="world",
                label=label or f"world:?seed={seed}&seconds={seconds}&speed={speed:g}",
                live=speed > 0,
                width=side,
                height=side,
                duration_seconds=float(seconds),
            )
        )
        self.stats.reader = "drawn"

    @classmethod
    def parse(cls, spec: str) -> WorldSource:
        """From `world:?seed=7&seconds=600&speed=1[&side=128&needles=6]`."""
        body = spec.partition(":")[2]
        if body and not body.startswith("?"):
            raise SourceError(f"{spec}: after world: comes a question mark, for example {EXAMPLE}")
        try:
            pairs = parse_qsl(body[1:], keep_blank_values=True, strict_parsing=bool(body[1:]), max_num_fields=len(FIELDS))
        except ValueError:
            raise SourceError(f"{spec}: write name=value pairs joined by &, for example {EXAMPLE}") from None
        values: dict[str, int | float] = {}
        for name, text in pairs:
            if name not in FIELDS:
                raise SourceError(f"{spec}: unknown field {name!r}; known: {', '.join(FIELDS)}")
            if name in values:
                raise SourceError(f"{spec}: {name} is given twice")
            try:
                values[name] = float(text) if name == "speed" else int(text)
            except ValueError:
                kind = "a number" if name == "speed" else "a whole number"
                raise SourceError(f"{spec}: {name} must be {kind}, got {text!r}") from None
        return cls(**values)  # type: ignore[arg-type]

    @property
    def recording_key(self) -> str:
        return self._key

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """See `Source.frames`; `start_seconds` is shown at once."""
        slots = Slots(fps)
        self.stats.state = "live"
        began = time.monotonic()
        for frame in self.world.frames(fps, max(0.0, start_seconds - PTS_TOLERANCE_SECONDS)):
            if self.speed > 0:
                due = began + (frame.pts_seconds - max(0.0, start_seconds)) / self.speed
                if self._closed.wait(max(0.0, due - time.monotonic())):
                    break
                self.stats.lag_seconds = max(0.0, time.monotonic() - due)
            elif self.closed:
                break
            self.stats.frames_seen += 1
            if slots.due(frame.pts_seconds):
                yield frame
        self.stats.state = "ended"


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SourceError(f"world: {name} must be from {low} to {high}, got {value}")
