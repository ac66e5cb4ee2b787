"""The command line of the page: whom it serves, and what it refuses."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import app
from data.errors import ConfigError, SourceError
from vstream.ui.studio import check_source

ROOT = Path(__file__).parent.parent


def test_hosts_need_a_token() -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import check_host, is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.4", "example.org", "localhost.example.org", "")))
    check_host("127.0.0.1", None, False)
    check_host("0.0.0.0", "long enough", False)
    check_host("0.0.0.0", None, True)
    with pytest.raises(ConfigError, match="--token"):
        check_host("0.0.0.0", None, False)
    with pytest.raises(ConfigError, match="too short"):
        check_host("0.0.0.0", "short", False)


def test_source_is_checked_before_serving() -> None:
    check_source("world:?seed=1&seconds=5&speed=1")
    with pytest.raises(SourceError):
        check_source("world:?seed=no")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "no-such-file.mp4"], "no-such-file.mp4"),
        (["--source", "world:?speed=fast"], "speed"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--fps", "0"], "fps"),
        (["--model", "no-such-folder/at/all"], "model"),
        (["--port", "many"], "--port"),
        (["--port", "99999"], "99999"),
        (["--port", "-1"], "from 1 to 65535"),
        (["--webhook-host", "https://hooks.example"], "a host alone"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--certificate", "no.pem", "no.key"], "no.pem"),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    try:
        status = app.main(arguments)
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and words in err


@pytest.fixture
def certified(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Makes a certificate and its key, as PEM files."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def make(name: str, *locked: str) -> tuple[str, str]:
        files = str(tmp_path / f"{name}.crt"), str(tmp_path / f"{name}.key")
        made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-out", files[0], "-keyout", files[1]]
        subprocess.run([*made, *(locked or ("-nodes",))], check=True, capture_output=True)
        return files

    return make


@pytest.mark.slow
def test_a_certificate_that_cannot_be_used_is_one_line_and_exit_2(
    certified: Callable[..., tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import checked_certificate

    chain, key = certified("right")
    _, other_key = certified("other")
    locked_chain, locked_key = certified("locked", "-passout", "pass:a secret")
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("no certificate\n")
    wrong = [
        (str(no_pem), key, "PEM"),
        (chain, str(no_pem), "PEM"),
        (chain, other_key, "is not the key of"),
        (locked_chain, locked_key, "PEM"),
    ]
    for *files, words in wrong:
        assert app.main(["--certificate", *files]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and words in err and str(files[0]) in err, err
    assert checked_certificate([chain, key]) == (chain, key)


@pytest.mark.slow
def test_the_program_itself_exits_2_without_a_traceback() -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "app.py", "--host", "0.0.0.0", "--source", "no-such-file.mp4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "--token" in done.stderr


def test_ending_it_while_it_loads_is_one_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "chosen_model", interrupted)
    assert app.main([]) == 130
    assert capsys.readouterr() == ("", "\nstopped\n")


@pytest.mark.slow
def test_ending_it_twice_closes_it_once_without_a_traceback() -> None:
    """As where `make` and the terminal both pass a signal on."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "app.py", "--port", port]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and port in running.stdout.readline()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        running.send_signal(number)
        time.sleep(0.01)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "", "")
