"""decord behind one file: it reads the frames of a checked, plain and short file in order, or says that it cannot.

Measured with decord2 3.4 against PyAV, frame by frame. Read in order, with nothing skipped, its frames are the same to the
bit. Everything else about it is unsafe here: after a seek or a skip it hands out pictures from up to 10 frames earlier
without an error, even on a plain clip; after 10,000 waits it gives up skipping and returns the frame it is at; it repeats a
neighbour for every frame that an edit list hides; it turns some rotated files and not others; and while it waits it decodes
ahead without bound (9 GB on 20 s of 1080p). So it reads in order only, and only files that fit into `AHEAD_BYTES` whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.sources.probe import Probe

MAX_FRAMES = 5_000
"""Half of the waits after which decord repeats a frame instead of waiting on."""
AHEAD_BYTES = 2**30
"""Most that decord holds if it decodes a whole file ahead of a slow consumer."""
NO_FAULTS = 1e-9
"""decord repeats a neighbour for a frame that it cannot decode; with this tolerance it raises instead."""


class DecordMismatch(Exception):
    """decord cannot read this file, or not as PyAV does."""


class DecordReader:
    """Frames of `probed` in order. Raises DecordMismatch, at opening or while reading, where they would not be right."""

    def __init__(self, probed: Probe) -> None:
        pts, info = probed.pts_seconds, probed.info
        if pts is None or not probed.plain:
            raise DecordMismatch("its packets do not match its frames one to one")
        if len(pts) > MAX_FRAMES or len(pts) * info.width * info.height * 3 > AHEAD_BYTES:
            raise DecordMismatch("too long for a decoder that reads ahead without bound")
        try:
            import decord
        except (ImportError, OSError) as error:
            raise DecordMismatch("decord is not installed: pip install decord2") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._error = decord.DECORDError
        self._pts = pts
        self._shape = (info.height, info.width, 3)
        try:
            self._video = decord.VideoReader(str(probed.path), ctx=decord.cpu(0), num_threads=1, fault_tol=NO_FAULTS)
            stamps = self._video.get_frame_timestamp(range(len(self._video)))[:, 0].astype(np.float64)
        except (self._error, RuntimeError, AssertionError) as error:
            raise DecordMismatch("decord cannot open it") from error
        # decord counts from the stream's own start, in 32-bit floats; the distances must still be PyAV's.
        if len(stamps) != len(pts) or np.abs((stamps - stamps[0]) - (pts - pts[0])).max() > 1e-3:
            raise DecordMismatch("decord's timestamps differ from PyAV's")

    def pictures(self) -> Iterator[tuple[float, np.ndarray]]:
        """(pts in seconds, uint8 [H, W, 3] RGB upright) of every frame of the file."""
        for pts in self._pts:
            try:
                picture = self._video.next().asnumpy()
            except (self._error, RuntimeError, StopIteration) as error:
                raise DecordMismatch("decord failed on damaged data") from error
            if picture.shape != self._shape:
                raise DecordMismatch("the picture changes its size")
            yield float(pts), picture
