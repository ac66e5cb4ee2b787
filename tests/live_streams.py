"""Live streams on this machine for tests: RTSP from a publisher of its own, HLS and HTTP from a small server."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.sources import LiveSource
from tests.video_files import PUBLISHER, write_video


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def publish(url: str, num: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PUBLISHER, url, str(num)])


@pytest.fixture
def rtsp() -> Iterator[Callable[[int], str]]:
    """A URL to which a program of its own publishes so many frames, 20 a second."""
    running: list[subprocess.Popen[bytes]] = []

    def start(num: int, port: int | None = None) -> str:
        url = f"rtsp://127.0.0.1:{port or free_port()}/live"
        running.append(publish(url, num))
        return url

    yield start
    for program in running:
        program.kill()
        program.wait()


def listen(url: str, **settings: object) -> LiveSource:
    """A source that waits for its camera to call, so that no RTSP server is needed."""
    options = {"rtsp_flags": "listen", "listen_timeout": "8"}
    defaults: dict[str, object] = {"open_timeout_seconds": 8.0, "read_timeout_seconds": 3.0, "reconnect_attempts": 0}
    return LiveSource(url, allow_private_hosts=True, options=options, **(defaults | settings))  # type: ignore[arg-type]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and some paths that misbehave."""

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name.startswith("locked"):
            self.path = self.path.replace("locked/", "")
            if self.headers.get("Authorization") == "Basic c29tZW9uZTpzZWNyZXQ=":
                super().do_GET()
            else:
                self.send_error(401)
        elif name in ("401", "403", "404", "500"):
            self.send_error(int(name))
        elif name.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", "http://user:secret@10.0.0.1/private.mp4")
            self.end_headers()
        elif name.startswith("hang"):
            time.sleep(2.5)
        else:
            super().do_GET()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(tmp_path)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def write_hls(folder: Path, live: bool = False) -> Path:
    options = {"hls_time": "1", "hls_list_size": "0"} | ({"hls_flags": "omit_endlist"} if live else {})
    options |= {"hls_segment_filename": str(folder / "part%d.ts")}
    return write_video(folder / "stream.m3u8", seconds=3, gop=10, format="hls", options=options)
