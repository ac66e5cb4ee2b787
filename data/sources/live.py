"""Live streams over RTSP, HLS and HTTP: read in a thread of their own, newest frames win, lost connections come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping

import av
import av.container
import av.error

from data.errors import SourceError
from data.frames import PTS_TOLERANCE_SECONDS, Frame
from data.sources.base import Slots, Source, SourceInfo
from data.sources.connection import connect, is_hls, refused_part
from data.sources.hosts import LiveURL, check_url, key_of
from data.sources.picture import pixel_aspect_of, upright
from data.sources.probe import video_stream
from data.sources.size import check_size
from data.sources.timeline import Timeline

QUEUE_SECONDS = 2.0
"""Sampled frames that wait for a slow reader; older ones give way."""
MAX_BACKOFF_SECONDS = 30.0


class LiveSource(Source):
    """A URL. Opens in the constructor, so that a wrong address is an error there; raises SourceError.

    A stream with an end (a video file over HTTP) is played to it, and every sampled frame waits to be read. Any other is live:
    when its reader is slow the newest frames win, and after a loss it is opened again up to `reconnect_attempts` times, after
    `backoff_seconds`, twice that, and so on. options: more of FFmpeg's options.
    """

    def __init__(
        self,
        url: str,
        *,
        allow_private_hosts: bool = False,
        open_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 10.0,
        reconnect_attempts: int = 5,
        backoff_seconds: float = 0.5,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._allow_private_hosts = allow_private_hosts
        self._timeouts = (open_timeout_seconds, read_timeout_seconds)
        self._attempts = reconnect_attempts
        self._backoff_seconds = backoff_seconds
        self._options = options
        self._queue: deque[tuple[float, Frame]] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: str | None = None
        self._done = False
        self._thread: threading.Thread | None = None
        self._container: av.container.InputContainer | None = None
        info, container = self._connect()
        self._label = info.label
        super().__init__(info)
        self._container = container
        self.stats.reader = "pyav"

    @property
    def recording_key(self) -> str:
        return "" if self.info.live else f"recording {key_of(self._url)} {self.info.duration_seconds}"

    @property
    def place_key(self) -> str:
        return f"live {key_of(self._url)}" if self.info.live else ""

    @property
    def waits(self) -> bool:
        return bool(self._queue)

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """See `Source.frames`. Ends when the stream ends or `close` is called; SourceError when it is lost for good."""
        slots = Slots(fps)
        if self._thread is not None:
            raise SourceError(f"{self._label}: is already being read; open it again for another reader")
        self._thread = threading.Thread(target=self._run, args=(slots, start_seconds), name="live-source", daemon=True)
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._done or self.closed)
                    if self.closed:
                        return
                    if not self._queue:
                        break
                    arrived, frame = self._queue.popleft()
                    self._changed.notify_all()
                self.stats.lag_seconds = time.monotonic() - arrived
                yield frame
            if self._failure is not None:
                raise SourceError(self._failure)
        finally:
            self._stop.set()
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """End `frames()` at once. The thread ends by itself, at the latest when its read times out."""
        super().close()
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is None and self._container is not None:
            self._container.close()
            self._container = None

    def _connect(self) -> tuple[SourceInfo, av.container.InputContainer]:
        checked = check_url(self._url, self._allow_private_hosts, self._timeouts[0])
        container = connect(checked, *self._timeouts, self._allow_private_hosts, self._options)
        try:
            return _describe(checked, container), container
        except SourceError:
            container.close()
            raise
        except av.error.FFmpegError as error:
            container.close()
            raise SourceError(f"{checked.label}: cannot be read ({error.strerror or type(error).__name__})") from None

    def _run(self, slots: Slots, start_seconds: float) -> None:
        container, self._container = self._container, None
        timeline = Timeline(follow_clock=self.info.live)
        failures = 0
        finished = False
        try:
            while container is not None and not self._stop.is_set():
                seen = self.stats.frames_seen
                reason = self._read(container, slots, timeline, start_seconds)
                if refusal := refused_part(container):
                    self.stats.warn(refusal)
                container.close()
                container = None
                failures = 0 if self.stats.frames_seen > seen else failures
                if not self.info.live:
                    self._failure = reason
                    break
                container, failures = self._reconnect(reason, timeline, failures)
            finished = True
        except SourceError as error:
            self._failure = str(error)
        finally:
            if not finished and self._failure is None:
                self._failure = f"{self._label}: reading stopped because of a fault in this program; see the log"
            if container is not None:
                container.close()
            self.stats.state = "failed" if self._failure else "ended"
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _reconnect(
        self, reason: str | None, timeline: Timeline, failures: int
    ) -> tuple[av.container.InputContainer | None, int]:
        """The stream opened again, or None when it has ended; and the number of failures in a row."""
        lost_at = timeline.last_seconds or 0.0
        while not self._stop.is_set():
            failures += 1
            if failures > self._attempts:
                if reason is None:
                    self.stats.warn(f"{self._label}: ended at {lost_at:.1f} s and did not come back")
                self._failure = reason
                return None, failures
            self.stats.state = "reconnecting"
            if self._stop.wait(min(MAX_BACKOFF_SECONDS, self._backoff_seconds * 2 ** (failures - 1))):
                break
            try:
                info, container = self._connect()
            except SourceError as error:
                reason = str(error) if reason is not None else None
                continue
            if not info.live:
                container.close()  # The playlist was closed meanwhile: what it still lists has been seen.
                return None, failures
            self.stats.reconnects += 1
            timeline.restart()
            return container, failures
        return None, failures

    def _read(
        self, container: av.container.InputContainer, slots: Slots, timeline: Timeline, start_seconds: float
    ) -> str | None:
        """Decode into the queue until the stream ends (None) or breaks (the reason, one line)."""
        stream = video_stream(container, self._label)
        aspect = pixel_aspect_of(stream)
        resumed_from = timeline.last_seconds
        packets = container.demux(stream)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                if isinstance(error, av.error.EOFError):
                    return None
                if time.monotonic() - started >= 0.9 * self._timeouts[1]:
                    return f"{self._label}: sent nothing for {self._timeouts[1]:g} s; check the camera and the network"
                return f"{self._label}: the connection broke ({error.strerror or type(error).__name__})"
            if packet is None:
                return None
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                self.stats.frames_broken += 1
                continue
            for frame in decoded:
                assert isinstance(frame, av.VideoFrame)
                now = time.monotonic()
                self.stats.frames_seen += 1
                self.stats.state = "live"
                stamp = None if frame.pts is None or stream.time_base is None else float(frame.pts * stream.time_base)
                pts = timeline.place(stamp, now)
                if resumed_from is not None:
                    self._mark_gap(resumed_from, pts)
                    resumed_from = None
                if pts >= start_seconds - PTS_TOLERANCE_SECONDS and slots.due(pts):
                    check_size(frame.width, frame.height, self._label)
                    self._offer(now, Frame(upright(frame, aspect), pts, 1.0 / slots.fps), slots.fps)
        return None

    def _mark_gap(self, lost_at: float, back_at: float) -> None:
        self.stats.gaps.append((lost_at, back_at))
        self.stats.warn(f"{self._label}: connection lost at {lost_at:.1f} s of the stream, back at {back_at:.1f} s")

    def _offer(self, arrived: float, frame: Frame, fps: float) -> None:
        room = max(2, round(QUEUE_SECONDS * fps))
        with self._changed:
            if self.info.live:
                while len(self._queue) >= room:
                    self._queue.popleft()
                    self.stats.frames_dropped += 1
            else:
                self._changed.wait_for(lambda: len(self._queue) < room or self._stop.is_set())
            self._queue.append((arrived, frame))
            self._changed.notify_all()


def _describe(url: LiveURL, container: av.container.InputContainer) -> SourceInfo:
    stream = video_stream(container, url.label)
    if stream.width and stream.height:
        check_size(stream.width, stream.height, url.label)
    duration = container.duration / av.time_base if container.duration and container.duration > 0 else None
    sized = url.scheme in ("http", "https") and not is_hls(url) and container.size > 0
    finite = not url.scheme.startswith("rtsp") and (duration is not None or sized)
    return SourceInfo(
        kind="live",
        label=url.label,
        live=not finite,
        width=round(stream.width * pixel_aspect_of(stream)),
        height=stream.height,
        fps=float(stream.average_rate) if stream.average_rate else None,
        duration_seconds=duration if finite else None,
        codec=stream.codec_context.name,
    )
