"""Text files that are written for a user: what goes wrong is told as the file and the flag that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import ConfigError


@contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Within it `path` is written, which `flag` named: what fails raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another {flag}") from error


class TextFile:
    """A file that is written while things come. A context manager. Raises ConfigError wherever it cannot be written."""

    def __init__(self, path: Path, flag: str, mode: str = "w") -> None:
        self.path = path
        self.flag = flag
        with writing(path, flag):
            self._file = path.open(mode, encoding="utf-8")

    def write(self, text: str) -> None:
        """Write a piece that can be read by itself: whatever ends the program, it is in the file."""
        with writing(self.path, self.flag):
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        with writing(self.path, self.flag):
            self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
