"""What each command of `python -m vstream` does. Answers go to stdout, progress and warnings to stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
from importlib.metadata import version

from data.command_line import USAGE_ERROR
from data.errors import ConfigError, QuestionError
from data.sources import Source, open_source
from data.sources.doctor import check
from memory import open_memory
from vstream import batch as batch_
from vstream.answer import Answer, answer_fields, checked_question
from vstream.config import SessionConfig
from vstream.model_report import model_rows
from vstream.models import chosen_model, chosen_settings
from vstream.progress import Progress
from vstream.recorded import Reel
from vstream.remembered import memory_folder, stored_settings
from vstream.session import StreamSession


def ask(args: argparse.Namespace) -> int:
    """Watch the source up to `--at` and answer one question; or answer it from a stored memory."""
    question = checked_question(args.question)
    stored = memory_folder(args.source)
    if stored is not None and args.memory is not None:
        raise ConfigError(f"{args.source} is a memory already; leave --memory out")
    config = chosen_settings(args, stored_settings(stored or args.memory))
    at = check_time(args.at)
    if stored is not None:
        # Opened before the model is loaded: what is no memory is told at once.
        open_memory(stored).close()
        adapter = chosen_model(args).load(config.gpu_bytes)
        with StreamSession.open(adapter, stored, config) as session:
            print_answer(session.answer(question, at), session, args.json)
        return 0
    with open_source(args.source, allow_private_hosts=args.allow_private_hosts) as source:
        adapter = chosen_model(args).load(config.gpu_bytes)
        with StreamSession(adapter, config, memory=args.memory) as session:
            if at is None or at > session.now_seconds or not session.has_seen:
                watch(session, source, until(source, config, at), from_start=at is not None)
            answer = session.answer(question, at)
            warn(source)
            print_answer(answer, session, args.json)
    return 0


def check_time(at: float | None) -> float | None:
    """`at`, if it can be a time of a stream. Raises QuestionError."""
    if at is not None and not 0 <= at < math.inf:
        where = "before the start" if at < 0 else "no time"
        raise QuestionError(f"{at:g} s is {where}; ask for a time from 0 s on")
    return at


def until(source: Source, config: SessionConfig, at: float | None) -> float:
    """How far to watch: to `at`; else to the end, or one window of a stream that has none."""
    if at is not None:
        return at
    endless = source.info.live and source.info.duration_seconds is None
    if endless:
        sys.stderr.write(
            f"this stream has no end: answering after {config.window_seconds:g} s of it; --at SECONDS watches longer\n"
        )
    return config.window_seconds if endless else math.inf


def watch(session: StreamSession, source: Source, end: float, from_start: bool = True) -> None:
    """Feed the session, with a progress bar, up to stream time `end`, which counts from the start of the memory, or else
    from where the source joins it."""
    joined = session.join(source.info.label, source.recording_key, source.place_key)
    if joined.words:
        sys.stderr.write(f"{joined.words}\n")
    end = end if from_start else end + joined.offset_seconds + joined.start_seconds
    total = end if math.isfinite(end) else source.info.duration_seconds
    frames = source.frames(session.config.fps, joined.start_seconds)
    with Progress("watching", total) as progress:
        Reel(session, frames, lambda: source.waits).watch_until(end, progress.update)


def warn(source: Source) -> None:
    """Say what was wrong with a source that could be watched."""
    for warning in source.stats.warnings:
        sys.stderr.write(f"warning: {warning}\n")


def answer_row(answer: Answer, session: StreamSession) -> dict[str, object]:
    """The object that `--json` prints."""
    num_seen, num_kept = session.num_visual_tokens()
    return {
        **answer_fields(answer),
        "num_seen_tokens": num_seen,
        "num_kept_tokens": num_kept,
        "model": session.adapter.info.name,
    }


def print_answer(answer: Answer, session: StreamSession, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer_row(answer, session)))
        return
    print(answer.text)
    for e in answer.evidence:
        print(f"  [{e.start_seconds:.0f}–{e.end_seconds:.0f} s] score {e.score:.2f}, from {e.tier}")


def batch(args: argparse.Namespace) -> int:
    """Answer a table of questions; bad rows are told in the output and stop nothing."""
    job = batch_.Job(chosen_model(args), chosen_settings(args), args.memory, args.allow_private_hosts)
    failed, total = batch_.run(args.questions, args.out, job, args.workers, args.limit)
    sys.stderr.write(f"{total - failed} of {total} rows answered, in {args.out}\n")
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Print what works on this machine, one line each; with --model, what the model is and needs."""
    import torch

    from retrieval.index import kind_of_index

    rows = [
        ("python", True, sys.version.split()[0]),
        ("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("transformers", True, version("transformers")),
        (
            "cuda",
            torch.cuda.is_available(),
            torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: runs on the CPU",
        ),
        ("index", True, kind_of_index().kind),
        *check(),
    ]
    rows += model_rows(chosen_model(args), chosen_settings(args))
    for name, works, detail in rows:
        print(f"{'ok ' if works else '-- '} {name:<18} {detail}")
    unusable = [detail for name, works, detail in rows if name == "model" and not works]
    for detail in unusable:
        sys.stderr.write(f"vstream doctor: {detail}\n")
    return USAGE_ERROR if unusable else 0
