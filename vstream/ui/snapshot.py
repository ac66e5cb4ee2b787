"""What a tab says about its stream right now, in numbers and words."""

from __future__ import annotations

import time

from data.sources import Source
from vstream.session import StreamSession
from vstream.ui.speech import overlay_words
from vstream.ui.stage import Snapshot
from vstream.ui.tab import Tab


def snapshot_of(tab: Tab) -> Snapshot:
    """Cheap: called about once a second per open page."""
    session, feeder, source = tab.session, tab.feeder, tab.source
    if session is None:
        return Snapshot("closed" if tab.closed else "idle", error=tab.why_left)
    if feeder is None or source is None:
        return _stored(tab, session)
    tab.rate.append((time.monotonic(), session.stats.num_frames))
    (t0, n0), (t1, n1) = tab.rate[0], tab.rate[-1]
    return Snapshot(
        state="paused" if feeder.state == "live" and tab.camera_is_silent else feeder.state,
        label=source.info.label,
        now_seconds=session.now_seconds,
        lag_seconds=feeder.lag_seconds,
        fps=(n1 - n0) / (t1 - t0) if feeder.running and t1 > t0 else 0.0,
        num_dropped_frames=source.stats.frames_dropped,
        num_kept_tokens=tab.before.num_kept_tokens + session.stats.num_kept_tokens,
        num_seen_tokens=tab.before.num_seen_tokens + session.stats.num_seen_tokens,
        num_chunks=tab.before.num_chunks + session.stats.num_chunks,
        num_bytes={tier: session.bank.num_bytes(tier) for tier in ("gpu", "ram", *(("disk",) if session.memory else ()))},
        num_index_bytes=session.retriever.num_bytes,
        index_is_coarse=session.index_use[0],
        num_pooled=session.index_use[1],
        ttft_seconds=session.stats.last_ttft_seconds,
        tokens_per_second=tab.tokens_per_second,
        error=feeder.error or "",
        disk_lag_seconds=session.writer.pending_seconds if session.writer else None,
        warning=_warning(tab, session, source),
        said=overlay_words(session),
    )


def _stored(tab: Tab, session: StreamSession) -> Snapshot:
    """A memory without its source."""
    return Snapshot(
        state="stored",
        label=tab.before.label,
        now_seconds=session.now_seconds,
        num_chunks=tab.before.num_chunks,
        num_bytes={tier: session.bank.num_bytes(tier) for tier in ("gpu", "ram", "disk")},
        num_index_bytes=session.retriever.num_bytes,
        index_is_coarse=session.index_use[0],
        num_pooled=session.index_use[1],
        ttft_seconds=session.stats.last_ttft_seconds,
        tokens_per_second=tab.tokens_per_second,
    )


def _warning(tab: Tab, session: StreamSession, source: Source) -> str:
    """What is wrong with the disk, or what the library had to do since the stream began, or what is wrong with the source."""
    disk = session.writer.error if session.writer else None
    library = tab.library
    if not disk and library is not None and library.num_notices > tab.num_told:
        disk = library.notices[-1]
    return disk or (source.stats.warnings[-1] if source.stats.warnings else "")
