"""A live URL is reached at the very address that was checked, and the certificate must be of its name."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

av = pytest.importorskip("av")

from data.errors import SourceError  # noqa: E402
from data.sources import LiveSource  # noqa: E402
from data.sources.hosts import check_url  # noqa: E402
from tests.live_streams import Handler, serving, web, write_hls  # noqa: E402, F401
from tests.video_files import write_video  # noqa: E402

NAME = "camera.invalid"
"""No name server knows it: whoever looks it up a second time fails."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the name was looked up; the answers are addresses where nothing listens, then this machine."""
    lookups: list[str] = []
    real = socket.getaddrinfo

    def look(host: str, *args: object, **options: object) -> object:
        if host != NAME:
            return real(host, *args, **options)  # type: ignore[arg-type]
        lookups.append(host)
        port = args[0] if args else options["port"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return lookups


def open_here(url: str) -> LiveSource:
    return LiveSource(url, allow_private_hosts=True, open_timeout_seconds=2.0, read_timeout_seconds=2.0)


def named(url: str) -> str:
    return url.replace("127.0.0.1", NAME)


def test_a_file_over_http_comes_from_the_checked_address(web: str, tmp_path: Path, asked: list[str]) -> None:
    write_video(tmp_path / "a.mp4", seconds=2)
    with open_here(named(web) + "/a.mp4") as source:
        assert len(list(source.frames(fps=2))) == 4
    assert asked == [NAME]


def test_a_playlist_and_its_parts_come_from_checked_addresses(web: str, tmp_path: Path, asked: list[str]) -> None:
    write_hls(tmp_path)
    with open_here(named(web) + "/stream.m3u8") as source:
        assert len(list(source.frames(fps=2))) >= 5
        assert not source.stats.warnings
    assert len(asked) >= 4  # once per part, and each answer is used as it is


@pytest.mark.parametrize("path", ["vidéo.m3u8", "vid%C3%A9o.m3u8", "vidéo.mp4"])
def test_paths_beyond_ascii_are_asked_for_in_utf8(web: str, tmp_path: Path, path: str) -> None:
    playlist = write_hls(tmp_path)
    (tmp_path / "part1.ts").rename(tmp_path / "párt 1.ts")
    (tmp_path / "vidéo.m3u8").write_text(playlist.read_text().replace("part1", "párt%201"))
    write_video(tmp_path / "vidéo.mp4", seconds=3)
    with open_here(f"{web}/{path}?größe=1") as source:
        assert len(list(source.frames(fps=5))) == 15 and not source.stats.warnings


@pytest.mark.parametrize("path", ["a\udce9.m3u8", "a\udce9.mp4"])
def test_a_url_that_is_no_text_is_one_line(web: str, path: str) -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        open_here(f"{web}/{path}")


def test_the_server_hears_the_name(tmp_path: Path, asked: list[str]) -> None:
    heard: list[str] = []

    class Listening(Handler):
        def do_GET(self) -> None:
            heard.append(self.headers["Host"])
            super().do_GET()

    write_video(tmp_path / "a.mp4", seconds=1)
    with serving(tmp_path, Listening) as port:
        open_here(f"http://{NAME}:{port}/a.mp4").close()
        with pytest.raises(SourceError, match="does not know"):
            open_here(f"http://{NAME}:{port}/b.mp4")
    assert set(heard) == {f"{NAME}:{port}"}


@pytest.mark.parametrize("path", ["a.mp4", "stream.m3u8"])
def test_a_certificate_counts_for_its_name_only(
    path: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    write_video(tmp_path / "a.mp4", seconds=2)
    write_hls(tmp_path)
    for name in (NAME, "other.invalid"):
        certificate = make_certificate(tmp_path, name)
        with serving(tmp_path, Handler, certificate) as port:
            url = f"https://{NAME}:{port}/{path}"
            with pytest.raises(SourceError, match=r"certificate is not trusted for camera\.invalid"):
                open_here(url)
            with monkeypatch.context() as trusting:
                trusting.setenv("SSL_CERT_FILE", str(certificate))
                if name != NAME:
                    with pytest.raises(SourceError, match=r"certificate is not trusted for camera\.invalid"):
                        open_here(url)
                    continue
                with open_here(url) as source:
                    assert len(list(source.frames(fps=2))) >= 4


def test_an_address_takes_the_place_of_the_host_and_nothing_else(asked: list[str]) -> None:
    checked = check_url(f"rtsp://some%40one:se:cret@{NAME}/a?b=c", allow_private_hosts=True)
    assert checked.addresses == ("127.0.0.9", "127.0.0.1") and checked.port == 554
    assert checked.at("127.0.0.1") == "rtsp://some%40one:se:cret@127.0.0.1:554/a?b=c"
    assert checked.at("::1") == "rtsp://some%40one:se:cret@[::1]:554/a?b=c"
    assert check_url("http://[::1]:80/", allow_private_hosts=True).host_header == "[::1]"


def make_certificate(folder: Path, name: str) -> Path:
    """Certificate and key of `name` in one file, signed by themselves."""
    file = folder / f"{name}.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    words += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", f"{file}.key", "-out", str(file)]
    subprocess.run(words, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.key").read_text())
    return file
