"""One SQLite file with one writer and many readers: connections, transactions, and its errors as one line of ours."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from data.errors import MemoryBankError, reason_of

BUSY_SECONDS = 10.0
REBUILD = "python -m vstream memory rebuild {folder} makes it anew from what is good"


class Database:
    """WAL, full synchronisation, secure deletion. Thread-safe. All errors are MemoryBankError, in one line."""

    def __init__(self, folder: Path, path: Path, write: bool) -> None:
        self.folder = folder
        self.path = path
        self.write = write
        self._lock = threading.RLock()
        self._reading = threading.RLock()
        with self._said():
            self._reads = self._connected(read_only=not write)
            self._writes = self._connected(read_only=False) if write else None
        self._file = self._there()
        self._version = -1

    @property
    def rebuild(self) -> str:
        """What to do where the file is damaged."""
        return REBUILD.format(folder=self.folder)

    def damaged(self, why: str) -> str:
        """What is said of a manifest that cannot be believed, and what to do."""
        return f"the manifest of {self.folder} is damaged{why}; {self.rebuild}"

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing where an error comes out of the context."""
        if self._writes is None:
            raise MemoryBankError(f"the memory {self.folder} was opened for reading only")
        self.check_there()
        with self._lock, self._said():
            self._writes.execute("BEGIN IMMEDIATE")
            try:
                yield self._writes
                self._writes.execute("COMMIT")
            except BaseException:
                if self._writes.in_transaction:
                    self._writes.execute("ROLLBACK")
                raise

    def check_there(self) -> None:
        """MemoryBankError if the file was taken away: SQLite would go on writing into one that has no name any more, and what
        lies beside its name by now may be of another memory."""
        if self._there() != self._file:
            raise MemoryBankError(
                f"the manifest of {self.folder} was taken away while it was open, so nothing more is written to it;"
                f" close it, then {self.rebuild}"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes in use; pages that are free are used again."""
        (pages,), (free,), (size,) = (self.query(f"PRAGMA {n}")[0] for n in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def compact(self) -> bool:
        """Rewrite the file without what was deleted, and empty the write-ahead log. False if a reader was in the way."""
        if self._writes is None:
            return False
        with self._lock, self._reading, self._said():
            self._writes.execute("VACUUM")
            (busy, *_), *_ = self._writes.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return not busy

    def close(self) -> None:
        with self._lock, self._reading, self._said():
            self._reads.close()
            if self._writes is not None:
                self._writes.close()

    def query(self, sql: str, values: tuple = ()) -> list[tuple]:
        """All rows that a query finds."""
        with self._reading, self._said():
            return self._reads.execute(sql, values).fetchall()

    def has_changed(self) -> bool:
        """Whether somebody has committed something since this was asked last; at first, yes."""
        before, ((self._version,),) = self._version, self.query("PRAGMA data_version")
        return before != self._version

    def _there(self) -> tuple[int, int] | None:
        """What the file's name stands for now; None for nothing."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_dev, found.st_ino)

    def _connected(self, read_only: bool) -> sqlite3.Connection:
        if not read_only:
            db = self._opened("rw")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
            return db
        log = self.path.with_name(f"{self.path.name}-wal")
        # Nobody writes into a folder that cannot be written: then the file is read as it is, without a log beside it.
        if not os.access(self.folder, os.W_OK) and not log.exists():
            return self._opened("ro&immutable=1")
        db = self._opened("ro")
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            # On a full disk there is no room for the index of the log. Where there is no log, it is not needed.
            if log.exists() and log.stat().st_size:
                raise
            db.close()
            db = self._opened("ro&immutable=1")
        return db

    def _opened(self, mode: str) -> sqlite3.Connection:
        uri = f"file:{quote(os.fsencode(self.path.resolve()))}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # Damage may leave bytes that are no text; the checksums find it, decoding must not stumble over it.
        db.text_factory = lambda content: content.decode("utf-8", "replace")
        return db

    @contextmanager
    def _said(self) -> Iterator[None]:
        """SQLite's errors as one line of ours."""
        try:
            yield
        except UnicodeError as error:
            raise MemoryBankError(self.damaged(f" ({error})")) from error
        except sqlite3.Error as error:
            said = reason_of(error)  # SQLite quotes what it stumbles over, over several lines
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(error):
                raise MemoryBankError(self.damaged(f" ({said})")) from error
            raise MemoryBankError(
                f"the manifest of {self.folder} cannot be used ({said}); free some space, wait, or choose another folder"
            ) from error
