"""Batch questions over recorded videos: one pass per video, questions in the order of their times, any row may fail alone."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch

from data.errors import QuestionError, VStreamError
from data.sources import open_source
from model_adapters.base import ModelAdapter
from vstream.answer import answer_fields
from vstream.batch_rows import Row, is_same_question, read_answers, read_questions, replace_file
from vstream.config import SessionConfig
from vstream.library import room_for, words_of
from vstream.models import ModelChoice
from vstream.progress import Progress
from vstream.recorded import Reel
from vstream.remembered import check_library, memory_folder, stored_settings
from vstream.session import StreamSession
from vstream.written import TextFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every row is answered with. folder: where each video gets a memory that stays; None: nothing is written."""

    model: ModelChoice
    config: SessionConfig
    folder: Path | None = None
    allow_private_hosts: bool = False

    @cached_property
    def hash(self) -> str:
        """Tells answers of different models and settings apart; a model by what it is, not by its name. Raises AdapterError."""
        identity = [self.model.fingerprint(), self.model.dtype, asdict(self.config)]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def run(questions: Path, out: Path, job: Job, workers: int = 1, limit: int | None = None) -> tuple[int, int]:
    """Answer all rows of `questions` into `out`. Returns (failed, total).

    Finished rows are appended as they come, so that a run that was stopped resumes; at the end the file is put into the
    order of the questions. Raises QuestionError or ConfigError where a file cannot be used at all.
    """
    if workers < 1:
        raise QuestionError(f"--workers is {workers}; give at least 1")
    if limit is not None and limit < 1:
        raise QuestionError(f"--limit is {limit}; give at least 1")
    check_library(job.folder)
    every_row = list(read_questions(questions))
    rows = every_row[:limit]
    earlier = read_answers(out, job.hash)
    done = {row["key"]: earlier[row["key"]] for row in every_row if is_same_question(row, earlier.get(row["key"]))}
    open_rows = [row for row in rows if row["key"] not in done]
    if out.exists():
        # Without the torn line that a stopped run may have left: what is appended now must begin a line.
        replace_file(out, done.values())
    if open_rows:
        _adapter(job.model, job.config.gpu_bytes)  # a model that cannot be loaded is no fault of the rows
    with Progress("answering", len(rows), "rows") as progress, TextFile(out, "--out", "a") as file:
        for answer in _answers(open_rows, job, workers):
            done[answer["key"]] = answer
            file.write(json.dumps(answer) + "\n")
            progress.update(len(done))
    replace_file(out, [done[row["key"]] for row in every_row if row["key"] in done])
    return sum("error" in done[row["key"]] for row in rows), len(rows)


def _answers(rows: list[Row], job: Job, workers: int) -> Iterator[Row]:
    for row in rows:
        if "error" in row:
            yield _finished(row, job, {"answer": None, "error": row["error"]})
    videos: dict[str, list[Row]] = {}
    for row in rows:
        if "error" not in row:
            videos.setdefault(row["video"], []).append(row)
    if workers == 1 or len(videos) < 2:
        for video, asked in videos.items():
            yield from answer_video(video, asked, job)
        return
    # It could be loaded, and that is all that this process needs to know of it.
    _adapter.cache_clear()
    if job.model.threads is None:
        # Where they share the cores, each has its own.
        job = replace(job, model=replace(job.model, threads=max(1, torch.get_num_threads() // min(workers, len(videos)))))
    with ProcessPoolExecutor(min(workers, len(videos)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_answered_video, video, asked, job) for video, asked in videos.items()]
        for future in as_completed(futures):
            yield from future.result()


def _answered_video(video: str, rows: list[Row], job: Job) -> list[Row]:
    return list(answer_video(video, rows, job))


@lru_cache(maxsize=1)
def _adapter(model: ModelChoice, kv_bytes: int) -> ModelAdapter:
    """One model per process, loaded at its first row."""
    return model.load(kv_bytes)


def answer_video(video: str, rows: list[Row], job: Job) -> Iterator[Row]:
    """Answer all questions about one video in one pass. A failure is told in the rows that it concerns."""
    waiting = sorted(rows, key=lambda row: math.inf if row.get("at") is None else row["at"])
    stored = memory_folder(video)
    try:
        adapter = _adapter(job.model, job.config.gpu_bytes)
        with ExitStack() as opened:
            if stored is not None:
                config = job.config.replace(**stored_settings(stored))
                session, source = opened.enter_context(StreamSession.open(adapter, stored, config)), None
                watch_until: Callable[[float], None] = nothing_to_watch
            else:
                source = opened.enter_context(open_source(video, allow_private_hosts=job.allow_private_hosts))
                folder = _remembered_in(job, video) if job.folder else None
                session = opened.enter_context(StreamSession(adapter, job.config, memory=folder))
                joined = session.join(source.info.label, source.recording_key, source.place_key)
                frames = source.frames(job.config.fps, joined.start_seconds)
                watch_until = Reel(session, frames, lambda: source.waits).watch_until
            while waiting:
                row = waiting[0]
                at = row.get("at")
                watch_until(math.inf if at is None else at)
                answer = _answered(session, row, at)
                if source and source.stats.warnings:
                    answer["warnings"] = list(source.stats.warnings)
                waiting.pop(0)
                yield _finished(row, job, answer)
    except VStreamError as error:
        for row in waiting:
            yield _finished(row, job, {"answer": None, "error": str(error)})


def _remembered_in(job: Job, video: str) -> Path:
    """The memory of a video, after others have made room for it."""
    assert job.folder is not None
    folder = memory_of(job.folder, video)
    for one in room_for(job.folder, job.config, {folder}).gave_way if job.folder.exists() else []:
        logger.warning("%s", words_of(one, job.config))
    return folder


def nothing_to_watch(seconds: float) -> None:
    """A stored memory is as it is."""


def memory_of(library: Path, video: str) -> Path:
    """Each video has a memory of its own in the library, the same one in every run."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(video).stem).strip("-")[:40]
    return library / f"{name}-{hashlib.sha256(video.encode()).hexdigest()[:8]}"


def _answered(session: StreamSession, row: Row, at: float | None) -> Row:
    try:
        if row.get("options"):
            answer, choice = session.choose(row["question"], row["options"], at)
            extra = {"choice": choice}
        else:
            answer, extra = session.answer(row["question"], at), {}
    except QuestionError as error:
        return {"answer": None, "error": str(error)}
    return {**answer_fields(answer), **extra}


def _finished(row: Row, job: Job, answer: Row) -> Row:
    kept: Row = {name: row[name] for name in ("id", "video", "question", "at", "options", "key") if name in row}
    return {**kept, **answer, "model": job.model.model, "config": job.hash}
