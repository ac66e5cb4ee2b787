"""Checks a file before anything else touches it: PyAV alone can be told which formats and protocols it may open."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
from av.stream import Disposition

from data.errors import SourceError
from data.sources.base import SourceInfo
from data.sources.picture import pixel_aspect_of, quarter_turns, shown_size
from data.sources.size import check_size

FORMATS = "mov,mp4,matroska,webm,mpegts,mpeg,avi,flv,ogg,gif,asf"
"""Containers that hold their own pictures. Playlists and lists of files (hls, dash, concat, ...) are left out on purpose."""
INDEX_BYTES = 512 * 2**20
"""Files up to this size are walked packet by packet, which tells where they really end; longer ones only at their end."""
TRIES = 300
"""Packets that may fail to decode before a file counts as undecodable."""


@dataclass(frozen=True)
class Probe:
    """What a checked file holds.

    origin_seconds: container time at which the presentation starts. pts_seconds: float64 [packets], sorted, counted from the
    origin, or None where the file was not walked. plain: every packet becomes one frame, in an order that pts tells, with
    square pixels, upright, in a container that hides nothing. warnings: what is wrong but can be lived with.
    """

    path: Path
    info: SourceInfo
    origin_seconds: float
    pts_seconds: np.ndarray | None
    plain: bool
    warnings: tuple[str, ...]


def open_file(path: Path) -> av.container.InputContainer:
    """A container that can reach nothing but `path`. Raises av.error.FFmpegError."""
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    return av.open(f"file:{path}", mode="r", options=options, metadata_errors="ignore")


def video_stream(container: av.container.InputContainer, label: str) -> av.VideoStream:
    """The best video stream. Raises SourceError if there is none, or only a cover picture."""
    stream = container.streams.best("video")
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise SourceError(f"{label}: there is no video stream in it (it holds {kinds}); give a file with a picture")
    assert isinstance(stream, av.VideoStream)
    if stream.disposition & Disposition.attached_pic:
        raise SourceError(f"{label}: there is only a cover picture in it, no video; give a file with a video stream")
    return stream


def origin_of(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Container time, in seconds, that a player shows as 0. A negative start is trimmed away by players, so it is 0."""
    if container.start_time is not None:
        return max(0.0, container.start_time / av.time_base)
    if stream.start_time is not None and stream.time_base is not None:
        return max(0.0, float(stream.start_time * stream.time_base))
    return 0.0


def probe_file(path: str | Path) -> Probe:
    """Check the file at `path` and say what it holds. Raises SourceError with one line: what is wrong and what to do."""
    path, label = Path(os.path.expanduser(path)), Path(path).name or str(path)
    _check_regular(path, label)
    path = path.absolute()
    try:
        with open_file(path) as container:
            stream = video_stream(container, label)
            check_size(stream.width, stream.height, label)
            frame = _first_frame(container, stream, label)
            aspect = pixel_aspect_of(stream)
            width, height = shown_size(frame, aspect)
            if quarter_turns(frame) % 2:
                width, height = height, width
            check_size(width, height, label)
            declared = container.duration / av.time_base if container.duration and container.duration > 0 else None
            info = SourceInfo(
                kind="file",
                label=label,
                live=False,
                width=width,
                height=height,
                fps=float(stream.average_rate) if stream.average_rate else None,
                duration_seconds=declared,
                rotation=frame.rotation % 360,
                codec=stream.codec_context.name,
            )
            origin = origin_of(container, stream)
            # Transport streams and their like can hide frames that a decoder starting elsewhere would show.
            exact_container = container.format.name.startswith(("mov", "matroska")) and info.rotation == 0
        pts, end, plain = _walk(path, origin)
    except av.error.FFmpegError as error:
        raise SourceError(explain(error, label)) from None
    warnings = []
    missing = (declared or 0.0) - end
    if declared and missing > max(1.0, 0.02 * declared):
        warnings.append(
            f"{label}: cut short: {declared:.1f} s are declared, the last {missing:.1f} s are missing; "
            f"what is there is read to {max(end, 0.0):.1f} s"
        )
    return Probe(path, info, origin, pts, plain and aspect == 1.0 and exact_container, tuple(warnings))


def _check_regular(path: Path, label: str) -> None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{label}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{label}: cannot be reached ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{label}: this is a folder; give one video file in it")
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{label}: this is not a regular file; give a video file or a URL")
    if status.st_size == 0:
        raise SourceError(f"{label}: the file is empty; copy or record it again")
    if not os.access(path, os.R_OK):
        raise SourceError(f"{label}: no permission to read the file")


def _first_frame(container: av.container.InputContainer, stream: av.VideoStream, label: str) -> av.VideoFrame:
    for number, packet in enumerate(container.demux(stream)):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            frames = []
        if frames:
            assert isinstance(frames[0], av.VideoFrame)
            check_size(frames[0].width, frames[0].height, label)
            return frames[0]
        if number >= TRIES:
            break
    codec = stream.codec_context.name
    raise SourceError(f"{label}: not one picture could be decoded ({codec}); the data is damaged: convert or record it again")


def _walk(path: Path, origin: float) -> tuple[np.ndarray | None, float, bool]:
    """(sorted pts of the video packets or None, seconds at which the last packet of any stream ends, whether plain)."""
    with open_file(path) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        whole = os.path.getsize(path) <= INDEX_BYTES
        pts: list[float] = []
        end, plain = 0.0, True
        if not whole and not container.duration:
            return None, math.inf, False
        try:
            if not whole and container.duration:
                container.seek((container.start_time or 0) + max(0, container.duration - 10 * av.time_base))
            for packet in container.demux():
                if packet.size == 0 or packet.time_base is None:
                    continue
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None:
                    at = float(stamp * packet.time_base) - origin
                    end = max(end, at + float((packet.duration or 0) * packet.time_base))
                if packet.stream_index == stream.index:
                    plain &= packet.pts is not None and not packet.is_discard and not packet.is_corrupt
                    if stamp is not None and whole:
                        pts.append(at)
        except av.error.FFmpegError:
            plain = False
        if not whole:
            return None, end or math.inf, False
        index = np.sort(np.asarray(pts, np.float64))
        plain &= len(index) > 0 and index[0] > -1e-6 and bool((np.diff(index) > 1e-6).all())
        return index, end, plain


_REASONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (av.error.FileNotFoundError, "there is no such file; check the path"),
    (av.error.PermissionError, "no permission to read the file"),
    (av.error.DecoderNotFoundError, "no decoder for its codec in this FFmpeg; convert it to H.264"),
    (
        (av.error.InvalidDataError, av.error.DemuxerNotFoundError, av.error.ArgumentError),
        "not a video that can be read: damaged, cut off at its start, or not one of mp4, mov, mkv, webm, ts, mpeg, avi, flv, "
        "ogg, wmv, gif; convert it or check where it came from",
    ),
)


def explain(error: av.error.FFmpegError, label: str) -> str:
    """One line for a user. FFmpeg's own words never hold the path or URL here."""
    for kind, text in _REASONS:
        if isinstance(error, kind):
            return f"{label}: {text}"
    return f"{label}: cannot be read ({error.strerror or type(error).__name__}); check the file"
