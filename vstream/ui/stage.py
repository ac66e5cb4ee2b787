"""The stage and the telemetry strip as HTML: the newest frame or a past moment, the state badge, and the figures."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vstream.ui.text import clock, count, escaped, jpeg_uri, percent, size

STATES = ("idle", "opening", "live", "paused", "reconnecting", "ended", "failed", "closed", "stored")
STAGE_HEIGHT = 300


@dataclass(frozen=True)
class Snapshot:
    """What the page says about a stream right now. num_bytes: per tier name. error: the line that ended the stream.

    index_is_coarse, num_pooled: its vectors are kept in 8 bits, and chunks share theirs with neighbours, since it is full.
    disk_lag_seconds: how much of the stream is not on disk yet; None where it is not remembered.
    said: the newest words of the commentary, while they are fresh.
    """

    state: str = "idle"
    label: str = ""
    now_seconds: float = 0.0
    lag_seconds: float = 0.0
    fps: float = 0.0
    num_dropped_frames: int = 0
    num_kept_tokens: int = 0
    num_seen_tokens: int = 0
    num_chunks: int = 0
    num_bytes: dict[str, int] = field(default_factory=dict)
    num_index_bytes: int = 0
    index_is_coarse: bool = False
    num_pooled: int = 0
    disk_lag_seconds: float | None = None
    ttft_seconds: float = 0.0
    tokens_per_second: float = 0.0
    error: str = ""
    warning: str = ""
    said: str = ""


@dataclass(frozen=True)
class Picture:
    """A JPEG on the stage. keep: bool [rows, columns], the cells that were kept, drawn over it. caption: what it is."""

    jpeg: bytes
    caption: str
    keep: np.ndarray | None = None


def badge_html(snapshot: Snapshot) -> str:
    state = snapshot.state if snapshot.state in STATES else "idle"
    return f'<span class="vs-badge vs-state-{state}" role="status">{state}</span>'


def stage_html(snapshot: Snapshot, picture: Picture | None, moment: bool = False) -> str:
    """moment: whether `picture` is a past moment rather than the newest frame."""
    badge = badge_html(snapshot) + ('<span class="vs-badge vs-state-moment">moment</span>' if moment else "")
    label = f'<span class="vs-label" title="{escaped(snapshot.label)}">{escaped(snapshot.label)}</span>'
    body = _picture_html(picture) if picture else f'<p class="vs-empty">{escaped(_waiting(snapshot))}</p>'
    caption = picture.caption if picture else ""
    said = f'<p class="vs-said" aria-live="polite">{escaped(snapshot.said)}</p>' if snapshot.said and not moment else ""
    problem = snapshot.error or snapshot.warning
    note = f'<p class="vs-notice" role="alert">{escaped(problem)}</p>' if problem else ""
    return (
        f'<figure class="vs-stage"><div class="vs-stage-head">{badge}{label}</div><div class="vs-screen">{body}{said}</div>'
        f"<figcaption>{escaped(caption)}</figcaption>{note}</figure>"
    )


def _waiting(snapshot: Snapshot) -> str:
    if snapshot.state == "closed":
        return "This page has lost its stream. Reload it to begin again."
    if snapshot.state == "stored":
        return "A memory without its source. Ask about it, or choose a moment on the timeline."
    return "Choose a source and start it." if snapshot.state in ("idle", "ended", "failed") else "Waiting for the first frame…"


def _picture_html(picture: Picture) -> str:
    with Image.open(io.BytesIO(picture.jpeg)) as image:
        width, height = image.size
    cells, switch = "", ""
    if picture.keep is not None:
        switch = '<label class="vs-cells-switch"><input type="checkbox" checked> kept cells</label>'
        cells = kept_cells_svg(picture.keep)
    style = f"aspect-ratio:{width}/{height};width:min(100%,{STAGE_HEIGHT * width / height:.0f}px)"
    image_html = f'<img src="{jpeg_uri(picture.jpeg)}" alt="{escaped(picture.caption)}">'
    return f'{switch}<div class="vs-picture" style="{style}">{image_html}{cells}</div>'


def kept_cells_svg(keep: np.ndarray) -> str:
    """Dropped cells veiled, kept ones framed. keep: bool [rows, columns]."""
    rows, columns = keep.shape
    drawn = "".join(
        f'<rect class="{"kept" if keep[row, column] else "dropped"}" x="{column}" y="{row}" width="1" height="1"/>'
        for row in range(rows)
        for column in range(columns)
    )
    return f'<svg class="vs-cells" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def telemetry_html(snapshot: Snapshot, tier_names: dict[str, str]) -> str:
    """The strip of figures. tier_names: from a tier's name in the bank to what the page calls it."""
    s = snapshot
    dropped = percent(1 - s.num_kept_tokens / s.num_seen_tokens) if s.num_seen_tokens else "–"
    figures = [
        ("stream time", clock(s.now_seconds)),
        ("lag", f"{s.lag_seconds:.1f} s"),
        ("fps in", f"{s.fps:.1f}"),
        ("frames dropped", count(s.num_dropped_frames)),
        ("chunks", count(s.num_chunks)),
        ("tokens kept / seen", f"{count(s.num_kept_tokens)} / {count(s.num_seen_tokens)}"),
        ("tokens dropped", dropped),
        *((f"{tier_names.get(tier, tier)} tier", size(num)) for tier, num in s.num_bytes.items()),
        ("index", size(s.num_index_bytes) + ", 8 bits" * s.index_is_coarse),
        *([("chunks that share a vector", count(s.num_pooled))] if s.num_pooled else []),
        *([("not on disk yet", f"{s.disk_lag_seconds:.1f} s")] if s.disk_lag_seconds is not None else []),
        ("first token", f"{s.ttft_seconds:.2f} s" if s.ttft_seconds else "–"),
        ("tokens/s", f"{s.tokens_per_second:.1f}" if s.tokens_per_second else "–"),
    ]
    cells = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in figures)
    return f'<dl class="vs-telemetry">{cells}</dl>'


def notice_html(message: str, kind: str = "error") -> str:
    """A line that asks for attention; nothing for an empty message. kind: error, info or done."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="vs-notice vs-{escaped(kind)}" role="{role}">{escaped(message)}</p>' if message else ""
