"""Small video files and streams for tests, drawn from the synthetic world and written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data.world import make_world

TIME_BASE = Fraction(1, 90_000)
ENCODER_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}


def write_video(
    path: Path,
    *,
    times: Sequence[float] | None = None,
    seconds: float = 4.0,
    fps: int = 10,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    rotation: int = 0,
    gop: int = 10,
    offset_seconds: float = 0.0,
    still: bool = False,
    num_streams: int = 1,
    pixel_aspect: Fraction | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frame at time `t` is the world's picture at `t`, cut to `size` (width, height).

    times: pts of the frames in seconds (default: `fps` per second). still: one picture for ever.
    """
    times = times if times is not None else [i / fps for i in range(round(seconds * fps))]
    base = Fraction(1, fps) if codec == "mpeg4" else TIME_BASE
    world = make_world(seed=5, seconds=max(8, int(times[-1]) + 2), side=max(16, *size))
    width, height = size
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        streams = []
        for _ in range(num_streams):
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if width % 2 or height % 2:
                stream.pix_fmt = "yuv444p"
            stream.codec_context.time_base = base
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            stream.options = ENCODER_OPTIONS.get(codec, {})
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                stream.set_display_rotation(rotation)
            streams.append(stream)
        for t in times:
            picture = world.frame(0.0 if still else t)[:, :height, :width].transpose(1, 2, 0)
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = round((t + offset_seconds) / base), base
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def reference_frames(path: Path, stop_seconds: float = 1e9) -> list[tuple[float, np.ndarray]]:
    """(pts, uint8 [3, H, W]) of every frame by the shortest way: decode all, turn upright, count from the start."""
    out = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        origin = max(0.0, (container.start_time or 0) / 1e6)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                pts = frame.time - origin
                if pts > stop_seconds:
                    return out
                if pts >= -1e-9:
                    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    out.append((max(0.0, pts), np.ascontiguousarray(rgb.transpose(2, 0, 1))))
    return out


PUBLISHER = """
import sys, time, av, numpy as np
url, num = sys.argv[1], int(sys.argv[2])
for _ in range(60):
    out = av.open(url, "w", format="rtsp", options={"rtsp_transport": "tcp"})
    stream = out.add_stream("libx264", rate=20)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
    try:
        out.start_encoding()
        break
    except av.error.FFmpegError:
        time.sleep(0.05)
else:
    sys.exit(3)
for i in range(num):
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * 5 % 250, np.uint8), format="rgb24")
    frame.pts = i
    out.mux(stream.encode(frame))
    time.sleep(0.05)
out.mux(stream.encode(None))
out.close()
"""
"""A program that sends `num` frames to an RTSP URL, 20 a second. A process of its own: PyAV's muxers hold the GIL."""
