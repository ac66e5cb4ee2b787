"""What all commands have in common: one line for what was wrong, and what their exit statuses mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from data.errors import VStreamError

USAGE_ERROR = 2
"""Exit status of a command that was called or fed wrongly."""
INTERRUPTED = 130
"""Exit status where Ctrl-C ended it."""


class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, without the usage text in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


@contextmanager
def reading(path: Path, then: str, kind: type[VStreamError]) -> Iterator[None]:
    """Within it `path` is read as text: what fails raises an error of `kind`, which says what to do `then`."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}; {then}") from error
    except UnicodeDecodeError as error:
        raise kind(f"{path} is no text; {then}") from error


def exit_status(name: str, run: Callable[[], int]) -> int:
    """The exit status of `run`; what it cannot use, and Ctrl-C, are one line on stderr, after the command's name."""
    try:
        return run()
    except VStreamError as error:
        sys.stderr.write(f"{name}: {error.line}\n")
        return USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return INTERRUPTED
