"""The tables of `python -m vstream batch`: questions, and answers so far, as JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.command_line import reading
from data.errors import QuestionError
from vstream.answer import is_text
from vstream.written import writing

Row = dict[str, Any]
NO_JSON = (ValueError, RecursionError)
"""What a line that is no JSON, or is nested beyond reason, is told by."""


def read_questions(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file. A row that cannot be used carries an `error`; QuestionError if there is no file."""
    with reading(path, "give a file of JSON lines", QuestionError):
        # Not splitlines: JSON may hold other line separators inside of its strings.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, wrong = _parsed(line)
        identity = str(row.get("id", f"line {number}"))
        key = identity
        if key in seen:
            key, wrong = f"{identity} (line {number})", wrong or "the id is used twice; give every row its own"
        seen.add(key)
        yield {**row, "id": row.get("id", identity), "key": key} | ({"error": wrong} if wrong else {})


def _parsed(line: str) -> tuple[Row, str | None]:
    try:
        row = json.loads(line)
        written = json.dumps(row, ensure_ascii=False)
    except NO_JSON as error:
        return {}, f"the line is not JSON ({error})"
    if not isinstance(row, dict):
        return {}, "the line is not a JSON object"
    if not is_text(written):
        return {}, "the line holds half of a surrogate pair, which is no text"
    for name in ("video", "question"):
        if not isinstance(row.get(name), str):
            return row, f"{name!r} is missing or no text"
    at = row.get("at")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at <= sys.float_info.max):
        return row, f"'at' is {at!r:.40}; give seconds from 0 on"
    options = row.get("options")
    if options is not None and not (
        isinstance(options, list) and len(options) > 1 and all(isinstance(o, str) and o.strip() for o in options)
    ):
        return row, "'options' is no list of at least two texts that are not empty"
    return row, None


def read_answers(out: Path, config: str) -> dict[str, Row]:
    """Answers of an earlier run, by key. config: the hash of what they must have been answered with.
    Failed rows are tried again. A torn last line is dropped."""
    done: dict[str, Row] = {}
    with reading(out, "choose another --out", QuestionError):
        try:
            lines = out.read_text().splitlines()
        except FileNotFoundError:
            return {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except NO_JSON as error:
            if number == len(lines):
                break
            raise QuestionError(f"line {number} of {out} is not JSON; delete the file or choose another --out") from error
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or row.get("config") != config:
            raise QuestionError(f"{out} holds answers of another model or other settings; delete it or choose another --out")
        if "error" not in row:
            done[row["key"]] = row
    return done


def is_same_question(row: Row, answer: Row | None) -> bool:
    """Whether `answer` is to the row as it stands now; an id may have been given to another question since."""
    return answer is not None and all(row.get(name) == answer.get(name) for name in ("video", "question", "at", "options"))


def replace_file(out: Path, rows: Iterable[Row]) -> None:
    """Write a temporary file, then rename it: a stop in between leaves the old one."""
    temporary = out.with_name(out.name + ".tmp")
    with writing(temporary, "--out"):
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, out)
