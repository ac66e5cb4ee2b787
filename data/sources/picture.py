"""From a decoded PyAV frame to the pixels that a model sees."""

from __future__ import annotations

import av
import numpy as np


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often the frame is turned by 90 degrees counter-clockwise to stand upright, 0 to 3."""
    return round(frame.rotation / 90) % 4


def shown_size(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """(width, height) of the frame with square pixels, before rotation."""
    return max(1, round(frame.width * pixel_aspect)), frame.height


def upright(frame: av.VideoFrame, pixel_aspect: float = 1.0) -> np.ndarray:
    """uint8 [3, H, W] RGB, contiguous: with square pixels and rotation applied."""
    width, height = shown_size(frame, pixel_aspect)
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns(frame)).transpose(2, 0, 1))


def pixel_aspect_of(stream: av.VideoStream) -> float:
    """Width of a pixel over its height; 1.0 when the stream names none or an absurd one."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 0.1 <= ratio <= 10 else 1.0
