"""Opens a live URL with PyAV so that it ends in time and reaches nothing but its own host; explains what went wrong."""

from __future__ import annotations

import errno
import http.client
import io
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urljoin

import av
import av.container
import av.error

from data.errors import SourceError
from data.sources.hosts import LiveURL, check_url, label_of
from data.sources.pinned import PinnedConnection, get
from data.sources.probe import FORMATS

PROTOCOLS = {"rtsp": "rtp,tcp", "rtsps": "rtp,tcp,tls", "http": "http,tcp", "https": "https,tls,tcp"}
RTSP_FORMATS = "rtsp,rtp,sdp,mpegts,asf"
HTTP_FORMATS = f"{FORMATS},mpjpeg,mjpeg"
HLS_FORMATS = "hls,mpegts,mov,mp4,aac"
HLS_PROTOCOLS = "http,https,tcp,tls,crypto,data,hls"

LOCKED = "{label}: needs a user name and password (or others): write {scheme}://USER:PASSWORD@{host}…"
UNKNOWN = "{label}: the server does not know this path; check what comes after the host"
REFUSED = "{label}: the connection was refused; check the port and that the camera or server runs"
LATE = "{label}: no answer in {seconds:g} s; check the address, the network and that the camera runs"
UNTRUSTED = "{label}: the certificate is not trusted for {host} ({reason}); name its authority's file in SSL_CERT_FILE"
MOVED = "{label}: redirects to {target}; redirects are not followed: give that URL if you trust it"


def connect(
    url: LiveURL,
    open_timeout_seconds: float,
    read_timeout_seconds: float,
    allow_private_hosts: bool = False,
    options: Mapping[str, str] | None = None,
) -> av.container.InputContainer:
    """Open `url`; blocks for at most about the time-out. `options`: more of FFmpeg's options. Raises SourceError."""
    started = time.monotonic()
    hls = is_hls(url)
    micros = str(int(read_timeout_seconds * 1e6))
    chosen: dict[str, str] = {"rw_timeout": micros, "timeout": micros, "protocol_whitelist": PROTOCOLS[url.scheme]}
    extra: dict[str, Any] = {}
    if url.scheme.startswith("rtsp"):
        # Over TCP the pictures come from the host that was checked; over UDP the server could name another one.
        chosen |= {"rtsp_transport": "tcp", "format_whitelist": RTSP_FORMATS}
    elif hls:
        chosen |= {"protocol_whitelist": HLS_PROTOCOLS, "format_whitelist": HLS_FORMATS, "http_persistent": "0"}
        chosen |= {"max_redirects": "0", "max_reload": "3", "m3u8_hold_counters": "10"}
        extra["io_open"] = _Fetcher(allow_private_hosts, open_timeout_seconds, read_timeout_seconds)
    else:
        chosen |= {"format_whitelist": HTTP_FORMATS, "max_redirects": "0", "headers": f"Host: {url.host_header}\r\n"}
        if url.scheme == "https":
            chosen |= {"verifyhost": url.host, "tls_verify": "1"} | _certificates()
    try:
        return _open_first(
            [url.full] if hls else [url.at(address) for address in url.addresses],
            mode="r",
            options=chosen | dict(options or {}),
            timeout=(open_timeout_seconds, read_timeout_seconds),
            metadata_errors="ignore",
            **extra,
        )
    except av.error.FFmpegError as error:
        if extra and extra["io_open"].refusal:
            raise SourceError(extra["io_open"].refusal) from None
        late = time.monotonic() - started >= 0.9 * open_timeout_seconds
        raise SourceError(explain_live(error, url, late, open_timeout_seconds)) from None


def _open_first(urls: list[str], **settings: Any) -> av.container.InputContainer:
    """The first of `urls`, all of the same stream, whose address can be reached."""
    for url in urls[:-1]:
        try:
            return av.open(url, **settings)
        except (av.error.ConnectionRefusedError, av.error.OSError) as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
                raise
    return av.open(urls[-1], **settings)


def _certificates() -> dict[str, str]:
    """Where FFmpeg finds the authorities that this machine trusts."""
    paths = ssl.get_default_verify_paths()
    return {"ca_file": paths.cafile} if paths.cafile else {}


def refused_part(container: av.container.InputContainer) -> str | None:
    """Why a part that a playlist names was left out, if one was."""
    return container.io_open.refusal if isinstance(container.io_open, _Fetcher) else None


def is_hls(url: LiveURL) -> bool:
    """Only what calls itself a playlist may be one: any other URL that answers with a playlist is refused."""
    return url.scheme in ("http", "https") and url.path.lower().endswith((".m3u8", ".m3u"))


def explain_live(error: av.error.FFmpegError, url: LiveURL, late: bool, timeout_seconds: float) -> str:
    """One line for a user, without credentials. late: the time-out had passed when the error came."""
    label = url.label
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return LOCKED.format(label=label, scheme=url.scheme, host=url.host)
    if isinstance(error, av.error.HTTPNotFoundError):
        return UNKNOWN.format(label=label)
    if isinstance(error, av.error.HTTPError):
        return f"{label}: the server answered with an error ({error.strerror})"
    if isinstance(error, av.error.ConnectionRefusedError):
        return REFUSED.format(label=label)
    if late or isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return LATE.format(label=label, seconds=timeout_seconds)
    if url.scheme in ("http", "https") and isinstance(error, av.error.OSError | av.error.InvalidDataError):
        reason = said_by_server(url, timeout_seconds)
        if reason:
            return reason
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):
        return f"{label}: what comes from there is not a video stream that can be read; playlists must end in .m3u8"
    return f"{label}: cannot be opened ({error.strerror or type(error).__name__}); check the address"


def said_by_server(url: LiveURL, timeout_seconds: float) -> str | None:
    """Why FFmpeg could not read from an HTTP server, where the server itself tells. Only asks; nothing is followed."""
    try:
        connection, response = get(url, timeout_seconds, {})
    except ssl.SSLCertVerificationError as error:
        return UNTRUSTED.format(label=url.label, host=url.host, reason=error.verify_message)
    except (OSError, http.client.HTTPException):
        return None
    with closing(connection):
        target = response.getheader("Location") if 300 <= response.status < 400 else None
    return moved(url, target) if target else None


def moved(url: LiveURL, location: str) -> str:
    """What to say where the answer is a redirection; `location` may be relative to `url`."""
    try:
        target = urljoin(url.full, location)
    except ValueError:
        target = location
    return MOVED.format(label=url.label, target=label_of(target))


class _Body(io.RawIOBase):
    """The body of one HTTP answer as a file that is read once, in order."""

    def __init__(self, connection: PinnedConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._response.read(size if size >= 0 else None)
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._connection.close()
        super().close()


class _Fetcher:
    """Opens what a playlist names. Every URL in it passes the same check as the one that a user gave."""

    def __init__(self, allow_private_hosts: bool, open_timeout_seconds: float, read_timeout_seconds: float) -> None:
        self.allow_private_hosts = allow_private_hosts
        self.timeout_seconds = min(open_timeout_seconds, read_timeout_seconds)
        self.refusal: str | None = None

    def __call__(self, url: str, flags: int, options: Mapping[str, str]) -> io.RawIOBase | io.BytesIO:
        try:
            return self._fetch(url, options)
        except SourceError as error:
            # An exception from here would be printed by PyAV; an empty part makes the demuxer go on to the next one.
            self.refusal = self.refusal or str(error)
            return io.BytesIO()

    def _fetch(self, url: str, options: Mapping[str, str]) -> _Body:
        checked = check_url(url, self.allow_private_hosts, self.timeout_seconds)
        if checked.scheme not in ("http", "https"):
            raise SourceError(f"{checked.label}: a playlist may name only http and https URLs")
        headers = {}
        if options.get("end_offset", "0") not in ("", "0"):
            headers["Range"] = f"bytes={options.get('offset', '0')}-{int(options['end_offset']) - 1}"
        try:
            connection, response = get(checked, self.timeout_seconds, headers)
        except ConnectionRefusedError:
            raise SourceError(REFUSED.format(label=checked.label)) from None
        except ssl.SSLCertVerificationError as error:
            raise SourceError(UNTRUSTED.format(label=checked.label, host=checked.host, reason=error.verify_message)) from None
        except TimeoutError:
            raise SourceError(LATE.format(label=checked.label, seconds=self.timeout_seconds)) from None
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{checked.label}: cannot be fetched ({error})") from None
        if response.status not in (200, 206):
            connection.close()
            if response.status in (401, 403):
                raise SourceError(LOCKED.format(label=checked.label, scheme=checked.scheme, host=checked.host))
            if response.status == 404:
                raise SourceError(UNKNOWN.format(label=checked.label))
            if 300 <= response.status < 400 and (target := response.getheader("Location")):
                raise SourceError(moved(checked, target))
            raise SourceError(f"{checked.label}: the server answered with an error ({response.status})")
        return _Body(connection, response)
