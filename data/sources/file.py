"""Recorded files: PyAV checks them and reads them; decord can be asked to read, and does where it is right.

PyAV is the reader because it is exact on every file that was tried, holds one frame at a time, and converts only the sampled
frames to RGB, which makes it as fast; `data.sources.decord_reader` says what was measured of decord.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import av.container
import av.error
import numpy as np

from data.errors import SourceError
from data.frames import PTS_TOLERANCE_SECONDS, Frame
from data.sources.base import Slots, Source
from data.sources.decord_reader import DecordMismatch, DecordReader
from data.sources.picture import pixel_aspect_of, upright
from data.sources.probe import open_file, probe_file, video_stream
from data.sources.size import check_size

Reader = Literal["pyav", "decord"]


class FileSource(Source):
    """A video file: every sampled frame is handed out, as fast as it is asked for, and one frame is held at a time.

    reader: who decodes. "decord" hands over to PyAV where it is not right, which `stats.reader` and a warning say.
    Raises SourceError for a file that cannot be used.
    """

    def __init__(self, path: str | Path, *, reader: Reader = "pyav") -> None:
        self._probe = probe_file(path)
        super().__init__(self._probe.info)
        self._decord: DecordReader | None = None
        self.stats.reader = reader
        for warning in self._probe.warnings:
            self.stats.warn(warning)
        if reader == "decord":
            self._new_decord()

    @property
    def recording_key(self) -> str:
        about = self._probe.path.stat()
        return f"file {self._probe.path.resolve()} {about.st_size} {about.st_mtime_ns}"

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """See `Source.frames`. Broken packets are skipped, counted in `stats.frames_broken` and warned about."""
        slots = Slots(fps)
        start = max(0.0, start_seconds)
        last = -math.inf
        self.stats.state = "live"
        if self.stats.reader == "decord":
            try:
                for frame in self._decord_frames(slots, start):
                    last = frame.pts_seconds
                    yield frame
            except DecordMismatch as error:
                self._hand_over(error)
                # The slots that decord took without handing out a frame are free again.
                slots = Slots(fps)
                if last >= 0:
                    slots.due(last)
        if self.stats.reader != "decord" and not self.closed:
            yield from self._pyav_frames(slots, max(start, last))
        self.stats.state = "ended"

    def _new_decord(self) -> None:
        try:
            self._decord = DecordReader(self._probe)
        except DecordMismatch as error:
            self._hand_over(error)

    def _hand_over(self, error: DecordMismatch) -> None:
        self.stats.reader = f"pyav ({error})"
        self.stats.warn(f"{self.info.label}: read with PyAV, not decord: {error}")

    def _decord_frames(self, slots: Slots, start: float) -> Iterator[Frame]:
        # A decord reader goes one way: the one that was opened to see whether it can is used once.
        reader, self._decord = self._decord or DecordReader(self._probe), None
        for pts, picture in reader.pictures():
            if self.closed:
                return
            self.stats.frames_seen += 1
            if pts >= start - PTS_TOLERANCE_SECONDS and slots.due(pts):
                yield Frame(np.ascontiguousarray(picture.transpose(2, 0, 1)), pts, self._frame_seconds())

    def _frame_seconds(self) -> float:
        return 1.0 / self.info.fps if self.info.fps else 0.0

    def _pyav_frames(self, slots: Slots, start: float) -> Iterator[Frame]:
        try:
            for back in (0.0, 10.0, start) if start > 0 else (0.0,):
                pictures = self._decode(max(0.0, start - back))
                first = next(pictures, None)
                # A container without an index may land after the place that was asked for: look further back.
                if first is not None and (first[1] <= start + PTS_TOLERANCE_SECONDS or back >= start):
                    break
            while first is not None and not self.closed:
                frame, pts, aspect = first
                if pts >= start - PTS_TOLERANCE_SECONDS and slots.due(pts):
                    check_size(frame.width, frame.height, self.info.label)
                    seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
                    yield Frame(upright(frame, aspect), pts, seconds or self._frame_seconds())
                first = next(pictures, None)
        except av.error.FFmpegError as error:
            self.stats.state = "failed"
            raise SourceError(f"{self.info.label}: cannot be read any further ({error.strerror})") from None

    def _decode(self, from_seconds: float) -> Iterator[tuple[av.VideoFrame, float, float]]:
        """(frame, pts in seconds of presentation, pixel aspect), pts strictly increasing, from the key frame before."""
        origin = self._probe.origin_seconds
        with open_file(self._probe.path) as container:
            stream = video_stream(container, self.info.label)
            assert stream.time_base is not None
            if from_seconds > 0:
                try:
                    container.seek(int((from_seconds + origin) / stream.time_base), stream=stream)
                except av.error.FFmpegError:
                    return
            aspect, last = pixel_aspect_of(stream), -1e-9
            for frame in self._decoded(container, stream):
                self.stats.frames_seen += 1
                if frame.pts is not None:
                    pts = float(frame.pts * stream.time_base) - origin
                else:
                    pts = max(last, 0.0) + (self._frame_seconds() if last >= 0 else 0.0)
                if pts > last:
                    last = pts
                    yield frame, max(pts, 0.0), aspect

    def _decoded(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while not self.closed:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.stats.warn(f"{self.info.label}: the file breaks off ({error.strerror}); what came before was read")
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.stats.frames_broken += 1
                self.stats.warn(f"{self.info.label}: holds damaged data; frames that could not be decoded were left out")
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                yield frame
