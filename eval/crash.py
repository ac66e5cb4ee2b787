"""Killing the writer: what SIGKILL at any moment leaves of a stored memory, compared with what was written.

A child process ingests chunks made from a seed and is killed: at every marked point of commit, thinning, merge and forgetting,
in turn and at random moments. After each kill the folder is opened again and everything in it is compared with the seed: chunks
bit by bit, records, what the writer had acknowledged, what was forgotten, the files, and the hits of a retriever over it with
those of one over an uninterrupted run. A share of the kills hits a whole session over the synthetic world instead, whose
answers are compared with those of a session that was never killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from eval.crash_check import Tally
from eval.crash_victims import Attempt, Banks, Sessions, Victims
from eval.flags import SEED, whole
from eval.report import table, write_json
from vstream.models import chosen_model
from vstream.progress import Progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=whole(1), default=50, help="how often to kill")
    parser.add_argument(
        "--sessions", type=whole(0), default=None, help="how many of them hit a whole session; default: one in fifty"
    )
    parser.add_argument("--shuffle", type=SEED, default=0, metavar="SEED", help="seed of chunks and moments")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Kill, check, print; returns the result as JSON-ready values."""
    # What every opening finds is counted; a thousand warnings would say no more.
    logging.getLogger("memory").setLevel(logging.ERROR)
    num_sessions = args.kills // 50 if args.sessions is None else args.sessions
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vstream-crash-") as place:
        tally = Tally()
        kill(Banks(Path(place), args.shuffle, tally), args.kills - num_sessions, tally)
        if num_sessions:
            kill(Sessions(Path(place), args.shuffle, tally, chosen_model(args).load()), num_sessions, tally)
    result = {
        "num_kills": tally.kills.total(),
        "kills": dict(tally.kills),
        "num_chunks_checked": tally.num_chunks_checked,
        "num_torn_tails": tally.num_torn_tails,
        "num_thinned": tally.num_thinned,
        "num_gone": tally.num_gone,
        "num_finished_forgettings": tally.num_finished_forgettings,
        "num_failures": len(tally.failures),
        "failures": tally.failures,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(table(["killed at", "kills"], sorted(tally.kills.items())))
    print(
        f"\n{result['num_kills']} kills, {result['num_chunks_checked']} chunks compared bit by bit,"
        f" {result['num_torn_tails']} torn tails dropped, {result['num_finished_forgettings']} forgettings finished:"
        f" {result['num_failures']} failures"
    )
    for failure in tally.failures:
        print(f"FAILED {failure}")
    write_json(args.json, "crash", result)
    return result


def kill(victims: Victims, num_kills: int, tally: Tally) -> Tally:
    """Kill so many children of one kind."""
    with Progress("killing", num_kills, "kills") as progress:
        done = 0
        while done < num_kills:
            attempt, started = victims.attempt(done), time.perf_counter()
            killed = _killed(attempt)
            victims.settle(attempt, done, killed, time.perf_counter() - started)
            tally.kills[attempt.name] += killed
            done += killed
            progress.update(done)
    return tally


def _killed(attempt: Attempt) -> bool:
    """Run a child in a forked process and wait for its end, or kill it when its time has come. Whether it was killed."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reads)
        _run_child(attempt.child, writes)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        if attempt.after_seconds is not None:
            time.sleep(attempt.after_seconds)
            os.kill(process, signal.SIGKILL)
        for line in pipe:
            if line.endswith("\n"):
                attempt.known.hear(*json.loads(line))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the child ended with status {os.WEXITSTATUS(status)}; its traceback is above")
    return False


def _run_child(child: Callable[[int], None], acks: int) -> NoReturn:
    status = 1
    # Threads do not survive a fork, so the child must not count on any.
    torch.set_num_threads(1)
    try:
        child(acks)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        # Nothing of the parent's may run in the child: no exit handlers, no buffers.
        os._exit(status)
