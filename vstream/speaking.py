"""What the commands have in common of which a stream speaks without being asked, `watch` and `comment`."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

from data.errors import ConfigError, SourceError
from data.sources import Source
from vstream.config import SessionConfig
from vstream.models import chosen_settings
from vstream.progress import Progress
from vstream.remembered import memory_folder, stored_settings
from vstream.session import StreamSession


def add_stream_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, a URL, or world:?seed=7&seconds=600&speed=1")
    parser.add_argument("--until", type=float, metavar="SECONDS", help="stop at this stream time; default: at the end")


def watched(session: StreamSession, source: Source, until: float) -> Iterator[None]:
    """Feed the session up to stream time `until`, or to the end; yields after every chunk. Ctrl-C or SIGTERM end the stream, no
    more."""
    total = until if math.isfinite(until) else source.info.duration_seconds
    joined = session.join(source.info.label, source.recording_key, source.place_key)
    if joined.words:
        sys.stderr.write(f"{joined.words}\n")
    frames = takewhile(lambda frame: frame.pts_seconds <= until, source.frames(session.config.fps, joined.start_seconds))
    with Progress("watching", total) as progress:
        try:
            with _interrupted_by_sigterm():
                for record in session.feed(frames, lambda: source.waits):
                    progress.update(record.last_pts_seconds - session.offset_seconds)
                    yield
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
        session.finish()
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM is as Ctrl-C: what stops a service lets it tell what it has begun. Of the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def unasked_config(args: argparse.Namespace) -> SessionConfig:
    """The settings. Raises SourceError for a stored memory: what it remembers cannot be watched again."""
    if memory_folder(args.source) is not None:
        raise SourceError(f"{args.source} holds no pictures to watch; give the source that it was made from")
    return chosen_settings(args, stored_settings(args.memory))


def checked_until(until: float | None) -> float:
    if until is not None and not until > 0:
        raise ConfigError(f"--until is {until:g}; give a stream time after 0 s")
    return math.inf if until is None else until
