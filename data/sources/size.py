"""Which sizes of pictures can be used, wherever they come from."""

from __future__ import annotations

from data.errors import SourceError

MIN_SIDE = 2
MAX_SIDE = 16384
MAX_PIXELS = 64_000_000
MAX_ASPECT = 200
"""Vision models refuse pictures that are longer than this times their width."""


def check_size(width: int, height: int, label: str) -> None:
    """Raise SourceError if a picture of this size cannot be used."""
    if width < MIN_SIDE or height < MIN_SIDE:
        raise SourceError(
            f"{label}: the picture is {width}x{height} pixels, too small to show anything; a picture must be at least 2x2"
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise SourceError(
            f"{label}: the picture is {width}x{height} pixels; up to {MAX_SIDE} a side and 64 megapixels can be read"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise SourceError(f"{label}: the picture is {width}x{height} pixels, a strip over {MAX_ASPECT}:1; crop or scale it")
