"""Live streams on this machine for tests: RTSP from a publisher of its own, HLS and HTTP from a small server."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
            if "nowhere" not in name:
                there = "/private.mp4" if "relative" in name else "http://user:secret@10.0.0.1/private.mp4"
                self.send_header("Location", there)
            self.end_headers()
        elif name.startswith("hang"):
            time.sleep(2.5)
        else:
            super().do_GET()


class serving:
    """Serves a folder on a port of this machine within a `with`."""

    def __init__(self, folder: Path, handler: Callable[..., Any], certificate: Path | None = None) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder)))
        self.server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self.server.server_address[1]

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path, Handler) as port:
        yield f"http://127.0.0.1:{port}"


def write_hls(folder: Path, live: bool = False) -> Path:
    options = {"hls_time": "1", "hls_list_size": "0"} | ({"hls_flags": "omit_endlist"} if live else {})
    options |= {"hls_segment_filename": str(folder / "part%d.ts")}
    return write_video(folder / "stream.m3u8", seconds=3, gop=10, format="hls", options=options)
