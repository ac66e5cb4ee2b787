"""The manifest: what a memory folder holds, in SQLite (WAL). It never names what is not on disk.

One writer, many readers, also from other processes; a reader sees what has been committed and nothing else.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.errors import MemoryBankError
from memory.files import PRIVATE_FILE
from memory.history import History
from memory.identity import FORMAT_VERSION, READABLE_VERSIONS, Identity
from memory.migrations import MIGRATIONS, Migration, path_of
from memory.rows import CHUNK_COLUMNS, PICTURE_COLUMNS, ROW_COLUMNS, ChunkRow, TimelineMoment
from memory.segment_file import Place

MANIFEST = "manifest.sqlite"
LOGS = ("-wal", "-shm")
"""What SQLite keeps beside a manifest while it is open, or where its writer was killed, by the end of its name."""
MOST_DAMAGED = 64
"""Rows that are looked at for the newest one that is as it was written."""
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc32 INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (segment INTEGER PRIMARY KEY, num_bytes INTEGER NOT NULL, merged INTEGER NOT NULL);
CREATE TABLE chunks (
  chunk_id INTEGER PRIMARY KEY, {", ".join(CHUNK_COLUMNS[1:])},
  drop_ratio REAL GENERATED ALWAYS AS (1.0 - num_kept_tokens * 1.0 / max(num_seen_tokens, 1)) VIRTUAL);
CREATE TABLE pictures (chunk_id INTEGER PRIMARY KEY, {", ".join(PICTURE_COLUMNS[1:])});
CREATE VIEW whole_rows AS SELECT {", ".join(ROW_COLUMNS)} FROM chunks LEFT JOIN pictures USING (chunk_id);
CREATE INDEX chunks_of_segment ON chunks (segment);
CREATE INDEX chunks_with_kv ON chunks (chunk_id) WHERE segment NOT NULL;
CREATE INDEX chunks_by_time ON chunks (last_pts_seconds);
CREATE TABLE gaps (start_seconds REAL, end_seconds REAL, reason TEXT, pause_seconds REAL, crc32 INTEGER);
CREATE TABLE sittings (
  start_seconds REAL, offset_seconds REAL, source TEXT, source_key TEXT, started_unix REAL, crc32 INTEGER);
CREATE TABLE unwanted (file TEXT PRIMARY KEY) WITHOUT ROWID;
"""
"""unwanted: files that are no longer named and are to be deleted, in case a crash comes in between."""


class Manifest(History):
    """One folder's manifest. Thread-safe. All errors are MemoryBankError, in one line."""

    def __init__(self, folder: Path, write: bool, name: str = MANIFEST) -> None:
        super().__init__(folder, folder / name, write)

    @classmethod
    def create(cls, folder: Path, identity: Identity, vectors: str, name: str = MANIFEST) -> Manifest:
        """The manifest of a new memory. vectors: the file of its index vectors. OSError if it cannot be made."""
        os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
        manifest = cls(folder, write=True, name=name)
        with manifest.changing() as db:
            for statement in SCHEMA.strip().split(";\n"):
                db.execute(statement)
            meta = {"format_version": FORMAT_VERSION, "identity": identity.to_json(), "created_unix": time.time()}
            counts = {"next_segment": 0, "vectors": vectors, "num_vectors": 0, "forgetting": 0}
            for key, value in {**meta, **counts}.items():
                manifest.set_meta(db, key, value)
            manifest.sum_schema(db)
        return manifest

    def migrate(self, migrations: Mapping[int, Migration] = MIGRATIONS, target: int = FORMAT_VERSION) -> None:
        """Bring an older manifest to `target`, unless it is opened for reading and can be read as it is. MemoryBankError for a
        newer one, or an older one without a way."""
        version = self.number("format_version")
        if version == target:
            return
        steps = path_of(version, target, migrations)
        if version > target or steps is None:
            found = "newer than" if version > target else "too old for"
            raise MemoryBankError(
                f"the memory {self.folder} has format version {version}, which is {found} this program's ({target});"
                " open it with the program that wrote it"
            )
        if not self.write:
            if version in READABLE_VERSIONS:
                return
            raise MemoryBankError(
                f"the memory {self.folder} has format version {version} and must be brought to {target} first;"
                f" run python -m vstream memory verify {self.folder}, which does that"
            )
        with self.changing() as db:
            for step in steps:
                step(db)
            self.set_meta(db, "format_version", target)
            self.sum_schema(db)

    @property
    def identity(self) -> Identity:
        return Identity.from_json(self.meta("identity"))

    def add_segment(self, db: sqlite3.Connection, segment: int, num_bytes: int, merged: int) -> None:
        db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", (segment, num_bytes, merged))
        self.set_meta(db, "next_segment", segment + 1)

    def put_rows(self, db: sqlite3.Connection, rows: Sequence[ChunkRow], pictures: bool = True) -> None:
        """Add rows, or put them in the place of those with the same ids; with or without their pictures."""
        tables = {"chunks": (CHUNK_COLUMNS, [row.columns() for row in rows])}
        if pictures:
            tables["pictures"] = (PICTURE_COLUMNS, [row.picture_columns() for row in rows])
        for table, (names, values) in tables.items():
            marks = ", ".join("?" * len(names))
            db.executemany(f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})", values)

    def remove_rows(self, db: sqlite3.Connection, chunk_ids: Collection[int]) -> None:
        for table in ("chunks", "pictures"):
            db.executemany(f"DELETE FROM {table} WHERE chunk_id = ?", [(chunk_id,) for chunk_id in chunk_ids])

    def name_vectors(self, db: sqlite3.Connection, file: str, num_vectors: int, old_file: str) -> None:
        """From now on the vectors are in another file."""
        self.add_unwanted(db, [old_file])
        self.set_meta(db, "vectors", file)
        self.set_meta(db, "num_vectors", num_vectors)

    def unname_kv(self, db: sqlite3.Connection, segments: Collection[int]) -> None:
        """No row, not even a damaged one, points into these segments any more."""
        db.executemany("UPDATE chunks SET segment = NULL WHERE segment = ?", [(segment,) for segment in segments])

    def set_sizes(self, sizes: Mapping[int, int]) -> None:
        """Segments take up other numbers of bytes than was said. Those that take up none, and that no chunk needs, go."""
        with self.changing() as db:
            changed = [(num_bytes, segment) for segment, num_bytes in sizes.items()]
            db.executemany("UPDATE segments SET num_bytes = ? WHERE segment = ?", changed)
            needed = "SELECT 1 FROM chunks WHERE chunks.segment = segments.segment"
            db.execute(f"DELETE FROM segments WHERE num_bytes = 0 AND NOT EXISTS ({needed})")

    def remove_oldest_without_kv(self, db: sqlite3.Connection, num: int) -> None:
        oldest = "SELECT chunk_id FROM chunks WHERE segment IS NULL ORDER BY chunk_id LIMIT ?"
        self.remove_rows(db, [row[0] for row in db.execute(oldest, (num,)).fetchall()])

    def remove_segments(self, db: sqlite3.Connection, segments: Collection[int], files: Collection[str]) -> None:
        db.executemany("DELETE FROM segments WHERE segment = ?", [(segment,) for segment in segments])
        self.add_unwanted(db, files)

    def add_unwanted(self, db: sqlite3.Connection, files: Collection[str]) -> None:
        db.executemany("INSERT OR IGNORE INTO unwanted VALUES (?)", [(file,) for file in files])

    def row(self, chunk_id: int) -> ChunkRow | None:
        """One chunk's row. MemoryBankError if it is not as it was written."""
        found = self.query("SELECT * FROM whole_rows WHERE chunk_id = ?", (int(chunk_id),))
        return ChunkRow.from_columns(found[0]) if found else None

    def rows(self, where: str, values: tuple = ()) -> Iterator[ChunkRow | MemoryBankError]:
        """The rows that `where` (SQL after the table's name) chooses; a damaged one as the error that it raises."""
        for columns in self.query(f"SELECT * FROM whole_rows {where}", values):
            try:
                yield ChunkRow.from_columns(columns)
            except MemoryBankError as error:
                yield error

    def rows_of(self, chunk_ids: Collection[int]) -> Iterator[ChunkRow | MemoryBankError]:
        """The rows of chunks, in stream order."""
        return self.rows(f"WHERE chunk_id IN {_ids(chunk_ids)} ORDER BY chunk_id")

    def newest(self, until_pts_seconds: float, window_seconds: float) -> list[ChunkRow | MemoryBankError]:
        """The rows of the chunks whose last frame came by a time, back to one window before the newest."""
        by_time = "WHERE last_pts_seconds <= ? ORDER BY last_pts_seconds DESC LIMIT ?"
        # A damaged row may claim any time: then those behind it are asked.
        found = (row for num in (1, MOST_DAMAGED) for row in self.rows(by_time, (until_pts_seconds, num)))
        last = next((row.last_pts_seconds for row in found if isinstance(row, ChunkRow)), None)
        if last is None:
            return []
        # A chunk that starts in the window has its last frame there, too.
        span = (last - window_seconds - 1e-3, until_pts_seconds)
        where = "WHERE last_pts_seconds BETWEEN ? AND ? ORDER BY last_pts_seconds DESC"
        return list(self.rows(where, span))

    def ids(self) -> list[int]:
        """Ids of the chunks whose KV is stored, in stream order."""
        return self.ids_up_to().tolist()

    def ids_up_to(self, chunk_id: int | None = None) -> np.ndarray:
        """int64: the same up to one chunk, or all of them: many at once as one text, which is several times faster."""
        where = "" if chunk_id is None else f"AND chunk_id <= {int(chunk_id)}"
        ((found,),) = self.query(f"SELECT json_group_array(chunk_id) FROM chunks WHERE segment NOT NULL {where}")
        return np.sort(np.array(json.loads(found), dtype=np.int64))

    def ids_of_all(self, where: str = "", values: tuple = ()) -> list[int]:
        """Ids of all chunks, also of those whose KV is gone, in stream order."""
        return [row[0] for row in self.query(f"SELECT chunk_id FROM chunks {where} ORDER BY chunk_id", values)]

    def span_of(self, chunk_ids: Collection[int]) -> tuple[float, float]:
        """From where the first of these chunks starts to where the last one ends; at least one, next to each other."""
        whole = _are("number", "start_seconds", "end_seconds")
        ends = f"SELECT min(start_seconds), max(end_seconds) FROM chunks WHERE chunk_id BETWEEN ? AND ? AND {whole}"
        ((start, end),) = self.query(ends, (min(chunk_ids), max(chunk_ids)))
        if start is None:
            raise MemoryBankError(self.damaged(": it has no times"))
        return start, end

    def places(self, chunk_ids: Collection[int]) -> dict[int, list[Place]]:
        """Where the KV of stored chunks lies, by segment."""
        whole = _are("integer", "segment", "offset", "num_bytes")
        where = f"WHERE segment NOT NULL AND chunk_id IN {_ids(chunk_ids)} AND {whole}"
        found: dict[int, list[Place]] = {}
        for segment, offset, num_bytes in self.query(f"SELECT segment, offset, num_bytes FROM chunks {where}"):
            found.setdefault(segment, []).append(Place(offset, num_bytes))
        return found

    def sizes(self, chunk_ids: Collection[int]) -> dict[int, int]:
        """Bytes of the KV of stored chunks."""
        where = f"WHERE segment NOT NULL AND chunk_id IN {_ids(chunk_ids)} AND {_are('integer', 'num_bytes')}"
        return dict(self.query(f"SELECT chunk_id, num_bytes FROM chunks {where}"))

    def holds(self, chunk_id: int) -> bool:
        """Whether the KV of a chunk is stored."""
        return bool(self.query("SELECT 1 FROM chunks WHERE chunk_id = ? AND segment NOT NULL", (int(chunk_id),)))

    @property
    def num_with_kv(self) -> int:
        """How many chunks have their KV stored."""
        return int(self.query("SELECT count(*) FROM chunks WHERE segment NOT NULL")[0][0])

    def moments(self, after_chunk_id: int = -1) -> list[tuple]:
        """The fields of a TimelineMoment of every chunk behind one."""
        names = ", ".join(TimelineMoment._fields)
        where = f"WHERE chunk_id > ? AND {_are('number', *TimelineMoment._fields[1:])}"
        return self.query(f"SELECT {names} FROM chunks {where} ORDER BY chunk_id", (after_chunk_id,))

    @property
    def num_rows(self) -> int:
        """How many chunks there are, also without KV."""
        return int(self.query("SELECT count(*) FROM chunks")[0][0])

    def last_stored_unix(self) -> float:
        """Wall-clock time at which the last chunk was stored; 0 if there is none."""
        whole = _are("number", "stored_unix")
        found = self.query(f"SELECT stored_unix FROM chunks WHERE {whole} ORDER BY chunk_id DESC LIMIT 1")
        return float(found[0][0]) if found else 0.0

    def segments(self) -> dict[int, tuple[int, int]]:
        """(num_bytes, merged) of every segment by its number. merged: 0 as committed, else 1 + how often its chunks were
        thinned. What damage has left without numbers is left out."""
        found = self.query("SELECT * FROM segments ORDER BY segment")
        return {row[0]: (row[1], row[2]) for row in found if all(isinstance(value, int) for value in row)}

    def segments_by_age(self) -> list[int]:
        """The segments that hold chunks, that of the oldest chunk first."""
        where = f"WHERE segment NOT NULL AND {_are('integer', 'segment')}"
        found = self.query(f"SELECT segment FROM chunks {where} GROUP BY segment ORDER BY min(chunk_id)")
        return [row[0] for row in found]

    def step(self, chunk_id: int) -> int:
        """How often one chunk was thinned."""
        step = "SELECT coalesce(merged - 1, 0) FROM chunks JOIN segments USING (segment) WHERE chunk_id = ?"
        found = self.query(step, (int(chunk_id),))
        return max(0, found[0][0]) if found else 0

    def steps(self) -> dict[int, int]:
        """How often a chunk was thinned, by its id; whole ones are left out."""
        return dict(self.query("SELECT chunk_id, merged - 1 FROM chunks JOIN segments USING (segment) WHERE merged > 1"))

    def segments_of(self, chunk_ids: Collection[int]) -> list[int]:
        """The segments that hold these chunks."""
        where = f"WHERE segment NOT NULL AND chunk_id IN {_ids(chunk_ids)} AND {_are('integer', 'segment')}"
        found = self.query(f"SELECT DISTINCT segment FROM chunks {where}")
        return sorted(row[0] for row in found)

    def unwanted(self) -> list[str]:
        return [row[0] for row in self.query(f"SELECT file FROM unwanted WHERE {_are('text', 'file')}")]

    def num_visual_tokens(self, until_chunk_id: int) -> tuple[int, int]:
        """Visual tokens seen and kept in all chunks up to one."""
        sums = "coalesce(sum(num_seen_tokens), 0), coalesce(sum(num_kept_tokens), 0)"
        ((num_seen, num_kept),) = self.query(f"SELECT {sums} FROM chunks WHERE chunk_id <= ?", (until_chunk_id,))
        return num_seen, num_kept

    def totals(self) -> dict[str, float]:
        """Counts, and the first and last times of stream and clock, for people: it looks at every row."""
        names = ("num_chunks", "num_stored", "num_seen_tokens", "num_kept_tokens", "start", "end", "first", "last")
        sums = "count(*), count(segment), sum(num_seen_tokens), sum(num_kept_tokens)"
        ends = ("min", "start_seconds"), ("max", "end_seconds"), ("min", "stored_unix"), ("max", "stored_unix")
        times = ", ".join(f"{end}({column}) FILTER (WHERE {_are('number', column)})" for end, column in ends)
        (row,) = self.query(f"SELECT {sums}, {times} FROM chunks")
        return {name: value or 0 for name, value in zip(names, row, strict=True)}

    def check(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty if nothing."""
        return [row[0] for row in self.query("PRAGMA quick_check") if row[0] != "ok"]


def _are(kind: str, *columns: str) -> str:
    """That columns hold what was put there, a number, integer or text: what is damaged may be of any type."""
    kinds = "'integer', 'real'" if kind == "number" else f"'{kind}'"
    return " AND ".join(f"typeof({column}) IN ({kinds})" for column in columns)


def _ids(chunk_ids: Collection[int]) -> str:
    """As many as there may be, which parameters may not."""
    return f"({', '.join(str(int(chunk_id)) for chunk_id in chunk_ids)})"
