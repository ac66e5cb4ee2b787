"""Segments: safetensors files of chunks, one uint8 tensor per chunk, named by its id, so that a chunk is one read.

A segment describes itself: its metadata holds each chunk's layout and checksum. It is never written into again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from data.errors import MemoryBankError
from memory.files import Fault, no_fault, write_whole
from memory.layout import PackedChunk
from memory.reading import Take, fresh

SEGMENT_NAME = re.compile(r"segment-\d{8,}\.safetensors")
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""
MAX_BLOCKS_PER_READ = 512
"""Below what every system allows for one scattered read."""


@dataclass(frozen=True)
class Place:
    """Where a chunk's block lies in its segment, in bytes from the start of the file."""

    offset: int
    num_bytes: int


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:08d}.safetensors"


def segments_in(folder: Path) -> dict[int, Path]:
    """The segments that are there, by number. Files that are only called alike, such as copies, are none."""
    found = [path for path in folder.iterdir() if SEGMENT_NAME.fullmatch(path.name) and path.is_file()]
    return {int(path.stem.partition("-")[2]): path for path in sorted(found)}


def write_segment(
    path: Path, chunks: Mapping[int, PackedChunk], fault: Fault = no_fault, labels: Mapping[str, str] | None = None
) -> tuple[int, dict[int, Place]]:
    """A new segment, whole and durable. Returns its size in bytes and where each chunk lies. OSError if that fails.

    labels: more of what it says of itself, see `memory.labels`.
    """
    about = {str(i): json.dumps([packed.layout, packed.crc32]) for i, packed in chunks.items()}
    content = save({str(i): packed.data for i, packed in chunks.items()}, {**about, **(labels or {})})
    header_bytes = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + header_bytes])
    places = {}
    for chunk_id in chunks:
        start, end = header[str(chunk_id)]["data_offsets"]
        places[chunk_id] = Place(LENGTH_BYTES + header_bytes + start, end - start)
    write_whole(path, content, fault, "segment")
    return len(content), places


@dataclass(frozen=True)
class Contents:
    """What a segment says that it holds: places, and layout with checksum, by chunk; and its labels."""

    num_bytes: int
    places: dict[int, Place]
    heads: dict[int, tuple[str, int]]
    labels: dict[str, str]


def read_contents(path: Path) -> Contents:
    """The header of a segment. MemoryBankError if it cannot be read as one."""
    try:
        with path.open("rb") as file:
            num_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if header_bytes > num_bytes:
                raise ValueError("its header is cut short")
            header = json.loads(file.read(header_bytes))
        about = header.pop("__metadata__", {})
        start = LENGTH_BYTES + header_bytes
        places = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            if not 0 <= first <= last <= num_bytes - start:
                raise ValueError("it is too short")
            places[int(name)] = Place(start + first, last - first)
        heads = {i: _head(about[str(i)]) for i in places}
    except OSError as error:
        raise MemoryBankError(f"{path.name} cannot be read: {error.strerror}; its chunks are left out") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MemoryBankError(f"{path.name} is damaged: {error}; its chunks are left out") from error
    labels = {name: str(value) for name, value in about.items() if not name.isdigit()}
    return Contents(num_bytes, places, heads, labels)


def _head(text: str) -> tuple[str, int]:
    layout, crc32 = json.loads(text)
    if not isinstance(layout, str) or not isinstance(crc32, int):
        raise ValueError("it does not say how its chunks are laid out")
    return layout, crc32


def read_block(path: Path, place: Place) -> torch.Tensor:
    """uint8 [num_bytes]: one chunk's block in one read, not verified. MemoryBankError if the file does not hold it."""
    return read_blocks(path, [place])[0]


def read_blocks(path: Path, places: Sequence[Place], take: Take = fresh) -> list[torch.Tensor]:
    """The blocks of several chunks of one segment, in the order of `places`, read into what `take` gives; blocks that lie side
    by side are one read.

    Not verified. MemoryBankError if the file does not hold them all.
    """
    blocks = [take(place.num_bytes) for place in places]
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            for run in _runs(places):
                views = [blocks[i].numpy().data for i in run]
                num_bytes = sum(places[i].num_bytes for i in run)
                if os.preadv(handle, views, places[run[0]].offset) < num_bytes:
                    # Cut short, by a signal or by the end of the file: each by itself, as far as it takes.
                    for i in run:
                        _fill(handle, blocks[i], places[i].offset, path)
        finally:
            os.close(handle)
    except OSError as error:
        raise MemoryBankError(f"{path.name} cannot be read: {error.strerror}; its chunks are left out") from error
    return blocks


def announce_blocks(path: Path, places: Sequence[Place]) -> None:
    """Have the system, where it can, read blocks into its cache in the background. What cannot be read is for who reads it to
    find out."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            for run in _runs(places):
                start, end = places[run[0]].offset, places[run[-1]].offset + places[run[-1]].num_bytes
                os.posix_fadvise(handle, start, end - start, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


def _runs(places: Sequence[Place]) -> Iterator[list[int]]:
    """Numbers of places by offset, those that lie side by side together, as many as one read takes."""
    run: list[int] = []
    for i in sorted(range(len(places)), key=lambda i: places[i].offset):
        if run and (places[run[-1]].offset + places[run[-1]].num_bytes != places[i].offset or len(run) == MAX_BLOCKS_PER_READ):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _fill(handle: int, block: torch.Tensor, offset: int, path: Path) -> None:
    view, at = block.numpy().data, 0
    while at < len(view):
        num_read = os.preadv(handle, [view[at:]], offset + at)
        if num_read == 0:
            raise MemoryBankError(f"{path.name} is too short; its chunks are left out")
        at += num_read
