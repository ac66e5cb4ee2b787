"""What a memory held when a page opened it: the page counts on from there."""

from __future__ import annotations

from dataclasses import dataclass

from vstream.session import StreamSession

CONTINUED = "This was watched before, so its memory goes on; delete it in the Library to begin anew."


@dataclass(frozen=True)
class Before:
    """label: what was watched last. note: what to say about it; empty where there is nothing to say."""

    label: str = ""
    num_chunks: int = 0
    num_seen_tokens: int = 0
    num_kept_tokens: int = 0
    note: str = ""

    @classmethod
    def of(cls, session: StreamSession) -> Before:
        if session.memory is None:
            return cls()
        totals, sitting = session.memory.manifest.totals(), session.memory.manifest.last_sitting()
        return cls(
            sitting.source if sitting else "",
            int(totals["num_chunks"]),
            int(totals["num_seen_tokens"]),
            int(totals["num_kept_tokens"]),
            CONTINUED if session.writes and session.has_seen else "",
        )
