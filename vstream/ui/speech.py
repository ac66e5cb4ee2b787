"""What a stream said unasked, as HTML: the words over the picture, alerts with their thumbnails, and why each came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from data.frames import tick_of
from vstream.commentary import Utterance
from vstream.session import StreamSession
from vstream.ui.stage import notice_html
from vstream.ui.text import clock, escaped, jpeg_uri, span
from vstream.watches import Alert, Watch, WatchDecision, Webhook

OVERLAY_SECONDS = 5.0
"""How long words stay over the picture."""
MAX_SHOWN = 60
NO_HOOKS: Mapping[int, Webhook] = MappingProxyType({})


def overlay_words(session: StreamSession | None) -> str:
    """What was said last, while it is fresh; empty otherwise."""
    # Taken once: where a span is forgotten meanwhile there may be fewer.
    said = session.unasked.utterances if session else ()
    if session is None or not said:
        return ""
    return said[-1].text if session.now_seconds - said[-1].start_seconds <= OVERLAY_SECONDS else ""


def unasked_events(session: StreamSession | None) -> dict[str, set[int]]:
    """The chunks in which something was said unasked, by kind."""
    if session is None:
        return {}
    length = session.config.chunk_seconds
    return {
        "alert": {alert.chunk_id for alert in list(session.unasked.watches.alerts)},
        "comment": {tick_of(said.start_seconds, 1 / length) for said in list(session.unasked.utterances)},
    }


def watches_html(
    active: Sequence[Watch], alerts: Sequence[Alert], note: str = "", hooks: Mapping[int, Webhook] = NO_HOOKS
) -> str:
    """The watches that are set, and their alerts, the newest first; an alert's button shows its moment.

    note: stands above. hooks: where the alerts of a watch are posted, by its number; what did not arrive is told.
    """
    above = f'<p class="vs-note">{escaped(note)}</p>' if note else ""
    above += "".join(notice_html(f"watch {number}: {hook.problem}") for number, hook in hooks.items() if hook.problem)
    if not active and not alerts:
        empty = '<p class="vs-empty">No watch is set. Say what to wait for, and press Watch.</p>'
        return f'<div class="vs-watches">{above}{empty}</div>'
    rules = "".join(
        f"<li><b>{watch.number}</b> {escaped(watch.condition.text)} {_rules_html(watch, hooks)}</li>" for watch in active
    )
    hits = "".join(_alert_html(alert) for alert in list(alerts)[: -MAX_SHOWN - 1 : -1])
    none = "" if hits else '<p class="vs-empty">No alert yet.</p>'
    return f'<div class="vs-watches">{above}<ul class="vs-list">{rules}</ul>{none}<div class="vs-chip-row">{hits}</div></div>'


def _rules_html(watch: Watch, hooks: Mapping[int, Webhook]) -> str:
    rules = watch.rules
    parts = [f"cooldown {rules.cooldown_seconds:g} s", f"from {watch.rules.threshold:g}"]
    if rules.confirm or rules.of:
        parts.append(f"confirmed by {rules.confirm or 1}" + (f" of {rules.of} looks" if rules.of else ""))
    if rules.once:
        parts.append("once")
    if rules.expires_seconds is not None:
        parts.append(f"until {clock(watch.set_at_seconds + rules.expires_seconds)}")
    if watch.number in hooks:
        parts.append(f"posted to {hooks[watch.number].host}")
    return f'<span class="vs-note">{escaped(", ".join(parts))}</span>'


def _alert_html(alert: Alert) -> str:
    title = escaped(f"{alert.text} at {clock(alert.fired_at_seconds)}, watch {alert.number}: {alert.reason}")
    picture = f'<img src="{jpeg_uri(alert.thumbnail)}" alt="">' if alert.thumbnail else '<i class="vs-no-picture"></i>'
    return (
        f'<button type="button" class="vs-chip vs-alert-chip" data-chunk="{alert.chunk_id}"'
        f' title="{title}" aria-label="{title}">'
        f"{picture}<span>[{span(alert.start_seconds, alert.end_seconds)}]</span><em>{escaped(alert.text)}</em></button>"
    )


def log_html(log: Sequence[WatchDecision]) -> str:
    """The newest decisions with their reasons. Runs of one reason of one watch are one line."""
    lines: list[tuple[WatchDecision, WatchDecision]] = []
    newest: dict[int, int] = {}
    for decision in log:
        number = decision.findings.watch
        at = newest.get(number)
        if at is not None and _alike(lines[at][1], decision):
            lines[at] = (lines[at][0], decision)
        else:
            newest[number] = len(lines)
            lines.append((decision, decision))
    lines.sort(key=lambda line: line[1].findings.at_seconds)
    rows = "".join(_line_html(first, last) for first, last in lines[: -MAX_SHOWN - 1 : -1])
    if not rows:
        return '<p class="vs-empty">Every decision of a watch stands here, with its reason.</p>'
    return f'<div class="vs-scroll"><table class="vs-log"><tbody>{rows}</tbody></table></div>'


def _alike(one: WatchDecision, other: WatchDecision) -> bool:
    """Whether two decisions of a watch need no line each: neither asked the model."""
    return not one.findings.looked and not other.findings.looked and one.verdict == other.verdict


def _line_html(first: WatchDecision, last: WatchDecision) -> str:
    start, end = first.findings.at_seconds, last.findings.at_seconds
    when = clock(start) if clock(start) == clock(end) else span(start, end)
    return (
        f'<tr class="vs-{escaped(last.verdict)}"><td>{when}</td><td>{last.findings.watch}</td><td>{escaped(last.verdict)}</td>'
        f"<td>{escaped(last.reason)}</td></tr>"
    )


def utterances_html(utterances: Sequence[Utterance], is_on: bool = False) -> str:
    """What was said, the newest first. is_on: whether the stream is being commented on."""
    rows = "".join(
        f"<li><b>{clock(said.start_seconds)}</b> {escaped(said.text)}</li>" for said in list(utterances)[: -MAX_SHOWN - 1 : -1]
    )
    state = "Commentary is on" if is_on else "Commentary is off"
    note = f'<p class="vs-note">{state}{"" if rows else "; nothing has been said yet"}.</p>'
    return note + (f'<div class="vs-scroll"><ul class="vs-list">{rows}</ul></div>' if rows else "")
