"""Words burnt into a clip: every frame of a source, with what is said at its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.errors import SourceError
from data.frames import Frame

TIME_BASE = Fraction(1, 90_000)
Cue = tuple[float, float, str]
"""(start_seconds, end_seconds, text) of something that is said."""


def burn(frames: Iterable[Frame], cues: Sequence[Cue], path: Path, fps: float) -> int:
    """Encode `frames` as H.264, at their own times, with the words of `cues`, which are in order. Returns the number of frames.

    fps: about how many there are per second. Raises SourceError if nothing can be written.
    """
    num, at = 0, 0
    try:
        with av.open(str(path), "w") as container:
            stream: Any = None
            for frame in frames:
                while at < len(cues) and cues[at][1] <= frame.pts_seconds:
                    at += 1
                said = cues[at][2] if at < len(cues) and cues[at][0] <= frame.pts_seconds else ""
                picture = np.ascontiguousarray(_even(with_words(frame.data, said)).transpose(1, 2, 0))
                if stream is None:
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                    stream.height, stream.width = picture.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.time_base = TIME_BASE
                    stream.options = {"preset": "veryfast", "crf": "23"}
                out = av.VideoFrame.from_ndarray(picture, format="rgb24")
                out.pts, out.time_base = round(frame.pts_seconds / TIME_BASE), TIME_BASE
                container.mux(stream.encode(out))
                num += 1
            if stream is not None:
                container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError, ValueError) as error:
        raise SourceError(f"{path} cannot be written: {error}; give a writable file that ends in .mp4") from error
    if not num:
        raise SourceError(f"{path} was not written: the source gave no frames")
    return num


def with_words(picture: np.ndarray, words: str) -> np.ndarray:
    """`picture` uint8 [3, H, W] with `words` in light letters on a dark band at its foot; itself where there are none."""
    if not words:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(size=max(9, image.height // 16))
    lines = _wrapped(words, font, image.width - 8)
    height = max(font.getbbox("Ag")[3], 1) + 2
    top = max(0, image.height - len(lines) * height - 6)
    draw.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 170))
    for number, line in enumerate(lines):
        draw.text((image.width / 2, top + 3 + number * height), line, fill=(255, 255, 255, 255), font=font, anchor="ma")
    return np.asarray(image).transpose(2, 0, 1)


def _wrapped(words: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _even(picture: np.ndarray) -> np.ndarray:
    """Without the last row and column where a side is odd: H.264 wants even sides."""
    return picture[:, : picture.shape[1] // 2 * 2, : picture.shape[2] // 2 * 2]
