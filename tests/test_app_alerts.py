"""The page's alerts on their way out: posted to where the operator allows it, and as server-sent events."""

from __future__ import annotations

import asyncio
import http.client
import json
from contextlib import aclosing
from dataclasses import replace

import pytest
from browser_page import served
from held_streams import ALERT, PLAIN, SEED, HeldSource, request, studio, wait_for  # noqa: F401  # a fixture
from test_watches import Receiver, receiver  # noqa: F401  # a fixture

from data.world import make_world
from vstream.ui.alerts import events
from vstream.ui.studio import PageError, Studio


def test_alerts_are_posted_where_the_operator_allows_it_and_what_fails_is_told(
    studio: Studio,
    monkeypatch: pytest.MonkeyPatch,
    receiver: tuple[str, type[Receiver]],
) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.unasked import UnaskedHandlers

    host, handler = receiver
    handlers, page = UnaskedHandlers(studio), request("d")
    tab = studio.open("d")
    world = make_world(SEED, 6)
    HeldSource.go.clear()
    tab.start(HeldSource(world))
    refused = handlers.watch("it rains", 3, False, f"http://{host}/x", *PLAIN, page)[0]
    assert f"host {host.split(':')[0]} is not allowed" in refused
    monkeypatch.setattr(studio, "webhook_hosts", frozenset([host]))
    assert "not allowed" in handlers.watch("it rains", 3, False, "http://169.254.169.254/latest", *PLAIN, page)[0]
    assert "name or password" in handlers.watch("it rains", 3, False, f"http://me:hunter2@{host}/", *PLAIN, page)[0]
    session = tab.session
    assert session is not None and not session.unasked.watches.active, "what cannot be posted is not set"
    assert handlers.watch("it rains", 3, False, f"http://{host}/secret-path", *PLAIN, page)[0] == ""
    watching, *_ = handlers.tick(page)
    assert f"posted to {host.split(':')[0]}" in watching and "secret-path" not in watching
    (hook,) = session.unasked.watches.hooks.values()
    hook.timeout_seconds = 60.0
    hook.send(ALERT)
    wait_for(lambda: hook.num_sent == 1)
    hook.timeout_seconds = 0.3
    assert handler.bodies == [ALERT.row()] and not hook.problem
    tab.start(HeldSource(world))
    assert tab.session is not None and list(tab.session.unasked.watches.hooks.values()) == [hook], "a new source keeps it"
    hook.send(replace(ALERT, text="hang"))
    HeldSource.go.set()
    wait_for(lambda: tab.feeder is not None and not tab.feeder.running)
    assert tab.session.stats.num_chunks == 6, "the stream does not wait for it"
    wait_for(lambda: hook.problem)
    watching, *_ = handlers.tick(page)
    assert f"watch 1: 1 alert could not be posted to {hook.host} (TimeoutError)" in watching
    studio.close("d")


def test_alerts_come_as_events_each_once(studio: Studio) -> None:
    """Also where a span is forgotten while somebody listens, and none from before the session."""
    tab = studio.open("b")
    HeldSource.go.clear()
    tab.start(HeldSource(make_world(SEED, 4)))
    assert tab.session is not None
    watches = tab.session.unasked.watches
    old, *new = (replace(ALERT, chunk_id=chunk, start_seconds=chunk, end_seconds=chunk + 1) for chunk in (2, 3, 4, 5, 6))
    watches.alerts.append(old)
    watches.restored_until = 2

    async def read() -> list[str]:
        found = []
        async with aclosing(events(studio, "b")) as lines:
            found.append(await anext(lines))
            watches.alerts.extend([new[0], replace(new[0], number=2)])
            found += [await anext(lines), await anext(lines)]
            watches.alerts.extend(new[1:])
            watches.forget(4.0, 6.0)
            found.append(await anext(lines))
            studio.close("b")
            found += [line async for line in lines]
        return found

    first, *told = asyncio.run(read())
    assert first.startswith(":")
    expected = [new[0], replace(new[0], number=2), new[3]]
    assert len(told) == len(expected)
    for line, alert in zip(told, expected, strict=True):
        name, number, data, *rest = line.split("\n")
        assert name == "event: alert" and rest == ["", ""]
        assert number.startswith("id: ") and number.endswith(f".{alert.chunk_id}.{alert.number}")
        clip = {"start_seconds": alert.start_seconds, "end_seconds": alert.end_seconds}
        assert json.loads(data.removeprefix("data: ")) == alert.row() | clip


def test_who_comes_back_is_told_what_came_meanwhile_and_of_another_stream_all(studio: Studio) -> None:
    tab = studio.open("e")
    HeldSource.go.clear()

    async def read(last_event_id: str, num: int) -> list[tuple[str, int]]:
        found = []
        async with aclosing(events(studio, "e", last_event_id)) as lines:
            while len(found) < num:
                if not (line := await anext(lines)).startswith(":"):
                    _, number, data, *_ = line.split("\n")
                    found.append((number.removeprefix("id: "), json.loads(data.removeprefix("data: "))["chunk_id"]))
        return found

    def begin() -> None:
        tab.start(HeldSource(make_world(SEED, 4)))
        assert tab.session is not None
        tab.session.unasked.watches.alerts.extend(replace(ALERT, chunk_id=chunk) for chunk in (2, 3, 4))

    begin()
    first = asyncio.run(read("", 3))
    assert [chunk for _, chunk in first] == [2, 3, 4]
    assert asyncio.run(read(first[0][0], 2)) == first[1:]
    for nonsense in ("2", "x.y.z", "-1.2.1", f"{first[0][0]}.1"):
        assert asyncio.run(read(nonsense, 3)) == first
    begin()
    other = asyncio.run(read(first[2][0], 3))
    assert [chunk for _, chunk in other] == [2, 3, 4] and other[0][0] != first[0][0]
    studio.close("e")


@pytest.mark.slow
def test_events_are_served_to_who_may_have_them(studio: Studio) -> None:
    pytest.importorskip("gradio")
    studio.open("c")

    def get(address: str, path: str, **headers: str | bytes) -> tuple[int, str]:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        first = reply.fp.readline().decode() if reply.status == 200 else reply.read().decode()  # type: ignore[union-attr]
        connection.close()
        return reply.status, first

    with served(studio, token="a long token") as url:
        address = url.removeprefix("http://").rstrip("/")
        assert get(address, "/alerts/c")[0] == 401
        assert get(address, "/alerts/none", Authorization="Bearer a long token")[0] == 404
        status, first = get(address, "/alerts/c", Authorization="Bearer a long token")
        assert status == 200 and first
        assert get(address, "/alerts/c", Authorization="Bearer ü")[0] == 401, "what is no ASCII is wrong as anything else is"
    studio.open("d")
    with served(studio, token="schlüssel €") as url:
        address = url.removeprefix("http://").rstrip("/")
        wrong, right = (f"Bearer schl{letter}ssel €".encode() for letter in "uü")
        assert get(address, "/alerts/d", Authorization=wrong)[0] == 401
        assert get(address, "/alerts/d", Authorization=right)[0] == 200, "a token is any text"
    with pytest.raises(PageError):
        studio.tab("c")
