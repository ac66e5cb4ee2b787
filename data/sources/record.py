"""Writes a world as a video file, so that whatever reads files can be measured against the schedule."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.errors import SourceError
from data.world import World

ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "23"}),
    "vp9": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "crf": "32", "b": "0"}),
}
TIME_BASE = Fraction(1, 90_000)


def write_world(world: World, path: Path, codec: str = "h264", fps: int = 10, jitter_seconds: float = 0.0) -> Path:
    """Encode `world` at its own side. jitter_seconds > 0 moves every frame later by up to that much: a variable frame rate.

    codec: h264 or vp9. Raises SourceError for an unknown codec.
    """
    if codec not in ENCODERS:
        raise SourceError(f"cannot write {codec!r}; known: {', '.join(ENCODERS)}")
    encoder, options = ENCODERS[codec]
    rng = np.random.default_rng(world.background.noise_seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=fps)
        stream.width = stream.height = world.side
        stream.pix_fmt = "yuv444p" if world.side % 2 else "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        stream.codec_context.thread_count = 1
        stream.options = options
        for index in range(world.seconds * fps):
            t = index / fps + (float(rng.uniform(0, min(jitter_seconds, 0.9 / fps))) if jitter_seconds else 0.0)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(world.frame(t).transpose(1, 2, 0)), format="rgb24")
            frame.pts, frame.time_base = round(t / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
