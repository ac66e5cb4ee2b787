"""Putting what is kept of segments and vectors into new files, in one transaction with all that goes with it.

What is new is written, then named by the transaction that also lists what is no longer wanted; only then are files deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data.errors import MemoryBankError
from memory.codecs import decoded
from memory.files import sync_folder
from memory.labels import Origin, RowLabel, labels_of
from memory.layout import PackedChunk, Packet, pack, unpack
from memory.rows import ChunkRow, Gap
from memory.segment_file import read_block, segment_path, write_segment
from memory.stored_vectors import StoredVectors
from memory.thinning import Thinning
from memory.vectors import Summaries, VectorFile, generation_of
from model_adapters.base import ChunkKV

if TYPE_CHECKING:
    from memory.stored import StoredMemory

logger = logging.getLogger(__name__)


def rewrite(
    memory: StoredMemory,
    segments: Sequence[int],
    forgotten: Collection[int] = (),
    gaps: Sequence[Gap] = (),
    thinning: Thinning | None = None,
) -> list[ChunkKV]:
    """Put what is kept of `segments` into new ones, one for each step, in one transaction with all that goes with it.

    thinning: every chunk goes one step further; not together with forgetting. Returns what is left of those that shrank.
    """
    manifest = memory.manifest
    rows = {row.chunk_id: row for number in segments for row in rows_of(memory, number) if row.chunk_id not in forgotten}
    packed: dict[int, dict[int, PackedChunk]] = {}
    lost: list[ChunkRow] = []
    thinner: list[ChunkKV] = []
    for row in rows.values():
        step = memory.step_of(row.segment or 0) + (thinning is not None)
        try:
            # Checksums go along unverified: damage stays visible to whoever reads the chunk.
            block = read_block(segment_path(memory.folder, row.segment or 0), row.place)
        except MemoryBankError:
            lost.append(replace(row, segment=None, offset=0, num_bytes=0))
            continue
        one = PackedChunk(row.layout, block, row.crc32)
        if thinning is not None and (fewer := _thinned(memory, row, one, thinning, step)) is not None:
            one = pack(fewer[1])
            thinner.append(fewer[0])
        packed.setdefault(step, {})[row.chunk_id] = one
    if thinner:
        memory.vectors.append(Summaries.of(thinner), memory.fault)
    first, sizes, moved = manifest.number("next_segment"), {}, []
    for number, (step, chunks) in enumerate(sorted(packed.items()), first):
        labels = _labels([rows[i] for i in chunks], Origin(memory.identity, 1 + step, tuple(segments), first, len(packed)))
        num_bytes, places = write_segment(segment_path(memory.folder, number), chunks, memory.fault, labels)
        sizes[number] = (num_bytes, 1 + step)
        for i, place in places.items():
            at = replace(rows[i], segment=number, offset=place.offset, num_bytes=place.num_bytes)
            moved.append(replace(at, layout=chunks[i].layout, crc32=chunks[i].crc32))
    if thinner:
        memory.fault("thin.written")
    vectors = rewritten_vectors(memory, forgotten) if forgotten else memory.vectors
    num_vectors = vectors.num_records + len(thinner)
    with manifest.changing() as db:
        memory.fault("rewrite.begun")
        for number, (num_bytes, merged) in sizes.items():
            manifest.add_segment(db, number, num_bytes, merged)
        manifest.put_rows(db, [*moved, *lost], pictures=False)
        manifest.unname_kv(db, segments)
        manifest.remove_rows(db, forgotten)
        manifest.add_gaps(db, [*gaps, *(Gap(row.start_seconds, row.end_seconds, "damaged") for row in lost)])
        manifest.remove_segments(db, segments, [segment_path(memory.folder, n).name for n in segments])
        if thinner:
            manifest.set_meta(db, "num_vectors", num_vectors)
        if forgotten:
            manifest.name_vectors(db, vectors.path.name, vectors.num_records, memory.vectors.path.name)
            manifest.set_meta(db, "forgetting", 1)
        memory.fault("rewrite.written")
    memory.fault("rewrite.committed")
    vectors.num_records = num_vectors
    memory.vectors = vectors
    for old in segments:
        memory.segments.pop(old, None)
    memory.segments.update(sizes)
    delete_unwanted(memory)
    return thinner


def _labels(rows: Sequence[ChunkRow], origin: Origin) -> dict[str, str]:
    about = {r.chunk_id: RowLabel(r.last_pts_seconds, r.num_tokens, r.keep, r.stored_unix) for r in rows}
    return labels_of(origin, about)


def _thinned(
    memory: StoredMemory, row: ChunkRow, packed: PackedChunk, thinning: Thinning, step: int
) -> tuple[ChunkKV, Packet] | None:
    """A chunk after `step`. None if it takes up no less, or is damaged: then it stays as it is, for its reader to find out."""
    try:
        before = unpack(packed.layout, packed.data, packed.crc32)
        chunk = thinning.thin(decoded(before), step, row.num_tokens)
    except MemoryBankError as error:
        logger.warning("chunk %d is not thinned: %s", row.chunk_id, error)
        return None
    after = memory.encoded(chunk)
    return (chunk, after) if after.num_bytes < before.num_bytes else None


def rows_of(memory: StoredMemory, segment: int) -> list[ChunkRow]:
    """The rows of a segment's chunks that are as they were written, in stream order."""
    rows = memory.manifest.rows("WHERE segment = ? ORDER BY chunk_id", (segment,))
    return [row for row in rows if isinstance(row, ChunkRow)]


def rewritten_vectors(memory: StoredMemory, forgotten: Collection[int]) -> VectorFile:
    """A new file of the vectors of chunks with KV, but for those that are forgotten; the old one is left as it is."""
    there = memory.manifest.ids_up_to()
    wanted = there[~np.isin(there, np.array(sorted(forgotten), dtype=np.int64))]
    vectors = memory.vectors_of(f"vectors-{generation_of(memory.vectors.path) + 1:04d}.f32", 0)
    vectors.write(StoredVectors.newest(memory.vectors, wanted).summaries(), memory.fault)
    return vectors


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
