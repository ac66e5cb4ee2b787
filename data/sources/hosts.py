"""Which URLs may be opened: allowed schemes, public hosts, and labels without secrets."""

from __future__ import annotations

import hashlib
import ipaddress
import queue
import re
import socket
import threading
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit, urlunsplit

from data.errors import SourceError

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
LOOKUP_SECONDS = 10.0
UNCUT = "if the @ ends a password: write / in it as %2F, ? as %3F, # as %23"


@dataclass(frozen=True)
class LiveURL:
    """A checked URL. `full` goes to the decoder only; `label` holds no user name, password or query.

    addresses: the IP addresses that were checked. Connections go to these, the name is not looked up again.
    """

    full: str
    label: str
    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    def at(self, address: str) -> str:
        """`full` with `address` in the place of the host."""
        parts = urlsplit(self.full)
        secret, sign, _ = parts.netloc.rpartition("@")
        host = f"[{address}]" if ":" in address else address
        return parts._replace(netloc=f"{secret}{sign}{host}:{self.port}").geturl()

    @property
    def host_header(self) -> str:
        """What an HTTP request calls the host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"LiveURL({self.label!r})"


def label_of(url: str) -> str:
    """`url` without user name, password, query and fragment. Safe for logs and pages, also for URLs that do not parse."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
    hidden = f"{scheme[0] if scheme else ''}//…"
    if _is_cut(url):
        return hidden
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return hidden
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}{'?…' if parts.query else ''}"


def _is_cut(url: str) -> bool:
    """Whether an @ comes after what parses as the host, which may then be a part of the user name and the password."""
    try:
        return "@" in url and "@" not in urlsplit(url).netloc
    except ValueError:
        return "@" in url


def key_of(url: str) -> str:
    """Tells addresses apart without holding them. The user name and the password play no part; the query does, as it may
    choose a camera, and is not to be guessed from the key, as it may hold a secret: hence the slow hash."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    plain = urlunsplit((parts.scheme.lower(), host, parts.path, parts.query, ""))
    return hashlib.scrypt(plain.encode(), salt=b"vstream", n=2**14, r=8, p=1, dklen=16).hex()


def check_url(url: str, allow_private_hosts: bool = False, timeout_seconds: float = LOOKUP_SECONDS) -> LiveURL:
    """Check the scheme and the host of `url`. Raises SourceError that says what is wrong and how to allow it."""
    label = label_of(url)
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise SourceError(f"{label.split(' ')[0]}: the URL holds a space or a control character; write it as %20")
    if any("\ud800" <= c <= "\udfff" for c in url):
        raise SourceError(f"{label.encode(errors='replace').decode()}: the URL is not UTF-8; write its other bytes as %XX")
    hint = f"; {UNCUT}" if _is_cut(url) else ""
    try:
        parts: SplitResult = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise SourceError(f"{label}: not a valid URL; write it as rtsp://host:port/path{hint}") from None
    if scheme not in PORTS:
        raise SourceError(f"{label}: cannot open {scheme or 'this'} URLs; known: {', '.join(PORTS)}")
    if not host:
        raise SourceError(f"{label}: the URL names no host; write it as {scheme}://host:port/path{hint}")
    port = port or PORTS[scheme]
    addresses = _lookup(host, port, timeout_seconds)
    if addresses is None:
        raise SourceError(f"{label}: the name server did not answer in {timeout_seconds:g} s; check the network")
    if not addresses:
        name = "" if hint else f" {host}"
        raise SourceError(f"{label}: the host{name} is not known; check its name and the network{hint}")
    if not allow_private_hosts:
        for address in addresses:
            if not is_public(address):
                raise SourceError(
                    f"{label}: {host} is a private or local address, which is not opened by default; "
                    "allow it with --allow-private-hosts (allow_private_hosts=True)"
                )
    return LiveURL(url, label, scheme, host, port, parts.path, tuple(dict.fromkeys(addresses)))


def is_public(address: str) -> bool:
    """Whether an IP address is out in the Internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _lookup(host: str, port: int, timeout_seconds: float) -> list[str] | None:
    """The addresses of `host`, none where it is not known; None where no answer came in time."""
    # getaddrinfo takes no time-out, so it waits in a thread of its own.
    answers: queue.Queue[list[str]] = queue.Queue()

    def look() -> None:
        try:
            answers.put([str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError):
            answers.put([])

    threading.Thread(target=look, name="source-lookup", daemon=True).start()
    try:
        return answers.get(timeout=timeout_seconds)
    except queue.Empty:
        return None
