"""`python -m vstream memory ls | info | verify | forget | export | delete`: stored memories from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import MemoryBankError, VStreamError
from memory.database import REBUILD
from memory.exports import export_copy, export_table
from memory.library import Description, delete, describe, memories, verify
from memory.opening import open_memory
from memory.rebuild import rebuild
from memory.room import is_pinned, pin
from memory.upkeep import forget_span
from vstream.remembered import memory_folder
from vstream.ui.text import seconds_of

DAMAGED = 1
"""Exit code of `verify` for a memory that is not whole."""


def add_memory_commands(parser: argparse.ArgumentParser, parser_class: type[argparse.ArgumentParser]) -> None:
    actions = parser.add_subparsers(dest="action", required=True, parser_class=parser_class)
    for name, words, run in (
        ("ls", "list the memories in a folder", ls),
        ("info", "what a memory holds", info),
        ("verify", "read everything in a memory and check it; exit code 1 if something is damaged", check),
        ("rebuild", "make a lost or damaged manifest anew from what is good; says what is lost", mend),
        ("forget", "really remove a span of the stream", forget),
        ("export", "copy a memory to a new folder, or its timeline to a .jsonl file", export),
        ("pin", "never let a memory give way when a library is full", fix),
        ("unpin", "let it give way again", fix),
        ("delete", "delete a whole memory", remove),
    ):
        action = actions.add_parser(name, help=words)
        action.add_argument(
            "folder", type=_folder, metavar="DIR", help="the memory's folder" if name != "ls" else "a folder of memories"
        )
        if name == "forget":
            action.add_argument("start", type=_seconds, metavar="FROM", help="stream time, as seconds or 0:02:14")
            action.add_argument("end", type=_seconds, metavar="TO", help="stream time, as seconds or 0:02:20")
        if name == "export":
            action.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a file that ends in .jsonl")
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run)


def _folder(text: str) -> Path:
    """A folder, also if it is written as where other commands take a source: memory:DIR."""
    return memory_folder(text) or Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = seconds_of(text)
    except VStreamError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if seconds is None:
        raise argparse.ArgumentTypeError("the time is empty; write seconds like 134, or 0:02:14")
    return seconds


def ls(args: argparse.Namespace) -> int:
    rows = [_listed(folder) for folder in memories(args.folder)]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        if "error" in row:
            print(f"{row['folder']}  {row['error']}")
        else:
            print(
                f"{row['folder']}  {_clock(row['start_seconds'])}–{_clock(row['end_seconds'])}  {row['num_stored']} chunks"
                f"  {_mib(row['num_bytes'])}  {row['model']}  {row['source']}{'  pinned' if row['pinned'] else ''}"
            )
    if not rows:
        sys.stderr.write(f"there are no memories in {args.folder}\n")
    return 0


def info(args: argparse.Namespace) -> int:
    found = describe(args.folder)
    if args.json:
        more = {"gaps": [asdict(gap) for gap in found.gaps], "sittings": [asdict(sitting) for sitting in found.sittings]}
        print(json.dumps(_row(found) | more | {"num_thinned": found.num_thinned}))
        return 0
    model, name = found.identity.model, found.identity.name
    span = f"{_clock(found.start_seconds)}–{_clock(found.end_seconds)}"
    dropped = 1 - found.num_kept_tokens / max(1, found.num_seen_tokens)
    print(f"stream    {span}, {found.num_chunks} chunks, {found.num_stored} with KV")
    print(f"tokens    {found.num_kept_tokens} kept of {found.num_seen_tokens} seen ({100 * dropped:.0f} % dropped)")
    if found.num_thinned:
        steps = ", ".join(f"{num} chunks {step}×" for step, num in found.num_thinned.items())
        print(f"thinned   {steps}, to fit the budget on disk")
    print(f"size      {_mib(found.num_bytes)} in {found.num_segments} segments, format version {found.format_version}")
    if is_pinned(args.folder):
        print("pinned    it never gives way to other memories")
    print(f"model     {name}: {model['family']}, {model['dtype']}, fingerprint {model['fingerprint']}")
    print(f"settings  {', '.join(f'{setting}={value}' for setting, value in found.identity.settings.items())}")
    for sitting in found.sittings:
        print(f"sitting   from {_clock(sitting.start_seconds)}, {_date(sitting.started_unix)}, {sitting.source}")
    for gap in found.gaps:
        pause = f", {gap.pause_seconds:.0f} s by the clock" if gap.reason == "paused" else ""
        print(f"gap       {_clock(gap.start_seconds)}–{_clock(gap.end_seconds)} {gap.reason}{pause}")
    return 0


def check(args: argparse.Namespace) -> int:
    verdict = verify(args.folder)
    if args.json:
        print(json.dumps(asdict(verdict) | {"whole": verdict.whole}))
    else:
        print(f"{verdict.num_good} of {verdict.num_chunks} chunks are as they were written")
        if verdict.num_without_kv:
            print(f"{verdict.num_without_kv} chunks have no KV any more, only their time and picture")
        for chunk_id, wrong in verdict.damaged.items():
            print(f"damaged   chunk {chunk_id}: {wrong}")
        for name in verdict.missing:
            print(f"missing   {name}")
        for name in verdict.foreign:
            print(f"foreign   {name} is no part of the memory; it is left alone")
        for problem in verdict.problems:
            print(f"problem   {problem}")
        if not verdict.whole:
            print(f"what is good is read as before; {REBUILD.format(folder=args.folder)}")
    return 0 if verdict.whole else DAMAGED


def mend(args: argparse.Namespace) -> int:
    found = rebuild(args.folder)
    if args.json:
        print(json.dumps(asdict(found)))
        return 0
    known = f"{found.num_new} of them were lost to the old manifest" if found.num_new else "all known to the old manifest"
    print(f"{found.num_chunks} chunks are there, {known}")
    if found.num_bare:
        print(f"{found.num_bare} chunks have lost their pictures")
    for words in found.lost:
        print(f"lost      {words}")
    return 0


def forget(args: argparse.Namespace) -> int:
    memory = open_memory(args.folder, write=True)
    try:
        ids = forget_span(memory, args.start, args.end)
        totals, notices = memory.manifest.totals(), list(memory.notices)
    finally:
        memory.close()
    for notice in notices:
        sys.stderr.write(f"{notice}\n")
    words = f"{len(ids)} chunks are forgotten"
    if not ids:
        words = f"nothing is remembered there; the memory holds {_clock(totals['start'])}–{_clock(totals['end'])}"
    print(json.dumps({"forgotten": ids}) if args.json else words)
    return 0


def export(args: argparse.Namespace) -> int:
    if args.out.suffix == ".jsonl":
        num = export_table(args.folder, args.out)
        print(json.dumps({"num_chunks": num}) if args.json else f"{num} chunks written to {args.out}")
    else:
        num = export_copy(args.folder, args.out)
        print(json.dumps({"num_bytes": num}) if args.json else f"{_mib(num)} copied to {args.out}")
    return 0


def fix(args: argparse.Namespace) -> int:
    pin(args.folder, args.action == "pin")
    print(json.dumps({"pinned": is_pinned(args.folder)}) if args.json else f"{args.folder} is {args.action}ned")
    return 0


def remove(args: argparse.Namespace) -> int:
    foreign = delete(args.folder)
    if args.json:
        print(json.dumps({"deleted": str(args.folder), "foreign": foreign}))
    else:
        print(f"{args.folder} is deleted" + (f"; {len(foreign)} foreign files stay" if foreign else ""))
    return 0


def _listed(folder: Path) -> dict[str, Any]:
    try:
        return _row(describe(folder))
    except MemoryBankError as error:
        return {"folder": str(folder), "error": str(error)}


def _row(found: Description) -> dict[str, Any]:
    source = found.sittings[-1].source if found.sittings else ""
    more = {"folder": str(found.folder), "model": found.identity.name, "source": source, "pinned": is_pinned(found.folder)}
    row = asdict(found) | more
    return {name: value for name, value in row.items() if name not in ("gaps", "sittings")}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _date(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
