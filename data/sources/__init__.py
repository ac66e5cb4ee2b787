"""Where frames come from: files, live URLs, cameras and the synthetic world. `open_source` is the way in.

Decoders are imported when a source that needs them is opened, so that `data.sources` works where they are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data.sources.base import Source, SourceInfo, SourceStats
from data.sources.camera import PushSource
from data.sources.open import file_named, load, open_source
from data.sources.world_source import WorldSource

if TYPE_CHECKING:
    from data.sources.file import FileSource
    from data.sources.live import LiveSource
    from data.sources.probe import Probe, probe_file

_LAZY = {"FileSource": "file", "LiveSource": "live", "Probe": "probe", "probe_file": "probe"}

__all__ = [
    "FileSource",
    "LiveSource",
    "Probe",
    "PushSource",
    "Source",
    "SourceInfo",
    "SourceStats",
    "WorldSource",
    "file_named",
    "open_source",
    "probe_file",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(load(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
