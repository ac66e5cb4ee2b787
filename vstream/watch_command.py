"""What `python -m vstream watch` does: it tells when something happens, as it happens."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.sources import open_source
from vstream.commands import warn
from vstream.models import chosen_model
from vstream.prompts import prompts_for
from vstream.replaying import replay_file
from vstream.session import StreamSession
from vstream.speaking import add_stream_flags, checked_until, unasked_config, watched
from vstream.watches import Alert, Watches, WatchRules, Webhook, decision_row, parse_condition
from vstream.written import TextFile, check_apart


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    rules = WatchRules()
    add_stream_flags(parser)
    parser.add_argument("--when", action="append", required=True, metavar="WORDS", help='"a red circle appears"; repeatable')
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
    config = unasked_config(args)
    rules = WatchRules(args.threshold, args.cooldown, args.confirm, args.of, args.once, args.expires)
    for words in args.when:
        parse_condition(words)
    until = checked_until(args.until)
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
                for _ in watched(session, source, until):
                    _keep_log(watches, log, began)
                    if not watches.active and not session.writes:
                        sys.stderr.write("no watch is left: each has fired once, or expired\n")
                        break
            finally:
                _keep_log(watches, log, began)
        warn(source)
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


def _tell(alert: Alert, as_json: bool, hook: Webhook | None) -> None:
    if hook:
        hook.send(alert)
    line = json.dumps(alert.row()) if as_json else f"{alert.fired_at_seconds:8.1f} s  {alert.text}  ({alert.score:.2f})"
    print(line, flush=True)
