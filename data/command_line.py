"""What all commands have in common: one line for what was wrong, and what their exit statuses mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
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
