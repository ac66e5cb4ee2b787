"""Serving the page: where it listens, who may open it, and what is switched off."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import signal
import ssl
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from data.errors import ConfigError
from vstream.ui.alerts import alerts_route
from vstream.ui.page import CSS_FILE, TITLE, build
from vstream.ui.studio import Studio

MAX_UPLOAD = "2gb"
CLOSED: dict[str, str] = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "GRADIO_ALLOWED_PATHS": ""}
"""What the environment may not switch on again."""


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, token: str | None, insecure: bool) -> None:
    """Raises ConfigError where the page would be open to the network without having been asked to be."""
    if token is not None and len(token) < 8:
        raise ConfigError("the token is too short; give at least 8 characters")
    if not is_loopback(host) and not token and not insecure:
        raise ConfigError(f"{host} can be reached from other computers; add --token T, or --insecure to let anybody in")


def check_port(port: int) -> None:
    """Raises ConfigError for a number at which no page can be found."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port is {port}; give a number from 1 to 65535")


def checked_certificate(certificate: Sequence[str]) -> tuple[str, str]:
    """The PEM files of a certificate and of its key. Raises ConfigError if no page can be served with them."""
    chain, key = map(_existing_file, certificate)
    try:
        # A key that is locked is refused: nobody may be there to type its password.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=str)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key} is not the key of {chain}; give the two that belong together") from error
        raise ConfigError(f"{chain} and {key} are no certificate and its open key in PEM; give --certificate others") from error
    except OSError as error:
        raise ConfigError(f"{chain} and {key} cannot be read: {error.strerror}; give --certificate others") from error
    return chain, key


@contextlib.contextmanager
def serving(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    certificate: tuple[str, str] | None = None,
) -> Iterator[str]:
    """The page, served until the context closes; gives its address. certificate: PEM files of the certificate and its key.

    Uploads lie in a private folder that is removed at the end. Raises ConfigError if the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="vstream-page-") as folder, _environment(CLOSED | {"GRADIO_TEMP_DIR": folder}):
        page = build(studio)
        try:
            server, url, _ = page.launch(
                server_name=host,
                server_port=port,
                auth=(lambda user, password: hmac.compare_digest(password.encode(), token.encode())) if token else None,
                auth_message="Any name will do; the password is the token." if token else None,
                ssl_certfile=certificate[0] if certificate else None,
                ssl_keyfile=certificate[1] if certificate else None,
                ssl_verify=False,
                theme=gr.themes.Default(
                    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
                ),
                css_paths=CSS_FILE,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                show_error=False,
                allowed_paths=[],
                max_file_size=MAX_UPLOAD,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                footer_links=[],
            )
        except OSError as error:
            raise ConfigError(f"{host}:{port} is taken or not ours to use; choose another --port or --host") from error
        # In front: the page's own routes end with one that takes every path.
        server.router.routes.insert(0, alerts_route(studio, token))
        try:
            yield url
        finally:
            page.close(verbose=False)
            studio.close_all()


def serve(studio: Studio, host: str, port: int, token: str | None = None, certificate: tuple[str, str] | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; then everything is closed and the private folders are removed."""
    leaving = threading.Event()

    def leave(*_: object) -> None:
        # Once: a second Ctrl-C, or one from `make` and one from the terminal, must not break off what closes the memories.
        if not leaving.is_set():
            leaving.set()
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    with contextlib.suppress(KeyboardInterrupt), serving(studio, host, port, token, certificate) as url:
        print(f"{TITLE}: {url}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The process's environment with `values`, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _existing_file(path: str) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"{path} is not a file; give a PEM file")
    return path
