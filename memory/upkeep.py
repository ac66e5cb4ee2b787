"""What changes a stored memory beside adding to it: merging small segments, keeping the quota, forgetting.

Each writes what is new, names it in one transaction that also lists what is no longer wanted, and only then deletes files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data.errors import MemoryBankError
from memory.base import check_span
from memory.files import sync_folder
from memory.layout import PackedChunk
from memory.rows import ChunkRow, Gap
from memory.segment_file import read_block, segment_path, write_segment
from memory.vectors import VectorFile, generation_of

if TYPE_CHECKING:
    from memory.stored import StoredMemory

ROWS_AT_A_TIME = 256
MERGE_SEGMENTS = 256
"""Every commit makes a small segment; so many of them, or `segment_bytes`, are merged into one."""


def merge(memory: StoredMemory) -> bool:
    """Put small segments together into one if there are enough of them. False if there was nothing to do."""
    with memory.lock, memory.said():
        small = [number for number, (_, merged) in memory.segments.items() if not merged]
        sizes = np.cumsum([memory.segments[number][0] for number in small])
        if len(small) < MERGE_SEGMENTS and (not len(sizes) or sizes[-1] < memory.segment_bytes):
            return False
        chosen = small[: max(1, int(np.searchsorted(sizes, memory.segment_bytes, side="right")))]
        rewrite(memory, chosen)
        return True


def forget(memory: StoredMemory, chunk_ids: Collection[int], gaps: Sequence[Gap]) -> None:
    """Really remove chunks: their KV, vectors, rows and thumbnails, from every file."""
    with memory.lock, memory.said():
        rewrite(memory, memory.manifest.segments_of(chunk_ids), set(chunk_ids), gaps)
        finish_forgetting(memory)


def forget_span(memory: StoredMemory, start_seconds: float, end_seconds: float) -> list[int]:
    """Really remove every chunk that overlaps [start_seconds, end_seconds). Returns their ids."""
    check_span(start_seconds, end_seconds)
    ids = memory.manifest.ids_of_all("WHERE start_seconds < ? AND end_seconds > ?", (end_seconds, start_seconds))
    if ids:
        forget(memory, ids, [Gap(start_seconds, end_seconds, "forgotten")])
    return ids


def finish_forgetting(memory: StoredMemory) -> None:
    """The last part of forgetting, also after a crash: what was deleted is not left in the manifest's free pages."""
    delete_unwanted(memory)
    memory.fault("forget.compacting")
    if not memory.manifest.compact():
        memory.notices.append("a reader keeps traces of what was forgotten in the manifest's log until it closes")
        return
    with memory.manifest.changing() as db:
        memory.manifest.set_meta(db, "forgetting", 0)


def keep_quota(memory: StoredMemory, num_bytes: int) -> None:
    """Make room for `num_bytes`: the oldest KV goes, and where pictures take up half of the quota, the oldest of those."""
    while memory.num_bytes + num_bytes > memory.disk_bytes and (oldest := memory.manifest.oldest_segment()) is not None:
        memory.on_drop(drop_kv(memory, oldest))
    if memory.manifest.num_bytes > memory.disk_bytes // 2:
        with memory.manifest.changing() as db:
            memory.manifest.remove_oldest_without_kv(db, ROWS_AT_A_TIME)


def drop_kv(memory: StoredMemory, segment: int) -> list[int]:
    """Let the KV of a segment go; time, drop ratio, mask and thumbnail of its chunks stay. Returns their ids."""
    rows = rows_of(memory, segment)
    with memory.manifest.changing() as db:
        without = [replace(row, segment=None, offset=0, num_bytes=0) for row in rows]
        memory.manifest.put_rows(db, without, pictures=False)
        memory.manifest.unname_kv(db, segment)
        memory.manifest.add_gaps(db, [Gap(rows[0].start_seconds, rows[-1].end_seconds, "dropped")] if rows else [])
        memory.manifest.remove_segments(db, [segment], [segment_path(memory.folder, segment).name])
    memory.segments.pop(segment, None)
    memory.num_dead_vectors += len(rows)
    if memory.num_dead_vectors > max(ROWS_AT_A_TIME, memory.vectors.num_records // 2):
        _drop_dead_vectors(memory)
    delete_unwanted(memory)
    return [row.chunk_id for row in rows]


def delete_unwanted(memory: StoredMemory) -> None:
    """Delete files that the manifest no longer names."""
    files = memory.manifest.unwanted()
    for file in files:
        memory.fault("unwanted.deleting")
        (memory.folder / file).unlink(missing_ok=True)
    if files:
        sync_folder(memory.folder)
        with memory.manifest.changing() as db:
            db.executemany("DELETE FROM unwanted WHERE file = ?", [(file,) for file in files])


def rewrite(memory: StoredMemory, segments: Sequence[int], forgotten: Collection[int] = (), gaps: Sequence[Gap] = ()) -> None:
    """Put what is kept of `segments` into a new one, in one transaction with all that goes with it."""
    manifest = memory.manifest
    rows = {row.chunk_id: row for number in segments for row in rows_of(memory, number) if row.chunk_id not in forgotten}
    packed: dict[int, PackedChunk] = {}
    lost: list[ChunkRow] = []
    for row in rows.values():
        try:
            # Checksums go along unverified: damage stays visible to whoever reads the chunk.
            block = read_block(segment_path(memory.folder, row.segment or 0), row.place)
            packed[row.chunk_id] = PackedChunk(row.layout, block, row.crc32)
        except MemoryBankError:
            lost.append(replace(row, segment=None, offset=0, num_bytes=0))
    number, num_bytes, moved = manifest.number("next_segment"), 0, []
    if packed:
        num_bytes, places = write_segment(segment_path(memory.folder, number), packed, memory.fault)
        moved = [replace(rows[i], segment=number, offset=p.offset, num_bytes=p.num_bytes) for i, p in places.items()]
    vectors = _rewritten_vectors(memory, forgotten) if forgotten else memory.vectors
    with manifest.changing() as db:
        memory.fault("rewrite.begun")
        if packed:
            manifest.add_segment(db, number, num_bytes, merged=True)
        manifest.put_rows(db, [*moved, *lost], pictures=False)
        manifest.remove_rows(db, forgotten)
        manifest.add_gaps(db, [*gaps, *(Gap(row.start_seconds, row.end_seconds, "damaged") for row in lost)])
        manifest.remove_segments(db, segments, [segment_path(memory.folder, n).name for n in segments])
        if forgotten:
            manifest.name_vectors(db, vectors.path.name, vectors.num_records, memory.vectors.path.name)
            manifest.set_meta(db, "forgetting", 1)
        memory.fault("rewrite.written")
    memory.fault("rewrite.committed")
    memory.vectors = vectors
    for old in segments:
        del memory.segments[old]
    if packed:
        memory.segments[number] = (num_bytes, True)
    delete_unwanted(memory)


def rows_of(memory: StoredMemory, segment: int) -> list[ChunkRow]:
    """The rows of a segment's chunks that are as they were written, in stream order."""
    rows = memory.manifest.rows("WHERE segment = ? ORDER BY chunk_id", (segment,))
    return [row for row in rows if isinstance(row, ChunkRow)]


def _drop_dead_vectors(memory: StoredMemory) -> None:
    """Give back the space of vectors whose chunks have no KV any more."""
    vectors = _rewritten_vectors(memory, ())
    with memory.manifest.changing() as db:
        memory.manifest.name_vectors(db, vectors.path.name, vectors.num_records, memory.vectors.path.name)
    memory.vectors, memory.num_dead_vectors = vectors, 0


def _rewritten_vectors(memory: StoredMemory, forgotten: Collection[int]) -> VectorFile:
    """A new file of the vectors of chunks with KV, but for those that are forgotten; the old one is left as it is."""
    wanted = np.setdiff1d(np.array(memory.manifest.ids(), dtype=np.int64), np.array(sorted(forgotten), dtype=np.int64))
    vectors = memory.vectors_of(f"vectors-{generation_of(memory.vectors.path) + 1:04d}.f32", 0)
    vectors.write((block.only(np.isin(block.chunk_ids, wanted)) for block in memory.vectors.blocks()), memory.fault)
    return vectors
