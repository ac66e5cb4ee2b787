"""Alerts to a web address whose host the operator has allowed: on a thread of its own, behind a bounded queue."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import string
import threading
import time
from collections import deque
from collections.abc import Collection
from contextlib import closing, suppress
from urllib.parse import quote, urlsplit

from data.errors import ConfigError
from vstream.watches.base import Alert

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
CAPACITY = 64


class WebhookRefused(http.client.HTTPException):
    """The other side answered with another status than that of success."""


class Webhook:
    """Posts every alert as JSON to `url`. `send` never waits: what the queue has no room for is counted and dropped. Its thread
    lives only while there is something to post.

    allowed_hosts: the hosts, `name` or `name:port`, that may be written to. Redirects are not followed and replies not read.
    timeout_seconds: for connecting, and then for the whole answer, however it comes.
    Raises ConfigError for an address that is not allowed.
    """

    def __init__(self, url: str, allowed_hosts: Collection[str], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._secure, self.host, self._port, self._path = _checked(url, allowed_hosts)
        self.timeout_seconds = timeout_seconds
        self.num_sent = 0
        self.num_failed = 0
        self.num_dropped = 0
        self._reason = ""
        self._waiting: deque[Alert] = deque()
        self._posting: Alert | None = None
        """The alert that is on its way; None also once it has been given up."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def send(self, alert: Alert) -> None:
        """Queue an alert; returns at once."""
        with self._lock:
            if len(self._waiting) >= CAPACITY:
                self.num_dropped += 1
                return
            self._waiting.append(alert)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Let what is queued go out, for as long as one time-out; what has not arrived by then counts as dropped. Where the
        other side hangs, a daemon thread stays behind."""
        thread = self._thread
        if thread is not None:
            thread.join(self.timeout_seconds)
        with self._lock:
            self.num_dropped += len(self._waiting) + (self._posting is not None)
            self._waiting.clear()
            self._posting = None

    @property
    def problem(self) -> str:
        """What did not arrive, in words for a person; empty if nothing is wrong."""
        num = self.num_failed + self.num_dropped
        words = f"{num} {'alert' if num == 1 else 'alerts'} could not be posted to {self.host} ({self._reason or 'too slow'})"
        return words if num else ""

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                alert = self._posting = self._waiting.popleft()
            try:
                self._post(json.dumps(alert.row()).encode())
                self._count(alert)
            except (OSError, http.client.HTTPException) as error:
                # The host only: an address may carry a secret.
                self._count(alert, str(error) if isinstance(error, WebhookRefused) else type(error).__name__)

    def _count(self, alert: Alert, reason: str = "") -> None:
        """What became of `alert`, unless it was given up meanwhile. reason: why it did not arrive."""
        with self._lock:
            if self._posting is not alert:
                return
            self._posting = None
            self.num_sent += not reason
            self.num_failed += bool(reason)
            self._reason = reason or self._reason
        if reason:
            log.warning("an alert could not be sent to %s: %s", self.host, reason)

    def _post(self, body: bytes) -> None:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self.host, self._port, timeout=self.timeout_seconds)
        with closing(connection):
            connection.connect()
            deadline = time.monotonic() + self.timeout_seconds
            # The time-out of a socket begins anew with every byte: whoever sends them one by one is cut off.
            cut = threading.Timer(self.timeout_seconds, _cut, [connection.sock])
            cut.daemon = True
            cut.start()
            try:
                connection.request("POST", self._path, body, {"Content-Type": "application/json"})
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                raise (error if time.monotonic() < deadline else TimeoutError()) from None
            finally:
                cut.cancel()
        if not 200 <= status < 300:
            raise WebhookRefused(f"status {status}")


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def checked_hosts(hosts: Collection[str]) -> frozenset[str]:
    """Hosts that may be written to, `name` or `name:port`, in small letters. Raises ConfigError for what can be none."""
    for host in hosts:
        if not host or re.search(r"[\s/@?#\[\]]", host):
            raise ConfigError(f"--webhook-host is {host!r}; give the name of a host alone, such as hooks.example")
    return frozenset(host.lower() for host in hosts)


def _checked(url: str, allowed_hosts: Collection[str]) -> tuple[bool, str, int, str]:
    """Whether to use TLS, the host, the port and the path of an address that is allowed."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname
        (host or "").encode("idna")
    except ValueError:
        raise ConfigError("the webhook is no address; give one that begins with https:// or http://") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("the webhook is no address; give one that begins with https:// or http://")
    if parts.username or parts.password:
        raise ConfigError("the webhook's address holds a name or password; put a secret into its path instead")
    named = {host, f"{host}:{port}"}
    if not named & checked_hosts(allowed_hosts):
        raise ConfigError(f"the webhook's host {host} is not allowed; allow it with --webhook-host {host}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # As a browser sends it: what is no ASCII, and spaces, in percents.
    return parts.scheme == "https", host, port, quote(path, safe=string.punctuation)
