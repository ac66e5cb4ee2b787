"""Evidence chips: the moments an answer rests on, as buttons with a thumbnail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vstream.answer import Evidence
from vstream.ui.text import escaped, jpeg_uri, span

MAX_CHIPS = 8
TOUCHING_SECONDS = 1e-3


@dataclass(frozen=True)
class Chip:
    """Contiguous chunks of evidence. chunk_id: the one that fits the question best; a click shows it."""

    chunk_id: int
    start_seconds: float
    end_seconds: float
    score: float
    num_chunks: int


def merged(evidence: Sequence[Evidence]) -> list[Chip]:
    """Contiguous chunks as one chip each, the best score first."""
    runs: list[list[Evidence]] = []
    for moment in sorted(evidence, key=lambda e: e.start_seconds):
        if runs and moment.start_seconds <= runs[-1][-1].end_seconds + TOUCHING_SECONDS:
            runs[-1].append(moment)
        else:
            runs.append([moment])
    chips = []
    for run in runs:
        best = max(run, key=lambda e: e.score)
        chips.append(Chip(best.chunk_id, run[0].start_seconds, run[-1].end_seconds, best.score, len(run)))
    return sorted(chips, key=lambda chip: -chip.score)


def chips_html(chips: Sequence[Chip], thumbnail_of: Callable[[int], bytes | None], note: str = "") -> str:
    """The best chips as buttons with `data-chunk`. thumbnail_of: the JPEG of a chunk, None where memory has dropped it."""
    if not chips:
        text = note or "The moments behind an answer appear here."
        return f'<div class="vs-chips"><p class="vs-empty">{escaped(text)}</p></div>'
    buttons = "".join(_chip_html(chip, thumbnail_of(chip.chunk_id)) for chip in chips[:MAX_CHIPS])
    rest = len(chips) - MAX_CHIPS
    more = f'<p class="vs-empty">and {rest} more on the timeline</p>' if rest > 0 else ""
    heading = f'<p class="vs-note">{escaped(note)}</p>' if note else ""
    return f'<div class="vs-chips">{heading}<div class="vs-chip-row">{buttons}</div>{more}</div>'


def _chip_html(chip: Chip, thumbnail: bytes | None) -> str:
    when = span(chip.start_seconds, chip.end_seconds)
    picture = f'<img src="{jpeg_uri(thumbnail)}" alt="">' if thumbnail else '<i class="vs-no-picture"></i>'
    title = escaped(f"Show {when} (score {chip.score:.2f}, {chip.num_chunks} chunk{'s' if chip.num_chunks > 1 else ''})")
    return (
        f'<button type="button" class="vs-chip" data-chunk="{chip.chunk_id}" title="{title}" aria-label="{title}">'
        f"{picture}<span>[{when}]</span></button>"
    )
