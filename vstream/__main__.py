"""The command line: `python -m vstream ask | batch | watch | comment | doctor`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.command_line import Parser, exit_status
from vstream import commands, comment_command, watch_command
from vstream.config import add_flags
from vstream.memory_commands import add_memory_commands
from vstream.models import add_model_flags
from vstream.written import printing


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m vstream", description="Watch a video stream and ask about any moment of it.")
    commands_ = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    ask = commands_.add_parser("ask", help="ask one question about a source")
    ask.add_argument("source", help="a file, a URL, world:?seed=7&seconds=600&speed=1, or memory:DIR")
    ask.add_argument("question")
    ask.add_argument("--at", type=float, metavar="SECONDS", help="stream time of the question; default: the end")
    ask.add_argument("--json", action="store_true", help="print one JSON object")
    _shared(ask)
    ask.set_defaults(run=commands.ask)

    batch = commands_.add_parser("batch", help="answer a table of questions about recorded videos")
    batch.add_argument("questions", type=Path, help='JSON lines {"id", "video", "question"[, "at", "options"]}')
    batch.add_argument("--out", type=Path, required=True, help="answers, as JSON lines; a second run resumes")
    batch.add_argument("--engine", choices=("local",), default="local", help="where the work runs")
    batch.add_argument("--workers", type=int, default=1, help="processes that share the videos")
    batch.add_argument("--limit", type=int, default=None, help="answer only the first rows")
    _shared(batch)
    batch.set_defaults(run=commands.batch)

    watch = commands_.add_parser("watch", help="tell when something happens, as it happens")
    watch_command.add_watch_flags(watch)
    _shared(watch)
    watch.set_defaults(run=watch_command.watch)

    comment = commands_.add_parser("comment", help="comment on a source, as subtitles or a list")
    comment_command.add_comment_flags(comment)
    _shared(comment)
    comment.set_defaults(run=comment_command.comment)

    memory = commands_.add_parser("memory", help="look at, check, thin out and delete stored memories")
    add_memory_commands(memory, Parser)

    doctor = commands_.add_parser("doctor", help="say what works on this machine")
    add_model_flags(doctor)
    add_flags(doctor)
    doctor.set_defaults(run=commands.doctor)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--memory", type=Path, metavar="DIR", help="remember in this folder; default: nothing is written")
    parser.add_argument("--allow-private-hosts", action="store_true", help="let URLs point into the local network")
    add_flags(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code: 0, or 2 for a usage or input error, told in one line on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")
    args = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run

    def printed() -> int:
        try:
            with printing(sys.stdout):
                return run(args)
        except BrokenPipeError:
            # As in `watch … | head -1`: who reads has seen enough.
            sys.stderr.write("stopped: nobody reads the output any more\n")
            return 0

    return exit_status(f"vstream {args.command}", printed)


if __name__ == "__main__":
    sys.exit(main())
