"""Live streams: RTSP, HLS and HTTP on this machine; what is slow, lost, refused or not allowed."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

av = pytest.importorskip("av")

from data.errors import SourceError  # noqa: E402
from data.sources import LiveSource, connection, hosts, open_source  # noqa: E402  # noqa: E402
from data.sources.timeline import Timeline  # noqa: E402
from tests.live_streams import free_port, listen, publish, rtsp, serving, web, write_hls  # noqa: E402, F401
from tests.video_files import write_audio, write_video  # noqa: E402


def open_web(url: str, **settings: float) -> LiveSource:
    source = open_source(url, allow_private_hosts=True, open_timeout_seconds=1.0, read_timeout_seconds=1.0, **settings)  # type: ignore[arg-type]
    assert isinstance(source, LiveSource)
    return source


@pytest.mark.slow
def test_rtsp_plays_in_order_to_its_end(rtsp: Callable[..., str]) -> None:
    with listen(rtsp(24)) as source:
        assert source.info.live and source.info.kind == "live" and source.info.codec == "h264"
        frames = list(source.frames(10))
    pts = [f.pts_seconds for f in frames]
    assert 8 <= len(frames) <= 13 and pts[0] == pytest.approx(0.0, abs=0.06)
    assert all(a < b for a, b in pairwise(pts)) and frames[0].data.shape == (3, 48, 64)
    assert source.stats.state == "ended" and source.stats.frames_seen >= 20


@pytest.mark.slow
def test_rtsp_newest_frames_win_and_drops_are_counted(rtsp: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.live.QUEUE_SECONDS", 0.5)
    with listen(rtsp(40)) as source:
        frames = source.frames(20)
        next(frames)
        time.sleep(1.2)  # 24 frames come, 10 may wait
        rest = list(frames)
    pts = [f.pts_seconds for f in rest]
    assert source.stats.frames_dropped >= 5 and pts[-1] > 1.5 and all(a < b for a, b in pairwise(pts))
    assert len(rest) + 1 + source.stats.frames_dropped >= 34


@pytest.mark.slow
def test_rtsp_reconnects_and_time_goes_on(rtsp: Callable[..., str]) -> None:
    port = free_port()
    with listen(rtsp(12, port), reconnect_attempts=1, backoff_seconds=0.1) as source:
        frames = source.frames(10)
        pts = [next(frames).pts_seconds for _ in range(4)]
        threading.Timer(0.6, rtsp, args=(12, port)).start()
        while not source.stats.reconnects or len(pts) < 9:
            pts.append(next(frames).pts_seconds)
    (lost, back), *_ = source.stats.gaps
    assert source.stats.reconnects == 1 and back - lost > 0.3
    assert all(a < b for a, b in pairwise(pts))


def test_a_stream_without_a_picture_yet_is_opened_again(tmp_path: Path) -> None:
    write_video(tmp_path / "video.ts", seconds=1)
    write_audio(tmp_path / "sound.ts")
    parts = iter(["video", "sound", "sound", "video", *["sound"] * 9])

    class Camera(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def __init__(self, *args: Any, directory: str) -> None:
            super().__init__(*args)

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((tmp_path / f"{next(parts)}.ts").read_bytes())

    with (
        serving(tmp_path, Camera) as port,
        LiveSource(
            f"http://127.0.0.1:{port}/camera.ts", allow_private_hosts=True, reconnect_attempts=3, backoff_seconds=0.01
        ) as source,
    ):
        pts: list[float] = []
        with pytest.raises(SourceError, match="no video stream"):
            pts.extend(frame.pts_seconds for frame in source.frames(10))
    assert source.info.live and source.stats.frames_seen == 20
    assert pts[-1] > 1.5 and all(a < b for a, b in pairwise(pts))
    assert source.stats.reconnects == 1 and len(source.stats.gaps) == 1
    # Two losses, and all three attempts after the last one.
    assert len(list(parts)) == 9 - 3


@pytest.mark.slow
def test_close_ends_a_silent_stream_at_once(rtsp: Callable[..., str]) -> None:
    source = listen(rtsp(2000))
    frames = source.frames(1)
    next(frames)
    threading.Timer(0.2, source.close).start()
    started = time.monotonic()
    list(frames)
    assert time.monotonic() - started < 10


def test_hls_plays_to_its_end(web: str, tmp_path: Path) -> None:
    write_hls(tmp_path)
    with open_web(f"{web}/stream.m3u8") as source:
        assert not source.info.live
        frames = list(source.frames(5))
    assert len(frames) == 15 and frames[-1].pts_seconds == pytest.approx(2.8, abs=0.01)
    assert source.stats.frames_dropped == 0 and source.stats.state == "ended"


def test_hls_with_a_password(web: str, tmp_path: Path) -> None:
    write_hls(tmp_path)
    with open_web(web.replace("//", "//someone:secret@") + "/locked/stream.m3u8") as source:
        assert len(list(source.frames(5))) == 15 and "secret" not in source.info.label
    with pytest.raises(SourceError, match="user name and password"):
        open_web(f"{web}/locked/stream.m3u8")


def test_hls_parts_on_private_hosts_are_refused(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playlist = write_hls(tmp_path)
    playlist.write_text(playlist.read_text().replace("part", "http://10.0.0.1/part"))
    monkeypatch.setattr(hosts, "is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(SourceError, match="private or local"):
        LiveSource(f"{web}/stream.m3u8", open_timeout_seconds=2, read_timeout_seconds=2, reconnect_attempts=0)
    playlist.write_text(
        playlist.read_text().replace("http://10.0.0.1/part0", "part0").replace("http://10.0.0.1/part2", "part2")
    )
    with LiveSource(f"{web}/stream.m3u8", open_timeout_seconds=2, read_timeout_seconds=2) as source:
        assert 9 <= len(list(source.frames(5))) <= 11
    assert "private or local" in source.stats.warnings[0]


def test_a_playlist_must_call_itself_one(web: str, tmp_path: Path) -> None:
    write_hls(tmp_path).rename(tmp_path / "video.mp4")
    with pytest.raises(SourceError, match="m3u8"):
        open_web(f"{web}/video.mp4")


def test_a_file_over_http_is_used_frame_by_frame(web: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", options={"movflags": "faststart"})
    with open_web(f"{web}/a.mp4") as source:
        assert not source.info.live and source.info.duration_seconds == pytest.approx(4.0, abs=0.1)
        frames = []
        for frame in source.frames(10):
            frames.append(frame)
            time.sleep(0.005)
    assert len(frames) == 40 and source.stats.frames_dropped == 0


@pytest.mark.slow
def test_live_hls_ends_when_its_playlist_is_closed(web: str, tmp_path: Path) -> None:
    playlist = write_hls(tmp_path, live=True)
    with open_web(f"{web}/stream.m3u8", reconnect_attempts=1) as source:
        assert source.info.live and source.info.duration_seconds is None
        frames = source.frames(5)
        first = next(frames)
        with playlist.open("a") as file:
            file.write("#EXT-X-ENDLIST\n")
        rest = list(frames)
    # A reader that comes late to a live stream misses its oldest frames, and the stats say how many.
    assert rest and source.stats.state == "ended" and 1 + len(rest) + source.stats.frames_dropped == 15
    assert first.pts_seconds <= source.stats.frames_dropped / 5 + 1e-6


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("401", "user name and password"),
        ("403", "user name and password"),
        ("404", "path"),
        ("500", "answered with an error"),
        ("redirect.mp4", "redirects to http://10.0.0.1/private.mp4"),
        ("redirect/relative.mp4", "redirects to http://127.0.0.1:PORT/private.mp4"),
        ("redirect/relative.m3u8", "redirects to http://127.0.0.1:PORT/private.mp4"),
        ("redirect/nowhere.m3u8", "answered with an error (302)"),
        ("hang", "no answer in 1 s"),
        ("text.mp4", "not a video stream"),
        ("403/x.m3u8", "path"),
        ("redirect.m3u8", "redirects to http://10.0.0.1/private.mp4"),
        ("hang.m3u8", "no answer in 1 s"),
    ],
)
def test_http_failures_are_one_clear_line_without_secrets(web: str, tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    url = web.replace("//", "//someone:secret@") + f"/{path}"
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        open_web(url)
    text = str(caught.value).replace(f":{web.rpartition(':')[2]}", ":PORT")
    assert words in text and "\n" not in text and "secret" not in text and "someone" not in text
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_refused_and_hanging(scheme: str) -> None:
    with pytest.raises(SourceError, match="refused"):
        open_web(f"{scheme}://127.0.0.1:{free_port()}/x")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        started = time.monotonic()
        with pytest.raises(SourceError, match="no answer in 1 s"):
            open_web(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x")
        assert time.monotonic() - started < 20


def test_rtsp_401() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def refuse() -> None:
            peer, _ = server.accept()
            with peer:
                while request := peer.recv(4096):
                    number = next(line.split(b":")[1] for line in request.split(b"\r\n") if line.startswith(b"CSeq"))
                    peer.sendall(b"RTSP/1.0 401 Unauthorized\r\nCSeq:" + number + b"\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(SourceError, match="user name and password"):
            open_web(f"rtsp://127.0.0.1:{server.getsockname()[1]}/x")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "10.1.2.3",
        "192.168.0.9",
        "169.254.169.254",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "100.64.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_private_hosts_are_refused(host: str, scheme: str) -> None:
    with pytest.raises(SourceError, match="allow"):
        open_source(f"{scheme}://user:secret@{host}:1/x")


def test_unknown_host_and_bad_urls() -> None:
    with pytest.raises(SourceError, match="not known"):
        open_source("http://nosuchhost.invalid/x")
    for url in ("http:///x", "rtsp://host:99999/x", "http://ho st/"):
        with pytest.raises(SourceError):
            open_source(url)
    assert hosts.is_public("8.8.8.8") and not hosts.is_public("224.0.0.1") and not hosts.is_public("64:ff9b::a00:1")
    assert hosts.label_of("rtsp://u:p@cam.example:554/a?token=1") == "rtsp://cam.example:554/a?…"
    assert "p@" not in repr(hosts.LiveURL("rtsp://u:p@h/", "rtsp://h/", "rtsp", "h", 554, "/", ("192.0.2.1",)))
    assert connection.is_hls(hosts.LiveURL("", "", "https", "h", 443, "/a/b.M3U8", ()))


@pytest.mark.parametrize("password", ["2024/secret", "2024?secret", "2024#secret", "secret/2024", "2024/", "/secret"])
@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_password_that_cuts_the_url_short_is_not_shown(scheme: str, password: str) -> None:
    url = f"{scheme}://admin.invalid:{password}@10.0.0.5/live"
    assert hosts.label_of(url) == f"{scheme}://…"
    with pytest.raises(SourceError) as caught:
        open_source(url)
    text = str(caught.value)
    assert "2024" not in text and "secret" not in text and "admin" not in text and "%2F" in text


def test_timeline_never_runs_backwards() -> None:
    line = Timeline()
    assert line.place(None, 100.0) == 0.0 and line.place(None, 100.5) == 0.5
    assert line.place(7.0, 101.0) == pytest.approx(1.0) and line.place(7.5, 101.4) == pytest.approx(1.5)
    assert line.place(3.0, 102.0) == pytest.approx(2.0, abs=0.01)  # jumped back: by the wall clock
    assert line.place(9000.0, 103.0) == pytest.approx(3.0, abs=0.01)  # jumped ahead
    line.restart()
    assert line.place(0.0, 120.0) == pytest.approx(20.0)
    before = line.place(0.04, 120.0)
    assert line.place(0.04, 120.0) > before
    finite = Timeline(follow_clock=False)
    assert [finite.place(t, 0.0) for t in (5.0, 6.0, 600.0)] == [0.0, 1.0, 595.0]
