"""A source that remembers what passed by, so that the page can show the newest frame and past moments large."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data.frames import Frame, tick_of
from data.sources import Source, SourceInfo, SourceStats

PREVIEW_SIDE = 480
MAX_PICTURES = 900
"""Pictures of past moments that are held in RAM, about 20 KB each; older moments fall back on the chunk's thumbnail."""


class WatchedSource(Source):
    """`inner` with a memory: the newest frame, and one JPEG per chunk. Nothing is written to a file."""

    def __init__(self, inner: Source, chunk_seconds: float) -> None:
        super().__init__(inner.info)
        self.inner = inner
        self.chunk_seconds = chunk_seconds
        self._newest: Frame | None = None
        self._preview: tuple[float, bytes] | None = None
        self._pictures: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def info(self) -> SourceInfo:
        return self.inner.info

    @property
    def stats(self) -> SourceStats:
        return self.inner.stats

    @property
    def recording_key(self) -> str:
        return self.inner.recording_key

    @property
    def place_key(self) -> str:
        return self.inner.place_key

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """See `Source.frames`."""
        last = None
        for frame in self.inner.frames(fps, start_seconds):
            slot = tick_of(frame.pts_seconds, 1 / self.chunk_seconds)
            if slot != last:
                self._keep(slot, preview_jpeg(frame.data))
                last = slot
            self._newest = frame
            yield frame

    def close(self) -> None:
        super().close()
        self.inner.close()

    def newest(self) -> tuple[float, bytes] | None:
        """Stream time and JPEG of the newest frame, encoded when it is asked for and only once."""
        frame = self._newest
        if frame is None:
            return None
        preview = self._preview
        if preview is None or preview[0] != frame.pts_seconds:
            preview = (frame.pts_seconds, preview_jpeg(frame.data))
            self._preview = preview
        return preview

    def picture(self, chunk_id: int) -> bytes | None:
        """The JPEG of a chunk's first frame, if it is still held."""
        with self._lock:
            return self._pictures.get(chunk_id)

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        """Throw away the pictures of the chunks that overlap a span, and the newest frame if it is in one of them."""
        first = tick_of(start_seconds, 1 / self.chunk_seconds)
        with self._lock:
            for slot in list(self._pictures):
                if first <= slot and slot * self.chunk_seconds < end_seconds:
                    del self._pictures[slot]
        newest = self._newest
        if newest is not None and first * self.chunk_seconds <= newest.pts_seconds < end_seconds:
            self._newest = self._preview = None

    def _keep(self, slot: int, jpeg: bytes) -> None:
        with self._lock:
            self._pictures[slot] = jpeg
            while len(self._pictures) > MAX_PICTURES:
                self._pictures.popitem(last=False)


def preview_jpeg(frame: np.ndarray) -> bytes:
    """A JPEG of at most 480 x 480 pixels. frame: uint8 [3, H, W]."""
    step = max(1, max(frame.shape[1:]) // (2 * PREVIEW_SIDE))
    image = Image.fromarray(np.ascontiguousarray(frame[:, ::step, ::step].transpose(1, 2, 0)))
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
