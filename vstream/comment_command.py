"""What `python -m vstream comment` does: it writes what is said of a source, as it is said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

from data.errors import ConfigError, SourceError
from data.sources import open_source
from data.sources.burn import burn
from vstream.captions import CaptionFile, cues, kind_of
from vstream.commands import warn
from vstream.commentary import ENGINES, STYLES, NarrationRules, Utterance, engine_of
from vstream.models import chosen_model
from vstream.session import StreamSession
from vstream.speaking import add_stream_flags, checked_until, unasked_config, watched
from vstream.written import check_apart, check_writable

BURN_FPS = 10.0


def add_comment_flags(parser: argparse.ArgumentParser) -> None:
    rules = NarrationRules()
    add_stream_flags(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="FILE.vtt, .srt, .jsonl or .md")
    parser.add_argument(
        "--background", default="", metavar="WORDS", help="what the model should know: title, names, what matters"
    )
    parser.add_argument("--style", choices=STYLES, default=rules.style)
    parser.add_argument(
        "--engine", choices=ENGINES, default=rules.engine, help="auto: continuous for checkpoints trained for it"
    )
    parser.add_argument("--words-per-second", type=float, default=None, help="how much is said at most")
    parser.add_argument(
        "--burn", type=Path, metavar="CLIP.mp4", help="also burn the words into a copy of a recorded source, without its sound"
    )


def comment(args: argparse.Namespace) -> int:
    """Comment on the source and write what is said, as it is said."""
    config = unasked_config(args)
    kind_of(args.out)
    if args.burn and args.burn.suffix.lower() != ".mp4":
        raise ConfigError(f"{args.burn.name} is no name for a clip; end it in .mp4")
    for path, flag in ((args.out, "--out"), (args.burn, "--burn")):
        if path:
            check_apart(path, args.source, flag)
    until = checked_until(args.until)
    poll = {} if args.poll_seconds is None else {"poll_seconds": args.poll_seconds}
    rules = NarrationRules(args.engine, args.background, args.style, args.words_per_second, **poll)
    with open_source(args.source, allow_private_hosts=args.allow_private_hosts) as source:
        if args.burn and source.info.live:
            raise SourceError("a live stream cannot be watched twice, so nothing can be burnt into it; leave --burn out")
        if args.burn:
            check_writable(args.burn, "--burn")
        with ExitStack() as opened:
            file = opened.enter_context(CaptionFile(args.out))
            adapter = chosen_model(args).load(config.gpu_bytes)
            session = opened.enter_context(StreamSession(adapter, config, memory=args.memory))
            if (args.background or args.style != "plain") and not session.unasked.prompts.takes_talk:
                sys.stderr.write(f"warning: {session.adapter.info.name} reads no background and knows one style\n")
            if args.engine == "auto" and engine_of(rules, session.unasked.prompts) == "continuous":
                sys.stderr.write("commentary: continuous, as this checkpoint was trained; --engine goes before it\n")
            session.narrate(rules)
            said = _written(session, watched(session, source, until), file, keep=args.burn is not None)
        warn(source)
    sys.stderr.write(f"{file.num_cues} cues in {args.out}\n")
    if args.burn:
        with open_source(args.source, allow_private_hosts=args.allow_private_hosts) as source:
            frames = takewhile(lambda frame: frame.pts_seconds <= until, source.frames(BURN_FPS))
            burn(frames, [(c.start_seconds, c.end_seconds, c.text) for c in cues(said)], args.burn, BURN_FPS)
    return 0


def _written(session: StreamSession, watched: Iterator[None], file: CaptionFile, keep: bool) -> list[Utterance]:
    """Watch, and write what is said to `file` while it comes. Returns it, if it is to be kept: some streams have no end."""
    said: list[Utterance] = []

    def listen() -> None:
        # Where a memory goes on, its times do; a file's cues count from its own start.
        offset = session.offset_seconds
        while session.unasked.utterances:
            heard = session.unasked.utterances.popleft()
            told = Utterance(heard.start_seconds - offset, heard.end_seconds - offset, heard.text)
            file.say(told)
            said.extend([told] if keep else [])
        file.passed(session.now_seconds - offset - session.config.chunk_seconds)

    try:
        for _ in watched:
            listen()
    finally:
        # Also where the source fails: a sentence that was begun is told.
        session.unasked.finish()
        listen()
    return said
