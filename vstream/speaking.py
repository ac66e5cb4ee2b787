"""What `python -m vstream watch` and `comment` do: a stream that speaks without being asked."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

from data.errors import ConfigError, SourceError
from data.sources import Source, open_source
from data.sources.burn import burn
from vstream.captions import CaptionFile, cues, kind_of
from vstream.commentary import ENGINES, STYLES, NarrationRules, Utterance, engine_of
from vstream.config import SessionConfig
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.prompts import prompts_for
from vstream.remembered import memory_folder, stored_settings
from vstream.replaying import replay_file
from vstream.session import StreamSession
from vstream.watches import Alert, Watches, WatchRules, Webhook, decision_row, parse_condition
from vstream.written import TextFile, check_apart, check_writable

BURN_FPS = 10.0


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    rules = WatchRules()
    parser.add_argument("source", help="a file, a URL, or world:?seed=7&seconds=600&speed=1")
    parser.add_argument("--when", action="append", required=True, metavar="WORDS", help='"a red circle appears"; repeatable')
    parser.add_argument("--until", type=float, metavar="SECONDS", help="stop at this stream time; default: at the end")
    parser.add_argument("--threshold", type=float, default=rules.threshold, help="least probability of yes (default 0.5)")
    parser.add_argument("--cooldown", type=float, default=rules.cooldown_seconds, help="seconds of silence after an alert")
    parser.add_argument("--confirm", type=int, default=None, metavar="N", help="looks that must confirm a yes")
    parser.add_argument("--of", type=int, default=None, metavar="M", help="out of so many looks")
    parser.add_argument("--once", action="store_true", help="each watch ends with its first alert")
    parser.add_argument("--expires", type=float, default=None, metavar="SECONDS", help="each watch ends after so long")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write every decision here, as JSON lines")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="watch nothing: decide again on what such a log found, without a model"
    )
    parser.add_argument("--webhook", metavar="URL", help="also post alerts here; its host must be allowed")
    parser.add_argument("--webhook-host", action="append", default=[], metavar="HOST", help="a host that may be posted to")
    parser.add_argument("--json", action="store_true", help="print one JSON object per alert")


def watch(args: argparse.Namespace) -> int:
    """Watch the source and print every alert as it comes; or only decide again on a log."""
    config = _config(args)
    rules = WatchRules(args.threshold, args.cooldown, args.confirm, args.of, args.once, args.expires)
    for words in args.when:
        parse_condition(words)
    until = _checked_until(args.until)
    if args.replay:
        print(replay_file(args.replay, args.when, rules, prompts_for(chosen_model(args).model, config.prompts)))
        return 0
    if args.log:
        check_apart(args.log, args.source, "--log")
    with ExitStack() as opened:
        hook = opened.enter_context(_hooked(args.webhook, args.webhook_host)) if args.webhook else None
        source = opened.enter_context(open_source(args.source, allow_private_hosts=args.allow_private_hosts))
        log = opened.enter_context(TextFile(args.log, "--log")) if args.log else None
        with StreamSession(chosen_model(args).load(config.gpu_bytes), config, memory=args.memory) as session:
            watches = session.unasked.watches
            _set(session, args.when, rules)
            # What was decided before is in the memory, and in the log of that time.
            watches.log.clear()
            began = watches.rows()
            watches.on_alert = lambda alert: _tell(alert, args.json, hook)
            try:
                for _ in _watched(session, source, until):
                    _keep_log(watches, log, began)
                    if not watches.active and not session.writes:
                        sys.stderr.write("no watch is left: each has fired once, or expired\n")
                        break
            finally:
                _keep_log(watches, log, began)
        _warn(source)
    return 0


def _set(session: StreamSession, conditions: Sequence[str], rules: WatchRules) -> None:
    """Watch for `conditions` by `rules`. What the memory watches for by the same rules goes on, and all else that it does."""
    watches = session.unasked.watches
    kept = {watch.condition.text.lower(): watch for watch in watches.active}
    on = dict(kept)
    for words in conditions:
        text = parse_condition(words).text.lower()
        known = kept.pop(text, None)
        if known is not None and known.rules == rules:
            continue
        if known is not None:
            # What the command says goes before what the memory was told.
            watches.remove(known.number)
            del on[text]
        session.watch(words, rules)
    if on:
        sys.stderr.write(f"this memory watches on: {', '.join(sorted(on))}\n")


def _keep_log(watches: Watches, log: TextFile | None, began: dict[int, dict[str, object]]) -> None:
    """Move the decisions so far to `log`. began: the watches as they were before; each stands beside its first decision."""
    while log and watches.log:
        decision = watches.log.popleft()
        first = began.pop(decision.findings.watch, None)
        log.write(json.dumps(decision_row(decision) | ({"began": first} if first else {})) + "\n")


@contextmanager
def _hooked(url: str, allowed_hosts: Sequence[str]) -> Iterator[Webhook]:
    """A webhook, and at the end the line that says what became of its alerts."""
    hook = Webhook(url, allowed_hosts)
    try:
        yield hook
    finally:
        hook.close()
        sys.stderr.write(f"webhook: {hook.num_sent} sent, {hook.num_failed} failed, {hook.num_dropped} dropped\n")


def add_comment_flags(parser: argparse.ArgumentParser) -> None:
    rules = NarrationRules()
    parser.add_argument("source", help="a file, a URL, or world:?seed=7&seconds=600&speed=1")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="FILE.vtt, .srt, .jsonl or .md")
    parser.add_argument("--until", type=float, metavar="SECONDS", help="stop at this stream time; default: at the end")
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
    config = _config(args)
    kind_of(args.out)
    if args.burn and args.burn.suffix.lower() != ".mp4":
        raise ConfigError(f"{args.burn.name} is no name for a clip; end it in .mp4")
    for path, flag in ((args.out, "--out"), (args.burn, "--burn")):
        if path:
            check_apart(path, args.source, flag)
    until = _checked_until(args.until)
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
            said = _written(session, _watched(session, source, until), file, keep=args.burn is not None)
        _warn(source)
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


def _watched(session: StreamSession, source: Source, until: float) -> Iterator[None]:
    """Feed the session up to stream time `until`, or to the end; yields after every chunk. Ctrl-C or SIGTERM end the stream, no
    more."""
    total = until if math.isfinite(until) else source.info.duration_seconds
    joined = session.join(source.info.label, source.recording_key, source.place_key)
    if joined.words:
        sys.stderr.write(f"{joined.words}\n")
    frames = takewhile(lambda frame: frame.pts_seconds <= until, source.frames(session.config.fps, joined.start_seconds))
    with Progress("watching", total) as progress:
        try:
            with _interrupted_by_sigterm():
                for record in session.feed(frames, lambda: source.waits):
                    progress.update(record.last_pts_seconds - session.offset_seconds)
                    yield
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
        session.finish()
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM is as Ctrl-C: what stops a service lets it tell what it has begun. Of the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(alert: Alert, as_json: bool, hook: Webhook | None) -> None:
    if hook:
        hook.send(alert)
    line = json.dumps(alert.row()) if as_json else f"{alert.fired_at_seconds:8.1f} s  {alert.text}  ({alert.score:.2f})"
    print(line, flush=True)


def _config(args: argparse.Namespace) -> SessionConfig:
    """The settings. Raises SourceError for a stored memory: what it remembers cannot be watched again."""
    if memory_folder(args.source) is not None:
        raise SourceError(f"{args.source} holds no pictures to watch; give the source that it was made from")
    return chosen_settings(args, stored_settings(args.memory))


def _checked_until(until: float | None) -> float:
    if until is not None and not until > 0:
        raise ConfigError(f"--until is {until:g}; give a stream time after 0 s")
    return math.inf if until is None else until


def _warn(source: Source) -> None:
    for warning in source.stats.warnings:
        sys.stderr.write(f"warning: {warning}\n")
