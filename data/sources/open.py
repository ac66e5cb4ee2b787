"""One way in: from the words that a user gives to a source."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data.errors import SourceError
from data.sources.base import Source

SCHEMES = ("rtsp", "rtsps", "http", "https")
PACKAGES = {"av": "PyAV is not installed: pip install 'av>=15,<19'", "decord": "decord is not installed: pip install decord2"}


def open_source(
    spec: str,
    *,
    allow_private_hosts: bool = False,
    allow_files: bool = True,
    open_timeout_seconds: float = 10.0,
    read_timeout_seconds: float = 10.0,
    reconnect_attempts: int = 5,
) -> Source:
    """Open a file, a `file:` URL, a live URL (rtsp, rtsps, http, https) or a `world:`. The time-outs are for live URLs.

    allow_files: False where the words come from a web page. allow_private_hosts: also open hosts in the local network.
    Raises SourceError with one line: what was wrong and what to do.
    """
    spec = spec.strip()
    if not spec:
        raise SourceError("no source given; give a file, a URL or world:?seed=7&seconds=600&speed=1")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", spec)
    scheme = match.group(1).lower() if match else ""
    if scheme == "world":
        return load("world_source").WorldSource.parse(spec)
    if scheme in SCHEMES:
        return load("live").LiveSource(
            spec,
            allow_private_hosts=allow_private_hosts,
            open_timeout_seconds=open_timeout_seconds,
            read_timeout_seconds=read_timeout_seconds,
            reconnect_attempts=reconnect_attempts,
        )
    if scheme and scheme != "file" and not (allow_files and os.path.exists(spec)):
        raise SourceError(f"cannot open {scheme}: sources; known: a file, file:, world:, {', '.join(s + ':' for s in SCHEMES)}")
    if not allow_files:
        raise SourceError("files can be opened only from the command line; upload the video or give a URL")
    return load("file").FileSource(file_named(spec))


def file_named(spec: str) -> Path:
    """The file that a source names, be it there or not. Raises SourceError for a `file:` URL that names none."""
    spec = spec.strip()
    return Path(os.path.expanduser(_path(spec) if spec.lower().startswith("file:") else spec))


def load(module: str) -> Any:
    """A module of this package. Raises SourceError that says what to install if it needs a package that is missing."""
    try:
        return importlib.import_module(f"data.sources.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in PACKAGES:
            raise SourceError(PACKAGES[package]) from error
        raise


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"file: URLs name no host, got {parts.netloc}; write file:///path/to/video.mp4")
    path = unquote(parts.path)
    if not path:
        raise SourceError("the file: URL holds no path; write file:///path/to/video.mp4")
    return path
