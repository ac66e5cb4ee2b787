"""A new manifest for a memory that has lost its own, or whose own is damaged.

Segments describe themselves (see `memory.labels`): KV, times, kept cells and the model come back from them. Pictures, the
reasons of gaps, watches, and which recording goes on where are in the manifest only: what can still be read there comes back.
Only a forgetting of everything that was interrupted between its last commit and the deletion of its files can come back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.errors import MemoryBankError
from memory.codecs import decoded
from memory.files import locked, make_private, sync_folder
from memory.identity import FORMAT_VERSION, Identity
from memory.labels import Origin, RowLabel, origin_of, row_of
from memory.layout import Packet, unpack
from memory.manifest import LOGS, MANIFEST, Manifest
from memory.notes import Notes
from memory.opening import LOCK, NEW_MANIFEST, OLD_MANIFEST, is_memory, is_torn
from memory.records import mask_from_bytes, mask_to_bytes
from memory.rows import ChunkRow, Gap, Sitting
from memory.salvage import Salvaged, salvage
from memory.segment_file import Contents, read_block, read_contents, segment_path, segments_in
from memory.vectors import Summaries, VectorFile, generation_of, vectors_in

CHUNKS_AT_A_TIME = 256
ALL = 2**62
"""Notes of a kind: none goes, whatever its number."""
TOUCHING_SECONDS = 1e-3


@dataclass
class Rebuilt:
    """What came of it. num_chunks: with KV. num_new: of them, those that the old manifest did not know (any more). num_bare: of
    them, those without a picture. lost: what could not be had back, in words."""

    num_chunks: int = 0
    num_new: int = 0
    num_bare: int = 0
    lost: list[str] = field(default_factory=list)


def rebuild(folder: Path) -> Rebuilt:
    """Make the manifest of a memory anew; all that is good stays. Interrupted, it can be done again.

    MemoryBankError if there is nothing to make it from, somebody is writing the memory, or it is of a newer format.
    """
    if not is_memory(folder) and not is_torn(folder):
        raise MemoryBankError(f"{folder} holds no memory and no segments of one; there is nothing to rebuild")
    make_private(folder)
    with locked(folder / LOCK):
        _settle_logs(folder)
        segments, lost = _segments(folder)
        found = Rebuilt(lost=lost)
        old = salvage(folder, [i for contents, _ in segments.values() for i in contents.places])
        identity = old.identity or _commonest([(origin.identity, len(c.places)) for c, origin in segments.values() if origin])
        if identity is None:
            raise MemoryBankError(f"nothing in {folder} says which model made it; restore it from a copy, or delete it")
        for number in [n for n, (_, origin) in segments.items() if origin and origin.identity != identity]:
            found.lost.append(f"{segment_path(folder, number).name} is of another model; it is left out")
            del segments[number]
        dropped = {n for n in segments if segment_path(folder, n).name in old.unwanted} | _undone(segments, old.named)
        kept = {number: one for number, one in segments.items() if number not in dropped}
        try:
            _write(folder, identity, kept, old, found)
            for number in dropped:
                segment_path(folder, number).unlink()
        except OSError as error:
            raise MemoryBankError(
                f"memory folder {folder} cannot be written: {error.strerror}; free some space, then rebuild it again"
            ) from error
    return found


def _settle_logs(folder: Path) -> None:
    """A log beside another manifest would be taken for that one's. So what an interrupted rebuilding left goes where it
    belongs, and the log of a manifest that is gone goes, too."""
    if is_memory(folder):
        for leftover in folder.glob(f"{OLD_MANIFEST}*"):
            leftover.unlink()
        return
    for log in LOGS:
        stray = folder / f"{MANIFEST}{log}"
        if stray.exists() and (folder / OLD_MANIFEST).exists():
            stray.rename(folder / f"{OLD_MANIFEST}{log}")
        stray.unlink(missing_ok=True)


def _segments(folder: Path) -> tuple[dict[int, tuple[Contents, Origin | None]], list[str]]:
    """The segments that are there by number, and what is wrong with the others."""
    found, lost = {}, []
    for number, path in segments_in(folder).items():
        try:
            contents = read_contents(path)
        except MemoryBankError as error:
            lost.append(str(error))
            continue
        origin = origin_of(contents.labels)
        if origin is not None and origin.format_version > FORMAT_VERSION:
            raise MemoryBankError(
                f"{path} has format version {origin.format_version}, which is newer than this program's ({FORMAT_VERSION});"
                " rebuild it with the program that wrote it"
            )
        found[number] = (contents, origin)
    return found, lost


def _undone(segments: dict[int, tuple[Contents, Origin | None]], named: set[int]) -> set[int]:
    """What a rewriting (merge, thinning, forgetting) left when it was interrupted: the old segments if all of the new ones are
    there and the manifest, as far as it can be trusted, does not still name the old ones; else the new ones."""
    dropped: set[int] = set()
    for number, (_, origin) in segments.items():
        replaced = set(origin.replaces) & segments.keys() if origin else set()
        if origin and replaced:
            finished = all(part in segments for part in origin.parts()) and not replaced & named
            dropped |= replaced if finished else {number}
    return dropped


def _write(
    folder: Path, identity: Identity, segments: dict[int, tuple[Contents, Origin | None]], old: Salvaged, found: Rebuilt
) -> None:
    for leftover in folder.glob(f"{NEW_MANIFEST}*"):
        leftover.unlink()
    stale = vectors_in(folder)
    generation = generation_of(stale[-1]) + 1 if stale else 0
    model = identity.model
    width = model["num_kv_heads"] * model["head_dim"]
    vectors = VectorFile(folder / f"vectors-{generation:04d}.f32", model["num_layers"], width, 0)
    rows: dict[int, ChunkRow] = {}
    vectors.write(_taken_up(folder, segments, old, rows, found))
    without = {i: replace(row, segment=None, offset=0, num_bytes=0) for i, row in old.rows.items() if i not in rows}
    found.num_chunks, found.num_bare = len(rows), sum(not row.thumbnail for row in rows.values())
    found.num_new = sum(i not in old.rows for i in rows)
    had_kv = [row for i, row in old.rows.items() if i in without and row.segment is not None]
    gone = [Gap(row.start_seconds, row.end_seconds, "damaged") for row in had_kv]
    found.lost += [f"the KV of {len(gone)} chunks is gone; their times and pictures stay"] if gone else []
    gaps = old.gaps if old.gaps is not None else _unexplained([*rows.values(), *without.values()])
    if old.sittings is None:
        found.lost.append("which source was watched when is lost, and why nothing was watched or kept in between")
    if old.num_damaged_notes:
        found.lost.append(f"{old.num_damaged_notes} notes about what was watched for")
    if old.num_damaged_entries:
        found.lost.append(f"{old.num_damaged_entries} entries about gaps or about what was watched when")
    manifest = Manifest.create(folder, identity, vectors.path.name, NEW_MANIFEST)
    with manifest.changing() as db:
        for number, (contents, origin) in segments.items():
            manifest.add_segment(db, number, contents.num_bytes, origin.merged if origin else 1)
        manifest.put_rows(db, [*rows.values(), *without.values()])
        manifest.add_gaps(db, [*gaps, *gone])
        unknown = [Sitting(0.0, 0.0, f"{folder.name}, rebuilt", "", time.time())]
        for sitting in old.sittings if old.sittings is not None else unknown:
            manifest.add_sitting(db, sitting)
        manifest.set_meta(db, "num_vectors", vectors.num_records)
    Notes(manifest).put(old.notes, most=ALL)
    manifest.close()
    # The old one goes with its log: a log beside another manifest would be taken for that one's.
    if (folder / MANIFEST).exists():
        for suffix in ("", *LOGS):
            with suppress(FileNotFoundError):
                (folder / f"{MANIFEST}{suffix}").rename(folder / f"{OLD_MANIFEST}{suffix}")
    (folder / NEW_MANIFEST).rename(folder / MANIFEST)
    sync_folder(folder)
    for path in [*stale, *folder.glob(f"{OLD_MANIFEST}*")]:
        path.unlink()
    sync_folder(folder)


def _taken_up(
    folder: Path,
    segments: dict[int, tuple[Contents, Origin | None]],
    old: Salvaged,
    rows: dict[int, ChunkRow],
    found: Rebuilt,
) -> Iterator[Summaries]:
    """Read and verify every chunk; puts its row into `rows`. Yields the index vectors, made from the chunks."""
    chunks = []
    for number, (contents, _) in segments.items():
        for chunk_id in sorted(contents.places):
            layout, crc32 = contents.heads[chunk_id]
            try:
                packet = unpack(layout, read_block(segment_path(folder, number), contents.places[chunk_id]), crc32)
            except MemoryBankError as error:
                found.lost.append(f"chunk {chunk_id}: {error}")
                continue
            row = old.rows.get(chunk_id) or _row_from(packet, row_of(contents.labels, chunk_id))
            place = contents.places[chunk_id]
            at = replace(row, segment=number, offset=place.offset, num_bytes=place.num_bytes)
            rows[chunk_id] = replace(at, layout=layout, crc32=crc32)
            chunks.append(decoded(packet))
            if len(chunks) == CHUNKS_AT_A_TIME:
                yield Summaries.of(chunks)
                chunks = []
    if chunks:
        yield Summaries.of(chunks)


def _row_from(packet: Packet, label: RowLabel | None) -> ChunkRow:
    """A row without a picture, and without a place yet; without a label it does not know the kept cells either."""
    head = packet.head
    # Without a label: complete at its end, no sooner.
    label = label or RowLabel(head.end_seconds, decoded(packet).num_tokens, mask_to_bytes(np.ones((0, 0, 0), dtype=bool)), 0.0)
    keep = mask_from_bytes(label.keep)
    times = (head.start_seconds, head.end_seconds, label.last_pts_seconds)
    counts = (label.num_tokens, keep.size, int(keep.sum()))
    return ChunkRow(head.chunk_id, *times, *counts, label.keep, b"", None, 0, 0, "", 0, label.stored_unix)


def _unexplained(rows: Sequence[ChunkRow]) -> list[Gap]:
    ordered = sorted(rows, key=lambda row: row.start_seconds)
    pairs = pairwise(ordered)
    apart = [(a, b) for a, b in pairs if b.start_seconds > a.end_seconds + TOUCHING_SECONDS]
    return [Gap(a.end_seconds, b.start_seconds, "unknown") for a, b in apart]


def _commonest(owners: Sequence[tuple[Identity, int]]) -> Identity | None:
    """Whose most chunks are. owners: of each segment, with the number of its chunks."""
    by_text: Counter[str] = Counter()
    for identity, num_chunks in owners:
        by_text[identity.to_json()] += num_chunks
    return Identity.from_json(by_text.most_common(1)[0][0]) if by_text else None
