"""The timeline as HTML: one bar per chunk, or per run of chunks where there are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from memory.records import Moment
from vstream.ui.text import clock, escaped, percent, span

MAX_BARS = 240
MIN_BARS = 40
"""A young stream does not fill the width: its bars stay this narrow at least."""


def tier_names(device: str) -> dict[str, str]:
    """What the page calls the tiers. Without a GPU (device "cpu") the first tier lies where the model computes, too."""
    return {"gpu": "CPU" if device == "cpu" else "GPU", "ram": "RAM", "disk": "disk", "gone": "not stored"}


@dataclass(frozen=True)
class Bar:
    """Consecutive chunks drawn as one. chunk_id: the one that a click shows. tier: the most frequent one."""

    chunk_id: int
    start_seconds: float
    end_seconds: float
    num_chunks: int
    kept_ratio: float
    tier: str
    marked: bool
    events: frozenset[str] = frozenset()
    """What happened unasked in its chunks: "alert", "comment"."""
    num_thinned: int = 0
    """How many of its chunks have lost tokens to the budget."""


def bars_of(
    records: Sequence[Moment],
    tier_of: Callable[[int], str | None],
    marked: Collection[int] = (),
    max_bars: int = MAX_BARS,
    events: Mapping[str, Collection[int]] | None = None,
    steps: Mapping[int, int] | None = None,
) -> list[Bar]:
    """At most `max_bars` bars for records in stream order. Runs are aligned to stream time, so that bars do not shimmer."""
    if not records:
        return []
    length = records[0].end_seconds - records[0].start_seconds
    seconds = records[-1].end_seconds - records[0].start_seconds
    width = length
    while seconds / width > max_bars - 1:
        width *= 2
    # One run at a time, since there may be a hundred thousand records.
    runs = groupby(records, key=lambda record: int((record.start_seconds + 1e-6) // width))
    return [_bar(list(run), tier_of, marked, events or {}, steps or {}) for _, run in runs]


def _bar(
    run: list[Moment],
    tier_of: Callable[[int], str | None],
    marked: Collection[int],
    events: Mapping[str, Collection[int]],
    steps: Mapping[int, int],
) -> Bar:
    hits = [record for record in run if record.chunk_id in marked]
    seen = sum(record.num_seen_tokens for record in run)
    return Bar(
        chunk_id=(hits or run)[0].chunk_id,
        start_seconds=run[0].start_seconds,
        end_seconds=run[-1].end_seconds,
        num_chunks=len(run),
        kept_ratio=sum(record.num_kept_tokens for record in run) / max(1, seen),
        tier=Counter(tier_of(record.chunk_id) or "gone" for record in run).most_common(1)[0][0],
        marked=bool(hits),
        events=frozenset(name for name, chunks in events.items() if any(record.chunk_id in chunks for record in run)),
        num_thinned=sum(record.chunk_id in steps for record in run),
    )


def timeline_html(bars: Sequence[Bar], names: dict[str, str]) -> str:
    """Bars over a time axis; names: see `tier_names`. Each is a button with `data-chunk`; the arrow keys move among them."""
    if not bars:
        return '<div class="vs-timeline"><p class="vs-empty">The timeline starts with the first stored chunk.</p></div>'
    start = bars[0].start_seconds
    shortest = min(bar.end_seconds - bar.start_seconds for bar in bars)
    seconds = max(bars[-1].end_seconds - start, MIN_BARS * shortest)
    drawn = "".join(_bar_html(bar, names, start, seconds, index == len(bars) - 1) for index, bar in enumerate(bars))
    ticks = "".join(f"<span>{clock(start + seconds * part / 4)}</span>" for part in range(5))
    return (
        '<div class="vs-timeline"><div class="vs-bars" role="group" aria-label="Timeline of stored chunks">'
        f'{drawn}</div><div class="vs-ticks" aria-hidden="true">{ticks}</div></div>'
    )


def _bar_html(bar: Bar, names: dict[str, str], start: float, seconds: float, last: bool) -> str:
    tier = names.get(bar.tier, bar.tier)
    title = f"{span(bar.start_seconds, bar.end_seconds)} · {percent(1 - bar.kept_ratio)} dropped · {tier}"
    if bar.num_chunks > 1:
        title += f" · {bar.num_chunks} chunks"
    if bar.num_thinned:
        title += " · thinned to fit its budget" if bar.num_chunks == 1 else f" · {bar.num_thinned} thinned to fit the budget"
    if bar.marked:
        title += " · behind the last answer"
    title = escaped(title + "".join(f" · {name}" for name in sorted(bar.events)))
    classes = f"vs-bar vs-{escaped(bar.tier)}" + (" vs-marked" if bar.marked else "")
    classes += " vs-thinned" if bar.num_thinned else ""
    dots = "".join(f'<b class="vs-dot vs-{name}"></b>' for name in sorted(bar.events))
    left, width = (100 * x / seconds for x in (bar.start_seconds - start, bar.end_seconds - bar.start_seconds))
    return (
        f'<button type="button" class="{classes}" data-chunk="{bar.chunk_id}" style="left:{left:.3f}%;width:{width:.3f}%"'
        f' tabindex="{0 if last else -1}" title="{title}" aria-label="{title}">'
        f'<i style="height:{max(5.0, 100 * bar.kept_ratio):.0f}%"></i>{dots}</button>'
    )


def legend_html(names: dict[str, str]) -> str:
    """What the colours and heights mean."""
    tiers = "".join(
        f'<li><i class="vs-swatch vs-{tier}"></i>{escaped(name)}</li>' for tier, name in names.items() if tier != "gone"
    )
    rest = '<li><i class="vs-swatch vs-alert"></i>alert</li><li><i class="vs-swatch vs-comment"></i>comment</li>'
    rest += '<li><i class="vs-swatch vs-mark"></i>last answer</li><li>height: share of tokens kept; striped: thinned since</li>'
    return f'<ul class="vs-legend">{tiers}{rest}</ul>'
