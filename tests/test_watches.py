"""Watches: what can be watched for, how a decision comes about, and that its log says all of it."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from data.errors import ConfigError, WatchError
from data.frames import Frame
from data.world import World, make_world
from model_adapters.base import ModelAdapter
from model_adapters.registry import load_adapter
from vstream.commentary import NarrationRules
from vstream.config import SessionConfig
from vstream.prompts import PRESETS
from vstream.session import StreamSession
from vstream.watches import (
    MAX_WATCHES,
    Alert,
    Condition,
    Findings,
    Watch,
    WatchRules,
    WatchState,
    Webhook,
    decision_row,
    parse_condition,
    read_log,
    replay,
)

ALERT = Alert("tell me when it rains", 1, 3.5, "it rains", 0.9, 3, 2.0, 4.0, b"")


@pytest.mark.parametrize(
    ("written", "text", "subject"),
    [
        ("tell me when a red circle appears", "a red circle appears", "a red circle"),
        ("  Tell me   when an orange star appears. ", "an orange star appears", "an orange star"),
        ("Please let me know if the door opens!", "the door opens", ""),
        ("a dog enters", "a dog enters", "a dog"),
        ("alert me as soon as a dog or a cat appears", "a dog or a cat appears", ""),
        ("the light is not on", "the light is not on", ""),
        ("tell me when a man appears and a dog disappears", "a man appears and a dog disappears", ""),
    ],
)
def test_conditions_as_people_write_them(written: str, text: str, subject: str) -> None:
    assert parse_condition(written) == Condition(text, subject)


@pytest.mark.parametrize("written", ["", "  ", "...", "tell me when", "Tell me when  ?", "let me know", "if"])
def test_empty_watches_are_refused(written: str) -> None:
    with pytest.raises(WatchError, match=r"say what to wait for|does not say"):
        parse_condition(written)


@pytest.mark.parametrize(
    "written",
    [
        "tell me when a red circle appears and no red circle appears",
        "the door is open and the door is not open",
        "the light is on but the light isn't on",
        "tell me when the dog enters and the dog leaves",
    ],
)
def test_contradictions_are_refused(written: str) -> None:
    with pytest.raises(WatchError, match="contradicts itself"):
        parse_condition(written)


def test_too_long_and_no_text_are_refused() -> None:
    with pytest.raises(WatchError, match="300 is the most"):
        parse_condition("x" * 301)
    with pytest.raises(WatchError, match="no text"):
        parse_condition("a \ud800 appears")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"cooldown_seconds": -1.0}, "0 or more"),
        ({"expires_seconds": 0.0}, "more than 0"),
        ({"confirm": 0}, "from 1 to 60"),
        ({"confirm": 3, "of": 2}, "can never come"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(rules: dict[str, float], words: str) -> None:
    with pytest.raises(WatchError, match=words):
        WatchRules(**rules)  # type: ignore[arg-type]


def state(preset: str = "general", **rules: object) -> WatchState:
    watch = Watch(1, "", parse_condition("a red circle appears"), WatchRules(**rules), 0.0)  # type: ignore[arg-type]
    return WatchState(watch, PRESETS[preset])


def verdicts(machine: WatchState, scores: list[float | None], confirmed: list[float] | None = None) -> str:
    """One letter per second: f(ired), d(eclined), s(uppressed), e(xpired). A score of None: not looked at."""
    letters = ""
    for i, score in enumerate(scores):
        found = Findings(1, i + 0.5, i, i, i + 1, score is not None, "", score, confirmed[i] if confirmed else None)
        letters += machine.decide(found).verdict[0]
    return letters


def test_what_lasts_fires_once_until_it_has_ended() -> None:
    assert verdicts(state(cooldown_seconds=0), [0.1, 0.9, 0.9, None, 0.9, 0.2, 0.8]) == "dfsdsdf"


def test_cooldown_once_and_expiry() -> None:
    assert verdicts(state(cooldown_seconds=3), [0.9, 0.1, 0.9, 0.1, 0.9]) == "fdsdf"
    once = state(once=True)
    assert verdicts(once, [0.1, 0.9]) == "df" and once.done
    late = state(expires_seconds=2)
    assert verdicts(late, [0.1, 0.1, 0.9]) == "dde" and late.done


def test_n_of_m_looks_confirm() -> None:
    assert verdicts(state(confirm=2, of=3, cooldown_seconds=0), [0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.9]) == "ddfddddd"
    assert verdicts(state(confirm=2, cooldown_seconds=0), [0.9, 0.9, 0.1]) == "dfd"


def test_a_second_question_confirms_at_once_or_a_moment_later_or_never() -> None:
    assert verdicts(state("embedded"), [0.9, 0.1], [0.9995, 0.0]) == "fd", "one sure look is enough"
    assert verdicts(state("embedded"), [0.9, 0.0], [0.998, 0.86]) == "df", "the next one sees more"
    assert verdicts(state("embedded"), [0.9, 0.0, 0.1], [0.998, 0.3, 0.95]) == "ddd", "and may find it to be another thing"


def test_rules_of_ones_own_are_kept_to_the_letter() -> None:
    assert verdicts(state("embedded", confirm=1, of=1), [0.9, 0.1], [0.86, 0.0]) == "fd", "sure or not"
    assert verdicts(state("embedded", of=1), [0.9, 0.1], [0.86, 0.0]) == "fd"
    assert verdicts(state("embedded", confirm=2, of=2), [0.9, 0.0], [0.9995, 0.9995]) == "df"
    assert verdicts(state("general"), [0.6, 0.1], [0.0, 0.0]) == "fd", "whoever is asked nothing else is believed"


def test_a_log_replays_to_itself_through_json() -> None:
    rules = {"confirm": 2, "of": 3, "cooldown_seconds": 4.0}
    scores = [0.9, 0.1, 0.9, None, 0.1, 0.9, 0.9, 0.2, 0.7, 0.8, 0.9, 1 / 3]
    machine = state(**rules)
    log = [machine.decide(Findings(1, i + 0.5, i, i, i + 1, s is not None, "gate", s)) for i, s in enumerate(scores)]
    back = read_log(json.dumps(decision_row(decision)) for decision in log)
    assert back == log and replay(machine.watch, PRESETS["general"], back) == log
    assert {d.verdict for d in log} == {"fired", "declined", "suppressed"}
    other = replace(machine.watch, rules=WatchRules(cooldown_seconds=0.0))
    assert replay(other, PRESETS["general"], back) != log, "a replay that copied the log would prove nothing"
    with pytest.raises(WatchError, match="line 2 of the log"):
        read_log([json.dumps(decision_row(log[0])), '{"watch": 1}'])


def test_a_session_takes_several_watches_but_not_any(random_adapter: ModelAdapter) -> None:
    with StreamSession(random_adapter) as session:
        first = session.watch("tell me when a red circle appears")
        with pytest.raises(WatchError, match="already"):
            session.watch("when A red circle appears")
        for i in range(MAX_WATCHES - 1):
            session.watch(f"thing number {i} appears")
        with pytest.raises(WatchError, match="16 watches"):
            session.watch("one more thing appears")
        session.unasked.watches.remove(first.number)
        with pytest.raises(WatchError, match="no watch number 1"):
            session.unasked.watches.remove(first.number)
        assert len(session.unasked.watches.active) == MAX_WATCHES - 1
    with StreamSession(random_adapter, SessionConfig(window_seconds=0)) as session, pytest.raises(WatchError, match="window"):
        session.watch("a dog appears")


def test_every_decision_of_a_session_is_on_record_and_replays(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(random_adapter, SessionConfig(poll_seconds=2, window_seconds=2)) as session:
        watches = [session.watch(f"a {name} appears", WatchRules(threshold=0.2)) for name in ("red circle", "blue star")]
        list(session.feed(frames[:16]))
        log = list(session.unasked.watches.log)
        assert len(log) == 2 * 8 == session.unasked.watches.num_decisions
        for watch in watches:
            own = [decision for decision in log if decision.findings.watch == watch.number]
            assert replay(watch, session.unasked.prompts, own) == own
            assert all(decision.reason for decision in own)
        fired = [d for d in log if d.verdict == "fired"]
        assert [alert.fired_at_seconds for alert in session.unasked.watches.alerts] == [d.findings.at_seconds for d in fired]


@pytest.mark.parametrize("together", [False, True])
def test_nothing_that_is_said_unasked_sees_the_future(
    random_adapter: ModelAdapter, frames: list[Frame], together: bool
) -> None:
    """Everything after t is permuted: watches and commentary are the same up to t, also where chunks pass the tower at once."""
    frames, now = frames[:20], 10
    order = [now + int(i) for i in np.random.default_rng(1).permutation(len(frames) - now)]
    shuffled = frames[:now] + [replace(frame, data=frames[i].data) for frame, i in zip(frames[now:], order, strict=True)]

    def told(frames: list[Frame]) -> list[tuple[float, str, float]]:
        with StreamSession(random_adapter, SessionConfig(poll_seconds=2, window_seconds=3)) as session:
            session.watch("a red circle appears", WatchRules(threshold=0.2, cooldown_seconds=0))
            session.narrate(NarrationRules(poll_seconds=0, guard_last=0))
            list(session.feed(frames, lambda: together))
            log = [(d.findings.start_seconds, d.verdict, d.findings.score or 0.0) for d in session.unasked.watches.log]
            said = [(u.start_seconds, u.text, 0.0) for u in session.unasked.utterances]
        assert len(log) == 10 and said
        return log + said

    true, other = told(frames), told(shuffled)
    early, same = ([row for row in found if row[0] < now / 2] for found in (true, other))
    assert [row[:2] for row in early] == [row[:2] for row in same]
    # What passes the tower together with other chunks is rounded otherwise.
    assert [row[2] for row in early] == pytest.approx([row[2] for row in same], rel=1e-4)
    assert true != other, "they look at something, else they would pass anything"
    assert [row[1] for row in true if row[0] >= now / 2] != [row[1] for row in other if row[0] >= now / 2]


@pytest.fixture(scope="module")
def embedded() -> ModelAdapter:
    return load_adapter("embedded")


@pytest.fixture(scope="module")
def short() -> World:
    return make_world(seed=12, seconds=16, side=128)


def test_watches_on_the_world(embedded: ModelAdapter, short: World) -> None:
    """One of each: a needle fires in its second, with its clip and thumbnail; what never comes does not."""
    stay = short.stays[1]
    with StreamSession(embedded) as session:
        session.watch(f"Tell me when a {stay.name} appears")
        session.watch(f"tell me when a {short.absent[0]} appears")
        heard: list[Alert] = []
        session.unasked.watches.on_alert = heard.append
        list(session.feed(short.frames()))
    (alert,) = session.unasked.watches.alerts
    assert heard == [alert] and alert.text == f"a {stay.name} appears"
    assert stay.start_seconds <= alert.fired_at_seconds < stay.start_seconds + 2
    assert alert.start_seconds <= stay.start_seconds < alert.end_seconds and alert.thumbnail.startswith(b"\xff\xd8")
    assert set(alert.row()) == {"watch", "fired_at_seconds", "text", "score", "chunk_id"}


class Receiver(http.server.BaseHTTPRequestHandler):
    bodies: list[dict[str, object]]
    paths: list[str]
    hang: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["text"] == "hang":
            self.hang.wait(10)
        self.bodies.append(body)
        self.paths.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    handler = type("Fresh", (Receiver,), {"bodies": [], "paths": [], "hang": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", handler
        handler.hang.set()
        server.shutdown()


def test_webhook_posts_alerts(receiver: tuple[str, type[Receiver]]) -> None:
    host, handler = receiver
    hook = Webhook(f"http://{host}/alerts?key=1", [host])
    hook.send(ALERT)
    hook.close()
    assert handler.bodies == [ALERT.row()] and (hook.num_sent, hook.num_failed, hook.num_dropped) == (1, 0, 0)


def test_a_webhook_that_hangs_holds_nothing_up_and_every_alert_is_accounted_for(receiver: tuple[str, type[Receiver]]) -> None:
    host, handler = receiver
    hook = Webhook(f"http://{host}/", [host.split(":")[0]], timeout_seconds=60)
    for _ in range(200):
        hook.send(replace(ALERT, text="hang"))
    assert hook.num_dropped >= 200 - 64 - 1, "what does not fit is counted, and nobody waits for it"
    assert not handler.bodies
    hook.timeout_seconds = 0.3
    hook.close()
    counts = (hook.num_sent, hook.num_failed, hook.num_dropped)
    assert hook.num_sent == 0 and sum(counts) == 200, "what was on its way at the end is counted too"
    handler.hang.set()
    hook.close()
    assert (hook.num_sent, hook.num_failed, hook.num_dropped) == counts, "and once only, whatever becomes of it"


def test_a_webhook_that_answers_byte_by_byte_has_one_time_out_for_all_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hook = Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", ["127.0.0.1"], timeout_seconds=0.4)
        hook.send(ALERT)
        connection, _ = server.accept()
        with connection, suppress(OSError):
            for letter in b"HTTP/1.1 204 " + b"No Content" * 20:
                connection.send(bytes([letter]))
                time.sleep(0.05)
    hook.timeout_seconds = 60
    hook.close()
    assert hook.num_failed == 1 and "(TimeoutError)" in hook.problem


def test_an_address_of_any_letters_is_posted_to(receiver: tuple[str, type[Receiver]]) -> None:
    host, handler = receiver
    hook = Webhook(f"http://{host}/über uns?an=É%20&x=1", [host])
    hook.send(ALERT)
    hook.close()
    assert hook.num_sent == 1 and handler.paths == ["/%C3%BCber%20uns?an=%C3%89%20&x=1"]


def test_an_address_of_numbers_has_the_usual_port(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[object] = []

    def refuse(address: object, *_: object) -> None:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    hook = Webhook("http://[2001:db8::1]/x", ["2001:db8::1"])
    hook.send(ALERT)
    hook.close()
    assert reached == [("2001:db8::1", 80)]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://elsewhere.example/x", "not allowed; allow it with --webhook-host elsewhere.example"),
        ("http://hooks.example:8080/x", "not allowed"),
        ("ftp://hooks.example:9000/x", "begins with https"),
        ("hooks.example", "begins with https"),
        ("http://me:hunter2@hooks.example:9000/", "name or password"),
        ("http://hooks.example:port/", "no address"),
        (f"http://{'hooks' * 20}.example/", "no address"),
    ],
)
def test_webhooks_that_are_not_allowed(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Webhook(url, ["hooks.example:9000"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "http://hooks.example", "hooks.example/x", "me@hooks.example", "two words", "[::1]"])
def test_what_can_be_no_host_is_not_allowed_in_silence(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--webhook-host is .*; give the name of a host alone"):
        Webhook("http://hooks.example/x", ["hooks.example", host])
