"""What an open page is sent about once a second: only what has changed since the last time."""

from __future__ import annotations

from vstream.ui.snapshot import snapshot_of
from vstream.ui.speech import unasked_events
from vstream.ui.stage import Snapshot, stage_html, telemetry_html
from vstream.ui.tab import Tab
from vstream.ui.timeline import bars_of, timeline_html

CHUNKS_PER_SECOND = 4000
"""A long timeline is drawn less often: one second of patience per so many chunks."""


def fresh(tab: Tab) -> dict[str, str]:
    """HTML of `stage`, `telemetry` and `timeline`, as far as the page does not show it yet."""
    snapshot = snapshot_of(tab)
    found = {
        "stage": stage_html(snapshot, tab.picture(), tab.moment is not None),
        "telemetry": telemetry_html(snapshot, tab.tier_names),
    }
    key = _timeline_key(tab, snapshot)
    if tab.sent.get("timeline key") != key:
        tab.sent["timeline key"] = key
        found["timeline"] = timeline_of(tab)
    changed = {name: html for name, html in found.items() if tab.sent.get(name) != html}
    tab.sent.update(changed)
    return changed


def timeline_of(tab: Tab) -> str:
    """The timeline as HTML, with the chunks behind the last answer marked."""
    bank = tab.session.bank if tab.session else None
    steps, tiers = (bank.steps(), bank.tiers()) if bank else ({}, {})
    bars = bars_of(tab.records(), tiers.get, tab.marked, events=unasked_events(tab.session), steps=steps)
    return timeline_html(bars, tab.tier_names)


def _timeline_key(tab: Tab, snapshot: Snapshot) -> tuple[object, ...]:
    """Changes when the timeline is worth drawing again."""
    every = 1 + snapshot.num_chunks // CHUNKS_PER_SECOND
    return (snapshot.num_chunks // every, tab.marked, snapshot.state)
