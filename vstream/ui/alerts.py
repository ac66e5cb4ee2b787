"""Alerts of an open page as server-sent events: `GET /alerts/KEY`, one event per alert."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from vstream.session import StreamSession
from vstream.ui.studio import PageError, Studio
from vstream.watches import Alert

LOOK_SECONDS = 0.5
ALIVE_SECONDS = 15.0
"""A comment line this often keeps proxies from closing a quiet connection."""


def alerts_route(studio: Studio, token: str | None) -> Route:
    """The route. KEY is the page's own session key; where the page has a token, it is wanted as a bearer token too."""

    async def alerts(request: Request) -> Response:
        # As bytes: a header is decoded as Latin-1, whatever was sent.
        sent = request.headers.get("authorization", "").encode("latin-1")
        if token and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
            return PlainTextResponse("send the token of this page as a bearer token\n", 401)
        try:
            studio.tab(request.path_params["key"])
        except PageError as error:
            return PlainTextResponse(f"{error}\n", 404)
        lines = events(studio, request.path_params["key"], request.headers.get("last-event-id", ""))
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return Route("/alerts/{key}", alerts, methods=["GET"])


async def events(studio: Studio, key: str, last_event_id: str = "") -> AsyncIterator[str]:
    """Server-sent events, from the alerts that there are on; ends when the page is closed.

    last_event_id: what a browser sends whose connection was lost: it is told what came after that alert.
    """
    session: StreamSession | None = None
    # By chunk and watch, since a watch fires at most once in a chunk: counting would slip where a span is forgotten meanwhile.
    told, quiet = (-1, 0), 0.0
    yield ": alerts\n\n"
    while True:
        try:
            tab = studio.tab(key)
            current, stream = tab.session, tab.num_streams
        except PageError:
            return
        if current is not session:
            session, told = current, (current.unasked.watches.restored_until + 1 if current else 0, 0)
            told = max(told, _heard(last_event_id, stream))
        alerts = list(session.unasked.watches.alerts) if session else []
        fresh = [alert for alert in alerts if _place(alert) > told]
        for alert in fresh:
            told = _place(alert)
            number = ".".join(map(str, (stream, *told)))
            yield f"event: alert\nid: {number}\ndata: {json.dumps(alert.row() | _clip(alert))}\n\n"
        quiet = 0.0 if fresh else quiet + LOOK_SECONDS
        if quiet >= ALIVE_SECONDS:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)


def _place(alert: Alert) -> tuple[int, int]:
    """Where it stands among all alerts of its stream."""
    return alert.chunk_id, alert.number


def _heard(event_id: str, stream: int) -> tuple[int, int]:
    """The place of the alert that an event's id names; that before all, if it is none of this stream of the page."""
    found = re.fullmatch(rf"{stream}\.(\d{{1,15}})\.(\d{{1,15}})", event_id, re.ASCII)
    return (int(found[1]), int(found[2])) if found else (-1, 0)


def _clip(alert: Alert) -> dict[str, float]:
    return {"start_seconds": alert.start_seconds, "end_seconds": alert.end_seconds}
