"""What changes a stored memory beside adding to it: merging small segments, keeping the quota, forgetting.

What of it puts chunks or vectors into new files is in `memory.rewriting`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import MemoryBankError
from memory.base import check_span
from memory.notes import Notes
from memory.reference import forget_reference
from memory.rewriting import delete_unwanted, rewrite, rewritten_vectors, rows_of
from memory.rows import Gap
from memory.segment_file import segment_path
from memory.vectors import generation_of

if TYPE_CHECKING:
    from memory.stored import StoredMemory

ROWS_AT_A_TIME = 256
MIN_DEAD_VECTORS = 64
MERGE_SEGMENTS = 256
"""Every commit makes a small segment; so many of them, or `segment_bytes`, are merged into one."""


def merge(memory: StoredMemory) -> bool:
    """Put small segments together into one if there are enough of them. False if there was nothing to do."""
    with memory.lock, memory.said():
        small = [number for number, (_, merged) in memory.segments.items() if not merged]
        sizes = np.cumsum(memory.bytes_of(small))
        if len(small) < MERGE_SEGMENTS and (not len(sizes) or sizes[-1] < memory.segment_bytes):
            return False
        chosen = small[: max(1, int(np.searchsorted(sizes, memory.segment_bytes, side="right")))]
        rewrite(memory, chosen)
        return True


def forget(memory: StoredMemory, chunk_ids: Collection[int], gaps: Sequence[Gap]) -> None:
    """Really remove chunks: their KV, vectors, rows and thumbnails, from every file, and the notes about the gaps."""
    with memory.lock, memory.said():
        # An earlier try that failed may have left copies of it.
        drop_torn(memory)
        # First: without it the stream goes on with a whole chunk, with it a picture would be left.
        forget_reference(memory.folder)
        Notes(memory.manifest).forget([(gap.start_seconds, gap.end_seconds) for gap in gaps])
        rewrite(memory, memory.manifest.segments_of(chunk_ids), set(chunk_ids), gaps)
        finish_forgetting(memory)


def forget_span(memory: StoredMemory, start_seconds: float, end_seconds: float) -> list[int]:
    """Really remove every chunk that overlaps [start_seconds, end_seconds). Returns their ids."""
    check_span(start_seconds, end_seconds)
    with memory.lock, memory.said():
        # Where the chunks went long ago, for want of room, notes about them may be left.
        Notes(memory.manifest).forget([(start_seconds, end_seconds)])
        ids = memory.manifest.ids_of_all("WHERE start_seconds < ? AND end_seconds > ?", (end_seconds, start_seconds))
        if ids:
            # Those between them, too: a damaged row may claim any time.
            between = memory.manifest.ids_of_all("WHERE chunk_id BETWEEN ? AND ?", (ids[0], ids[-1]))
            if not set(ids) <= set(between):
                raise MemoryBankError(f"{memory.manifest.damaged(': its rows are out of order')}, then forget")
            ids = between
            # Whole chunks go, and nothing beyond what was watched is a gap.
            forget(memory, ids, [Gap(*memory.manifest.span_of(ids), "forgotten")])
        elif leaves_traces(memory):
            finish_forgetting(memory)
    return ids


def finish_forgetting(memory: StoredMemory) -> bool:
    """The last part of forgetting, also after a crash: what was deleted is not left in the manifest's free pages. False if that
    must wait for the next time: then it is in the notices why. Nothing is read of what was forgotten meanwhile."""
    delete_unwanted(memory)
    memory.fault("forget.compacting")
    try:
        why = "" if memory.manifest.compact() else "a reader is in the way"
    except MemoryBankError as error:
        why = str(error)
    if why:
        memory.notices.append(f"traces of what was forgotten stay in the manifest or its log until it is opened again: {why}")
        return False
    with memory.manifest.changing() as db:
        memory.manifest.set_meta(db, "forgetting", 0)
    return True


def leaves_traces(memory: StoredMemory) -> bool:
    """Whether a forgetting is still to be finished."""
    return memory.manifest.number("forgetting") != 0


def keep_quota(memory: StoredMemory, num_bytes: int) -> None:
    """Make room for `num_bytes`: old KV thins out in steps, or goes at once without thinning; where pictures take up
    half of the quota, the oldest of those without KV go, too."""
    while memory.num_bytes + num_bytes > memory.disk_bytes and (ages := memory.manifest.segments_by_age()):
        _age(memory, ages)
    if memory.manifest.num_bytes > memory.disk_bytes // 2:
        with memory.manifest.changing() as db:
            memory.manifest.remove_oldest_without_kv(db, ROWS_AT_A_TIME)


def _age(memory: StoredMemory, ages: list[int]) -> None:
    """The oldest segments of the step that is furthest over its share go one step further. ages: segments, the oldest first."""
    thinning = memory.thinning
    if thinning is None:
        memory.on_drop(drop_kv(memory, ages[0]))
        return
    by_step: dict[int, list[int]] = {}
    for number in ages:
        by_step.setdefault(min(memory.step_of(number), len(thinning.token_shares)), []).append(number)
    used = {step: int(memory.bytes_of(numbers).sum()) for step, numbers in by_step.items()}
    shares = thinning.byte_shares
    step = max(used, key=lambda step: (used[step] / shares[step] if shares[step] else float("inf"), step))
    if step == len(thinning.token_shares):
        memory.on_drop(drop_kv(memory, by_step[step][0]))
        return
    sizes = np.cumsum(memory.bytes_of(by_step[step]))
    together = by_step[step][: max(1, int(np.searchsorted(sizes, memory.segment_bytes, side="right")))]
    memory.on_thin(rewrite(memory, together, thinning=thinning))
    if _drop_dead_vectors(memory):
        delete_unwanted(memory)


def drop_kv(memory: StoredMemory, segment: int) -> list[int]:
    """Let the KV of a segment go; time, drop ratio, mask and thumbnail of its chunks stay. Returns their ids."""
    rows = rows_of(memory, segment)
    with memory.manifest.changing() as db:
        without = [replace(row, segment=None, offset=0, num_bytes=0) for row in rows]
        memory.manifest.put_rows(db, without, pictures=False)
        memory.manifest.unname_kv(db, [segment])
        memory.manifest.add_gaps(db, [Gap(rows[0].start_seconds, rows[-1].end_seconds, "dropped")] if rows else [])
        memory.manifest.remove_segments(db, [segment], [segment_path(memory.folder, segment).name])
    memory.segments.pop(segment, None)
    _drop_dead_vectors(memory)
    delete_unwanted(memory)
    return [row.chunk_id for row in rows]


def drop_torn(memory: StoredMemory) -> int:
    """Delete what was written behind the last commit, and how many bytes that was. Its names are known, so nothing has to be
    searched."""
    torn, number = memory.vectors.cut(), memory.manifest.number("next_segment")
    while num := _removed(segment_path(memory.folder, number)):
        torn, number = torn + num, number + 1
    vectors = memory.vectors.path
    return torn + _removed(vectors.with_name(f"vectors-{generation_of(vectors) + 1:04d}.f32"))


def _removed(path: Path) -> int:
    """Delete a file that was never named, finished or not. Returns how many bytes it had, at least 1 if it was there."""
    num_bytes = 0
    for left in (path, path.with_suffix(".part")):
        if left.exists():
            num_bytes += max(1, left.stat().st_size)
            left.unlink()
    return num_bytes


def _drop_dead_vectors(memory: StoredMemory) -> bool:
    """Give back the space of vectors whose chunks have no KV any more, or were thinned since, once they are most of them."""
    num_records = memory.vectors.num_records
    if num_records - memory.manifest.num_with_kv <= max(MIN_DEAD_VECTORS, num_records // 2):
        return False
    vectors = rewritten_vectors(memory, ())
    with memory.manifest.changing() as db:
        memory.manifest.name_vectors(db, vectors.path.name, vectors.num_records, memory.vectors.path.name)
    memory.vectors = vectors
    return True
