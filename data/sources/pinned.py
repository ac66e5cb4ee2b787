"""HTTP requests to the very address that was checked, so that a name cannot change its mind in between (DNS rebinding)."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from urllib.parse import quote, unquote, urlsplit

from data.sources.hosts import PORTS, LiveURL


class PinnedConnection(http.client.HTTPConnection):
    """An HTTP or HTTPS connection to one of the checked addresses of `url`; certificates are verified for its name."""

    def __init__(self, url: LiveURL, timeout_seconds: float) -> None:
        super().__init__(url.host, url.port, timeout=timeout_seconds)
        self.default_port = PORTS[url.scheme]
        self._url = url
        self._timeout_seconds = timeout_seconds

    def connect(self) -> None:
        """Called by the request. OSError of the last address if none answers."""
        self.sock = _first_that_answers(self._url, self._timeout_seconds)
        if self._url.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._url.host)


def get(url: LiveURL, timeout_seconds: float, headers: dict[str, str]) -> tuple[PinnedConnection, http.client.HTTPResponse]:
    """GET `url` with its user name and password if it has them. Raises OSError and http.client.HTTPException."""
    parts = urlsplit(url.full)
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = headers | {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}
    connection = PinnedConnection(url, timeout_seconds)
    try:
        # Only ASCII can stand in a request; what is percent-encoded already stays.
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/:?&=%+,;@!$'()*~")
        connection.request("GET", target, headers=headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _first_that_answers(url: LiveURL, timeout_seconds: float) -> socket.socket:
    for address in url.addresses[:-1]:
        try:
            return socket.create_connection((address, url.port), timeout_seconds)
        except OSError:
            continue  # The next address may be of another kind: IPv4 where IPv6 leads nowhere.
    return socket.create_connection((url.addresses[-1], url.port), timeout_seconds)
