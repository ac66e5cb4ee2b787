"""What is written for a user, to files and to standard output; what goes wrong is told with the flag that named the file."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

from data.errors import ConfigError
from data.sources import file_named


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


def check_writable(path: Path, flag: str) -> None:
    """Raises ConfigError if `path` cannot be written, before there is anything to write. Everything stays as it was."""
    is_new = not os.path.exists(path)
    with writing(path, flag):
        path.open("ab").close()
        if is_new:
            path.unlink()


def check_apart(path: Path, source: str, flag: str) -> None:
    """Raises ConfigError if `path`, which is about to be written, is the file that `source` names: it would be lost."""
    there = file_named(source)
    if os.path.exists(path) and os.path.exists(there) and os.path.samefile(path, there):
        raise ConfigError(f"{path} is the source itself and would be overwritten; choose another {flag}")


class Printed(io.TextIOBase):
    """Standard output. What cannot be written there raises ConfigError; BrokenPipeError where nobody reads it any more."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        with self._telling():
            return self._out.write(text)

    def flush(self) -> None:
        with self._telling():
            self._out.flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in its buffer goes nowhere; else Python would try once more at its end, and complain.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._out.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise ConfigError(f"standard output cannot be written: {error.strerror}; send it elsewhere") from error


@contextmanager
def printing(out: TextIO | None) -> Iterator[None]:
    """Within it, whatever is printed goes through `Printed`; at its end all of it is out. out: None where it was closed."""
    if out is None:
        yield
        return
    if isinstance(out, io.TextIOWrapper):
        # A file's name need be no text, and comes out as the bytes that it is; what a smaller encoding lacks, by its number.
        out.reconfigure(errors="surrogateescape" if codecs.lookup(out.encoding).name == "utf-8" else "backslashreplace")
    printed = Printed(out)
    with redirect_stdout(printed):
        yield
    printed.flush()
