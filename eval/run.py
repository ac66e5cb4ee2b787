"""`python -m eval.run NAME`: every figure that the README quotes comes from here."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from data.command_line import Parser, exit_status
from vstream.config import add_flags
from vstream.models import add_model_flags

EVALUATIONS = {
    "needle": ("eval.needle", "accuracy and retrieval on the synthetic world, with all controls"),
    "proactive": (
        "eval.proactive",
        "watches and commentary against the schedule, on five kinds of streams, and what they cost",
    ),
    "efficiency": ("eval.efficiency", "ingest rate, latency against stream length, tokens, bytes and memory"),
    "crash": ("eval.crash", "what killing the writer at any moment leaves of a stored memory"),
    "reopen": ("eval.reopen", "time to reopen a stored memory against its length, and the cost of checksums"),
    "codecs": ("eval.codecs", "bytes, time, error and accuracy of every way to keep chunks in RAM and on disk"),
    "day": ("eval.day", "a day of stream at small budgets: memory, disk and index by the hour, accuracy by age"),
    "reads": ("eval.reads", "gathers from RAM and disk against a plain copy, and the first token from each"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.run", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, parser_class=Parser)
    for name, (module, words) in EVALUATIONS.items():
        command: argparse.ArgumentParser = commands.add_parser(name, help=words)
        add_model_flags(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
        evaluation = importlib.import_module(module)
        evaluation.add_flags(command)
        add_flags(command)
        command.set_defaults(run=evaluation.run)
    args = parser.parse_args(argv)

    def measured() -> int:
        args.run(args)
        return 0

    return exit_status(f"eval {args.name}", measured)


if __name__ == "__main__":
    sys.exit(main())
