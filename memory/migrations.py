"""From the manifest of one format version to that of the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from memory.history import add_checksums

Migration = Callable[[sqlite3.Connection], None]
"""Changes tables inside of a transaction that the caller opens and commits."""

MIGRATIONS: Mapping[int, Migration] = {1: add_checksums}
"""By the version that a migration starts from; it leads to the next one. Version 1 is the first there is."""


def path_of(version: int, target: int, migrations: Mapping[int, Migration]) -> list[Migration] | None:
    """The migrations from `version` to `target`, in order; None if one is missing."""
    steps = [migrations.get(step) for step in range(version, target)]
    found = [step for step in steps if step is not None]
    return found if len(found) == len(steps) else None
