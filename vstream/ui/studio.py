"""All open browser tabs over one model: who may open, what a page may start, and when things are closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from pathlib import Path

from data.errors import SourceError, VStreamError
from data.sources import open_source
from memory.library import delete
from memory.opening import open_memory
from memory.room import is_pinned, pin
from memory.upkeep import forget_span, leaves_traces
from model_adapters.base import ModelAdapter
from vstream.config import SessionConfig
from vstream.library import Library
from vstream.remembered import memory_folder
from vstream.session import StreamSession
from vstream.turns import Turns
from vstream.ui.tab import Tab

DEMO_SOURCE = "world:?seed=7&seconds=600&speed=1"
MAX_TABS = 8
SILENT_SECONDS = 300.0
"""A page that has not refreshed for this long gives up its place when somebody else needs it."""
MAX_UPLOAD_SECONDS = 6 * 3600
URL_SCHEMES = ("rtsp://", "rtsps://", "http://", "https://")


class PageError(VStreamError):
    """A page that cannot be opened, or that is not open any more."""


class Studio:
    """The tabs by key. A key is known to its own page only.

    start_source: what every page watches first; None: nothing. folder: the library, in which streams are remembered; None:
    nothing is written. webhook_hosts: the hosts, `name` or `name:port`, to which a page may have its alerts posted.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        config: SessionConfig | None = None,
        *,
        start_source: str | None = DEMO_SOURCE,
        folder: Path | None = None,
        allow_private_hosts: bool = False,
        webhook_hosts: Collection[str] = (),
        max_tabs: int = MAX_TABS,
    ) -> None:
        self.adapter = adapter
        self.config = config or SessionConfig()
        self.start_source = start_source
        self.library = Library(folder, self.config) if folder else None
        self.allow_private_hosts = allow_private_hosts
        self.webhook_hosts = frozenset(webhook_hosts)
        self.max_tabs = max_tabs
        self.turns = Turns()
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tabs)

    def open(self, key: str) -> Tab:
        """The tab of `key`, made if it is new. Raises PageError when there are too many."""
        silent = None
        with self._lock:
            if key in self._tabs:
                return self._tabs[key]
            if len(self._tabs) >= self.max_tabs:
                oldest = min(self._tabs, key=lambda k: self._tabs[k].last_seen)
                if time.monotonic() - self._tabs[oldest].last_seen < SILENT_SECONDS:
                    raise PageError(f"{self.max_tabs} pages are open, which is the most; close one and reload this page")
                silent = self._tabs.pop(oldest)
            tab = self._tabs[key] = Tab(self.adapter, self.config, self.turns, self.library)
        if silent:
            silent.close()
        return tab

    def tab(self, key: str) -> Tab:
        """An open tab. Raises PageError if it is not open (any more)."""
        tab = self._tabs.get(key)
        if tab is None:
            raise PageError("this page has lost its stream; reload it to begin again")
        tab.last_seen = time.monotonic()
        return tab

    def close(self, key: str) -> None:
        """The page has gone. Unknown keys are ignored."""
        with self._lock:
            tab = self._tabs.pop(key, None)
        if tab:
            tab.close()

    def close_all(self) -> None:
        for key in list(self._tabs):
            self.close(key)

    def start_first(self, key: str) -> None:
        """Watch what the command line named."""
        stored = memory_folder(self.start_source or "")
        if stored is not None:
            self.tab(key).open_stored(stored)
        elif self.start_source:
            self.tab(key).start(open_source(self.start_source, allow_private_hosts=self.allow_private_hosts))

    def start_demo(self, key: str, seed: float | None, speed: float) -> None:
        """Watch a generated world. Raises SourceError for a seed that is no whole number from 0."""
        if seed is None or seed != int(seed) or seed < 0:
            raise SourceError(f"the seed is {seed}; give a whole number from 0")
        self.tab(key).start(open_source(f"world:?seed={int(seed)}&seconds=600&speed={speed:g}"))

    def start_url(self, key: str, url: str) -> None:
        """Watch a live URL from the page: neither files nor, unless allowed, hosts of the local network."""
        tab = self.tab(key)
        url = url.strip()
        if not url.lower().startswith(URL_SCHEMES):
            raise SourceError(f"this is not a stream's address; give one that begins with {', '.join(URL_SCHEMES)}")
        tab.start(open_source(url, allow_private_hosts=self.allow_private_hosts, allow_files=False))

    def saved(self) -> list[str]:
        """The names of the memories in the library, oldest first."""
        return self.library.saved() if self.library else []

    def saved_folder(self, name: str) -> Path:
        """Where a saved memory lies. Raises PageError for a name that is not in the library: it comes from a browser."""
        if self.library is None or name not in self.saved():
            raise PageError("choose a saved memory first")
        return self.library.folder / name

    def pin(self, name: str) -> bool:
        """Never let a saved memory give way to others, or let it again. Whether it is pinned now."""
        folder = self.saved_folder(name)
        pin(folder, not is_pinned(folder))
        return is_pinned(folder)

    def start_saved(self, key: str, name: str) -> None:
        """Answer from a saved memory, without its source."""
        self.tab(key).open_stored(self.saved_folder(name))

    def forget(self, key: str, name: str, start_seconds: float, end_seconds: float) -> tuple[int, bool]:
        """Really remove a span from a saved memory, be it the one that this page is writing. Returns the number of chunks, and
        whether traces of them stay in the files until the memory is opened again."""
        folder = self.saved_folder(name)
        session = self._session_of(key, folder)
        if session is not None and session.writes:
            assert session.memory is not None
            return len(self.tab(key).forget(start_seconds, end_seconds)), leaves_traces(session.memory)
        memory = open_memory(folder, write=True)
        try:
            num, traces = len(forget_span(memory, start_seconds, end_seconds)), leaves_traces(memory)
        finally:
            memory.close()
        for tab in list(self._tabs.values()):
            tab.reread(folder)
        return num, traces

    def delete(self, key: str, name: str) -> None:
        """Delete a saved memory. MemoryBankError if another page is writing it."""
        folder = self.saved_folder(name)
        if self._session_of(key, folder) is not None:
            self.tab(key).leave()
        # Where nothing was stored, it has gone with its stream.
        if folder.exists():
            delete(folder)
        for tab in list(self._tabs.values()):
            if tab.reads(folder):
                tab.leave("the memory that was open here was deleted; choose another one")

    def _session_of(self, key: str, folder: Path) -> StreamSession | None:
        """This page's session, if it is over the memory in `folder`."""
        session = self.tab(key).session
        return session if session is not None and session.memory is not None and session.memory.folder == folder else None

    def start_upload(self, key: str, path: str) -> None:
        """Watch an uploaded file, which lies at a path that the server chose."""
        tab = self.tab(key)
        try:
            source = open_source(path)
        except SourceError as error:
            # The message names the file as it lies on the server; the page needs its name only.
            raise SourceError(str(error).replace(path, Path(path).name)) from error
        seconds = source.info.duration_seconds
        if seconds and seconds > MAX_UPLOAD_SECONDS:
            source.close()
            raise SourceError(f"the video is {seconds / 3600:.1f} h long; {MAX_UPLOAD_SECONDS // 3600} h is the most, cut it")
        tab.start(source, is_upload=True)


def check_source(spec: str, allow_private_hosts: bool = False) -> None:
    """Open a source or a memory and close it again. Raises VStreamError if it cannot be opened."""
    stored = memory_folder(spec)
    if stored is not None:
        open_memory(stored).close()
        return
    open_source(spec, allow_private_hosts=allow_private_hosts).close()
