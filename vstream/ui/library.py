"""The library on the page: saved memories, opened without their source, thinned out and deleted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from data.errors import QuestionError, VStreamError
from memory.library import describe
from memory.room import is_pinned
from vstream.ui.handlers import Handlers, Updates, key_of
from vstream.ui.stage import notice_html
from vstream.ui.studio import Studio
from vstream.ui.text import clock, escaped, seconds_of, size

WITHOUT = "Streams are not remembered. Start with --memory DIR to keep them in a folder of yours; nothing is written otherwise."
WITH = "What was watched is kept in {folder}, for everybody who may open this page."


def library_parts(studio: Studio) -> dict[str, Any]:
    """The Library tab. Returns its parts by name."""
    with gr.Tab("Library", id="library") as tab:
        note = WITH.format(folder=studio.library.folder) if studio.library else WITHOUT
        gr.HTML(f'<p class="vs-note">{escaped(note)}</p>')
        parts: dict[str, Any] = {"tab": tab}
        on = studio.library is not None
        parts["usage"] = gr.HTML("", visible=on, elem_id="library-usage")
        with gr.Row(elem_classes="vs-source", visible=on):
            parts["saved"] = gr.Dropdown([], label="Saved memories", min_width=220, scale=3, elem_id="saved")
            parts["open"] = gr.Button("Open", variant="primary", min_width=90, elem_id="open-saved")
            parts["pin"] = gr.Button("Pin / unpin", min_width=110, elem_id="pin-saved")
        with gr.Row(elem_classes="vs-source", visible=on):
            parts["start"] = gr.Textbox(label="Forget from", placeholder="2:14", max_length=20, elem_id="forget-from")
            parts["end"] = gr.Textbox(label="to", placeholder="2:20", max_length=20, elem_id="forget-to")
            parts["forget"] = gr.Button("Forget this span", min_width=130, elem_id="forget")
        with gr.Row(elem_classes="vs-source", visible=on):
            parts["sure"] = gr.Checkbox(label="Yes, delete all of it", min_width=150, elem_id="sure")
            parts["delete"] = gr.Button("Delete this memory", variant="stop", min_width=130, elem_id="delete-saved")
    return parts


def wire_library(
    studio: Studio, handlers: Handlers, parts: dict[str, Any], started: Sequence[Any], options: dict[str, Any]
) -> None:
    """started: the notice, the pieces, the chat and the chips."""
    shelf = Shelf(studio, handlers)
    saved, notice = parts["saved"], started[0]
    changed = [notice, saved, parts["usage"]]
    parts["tab"].select(shelf.look, None, [saved, parts["usage"]], **options)
    parts["open"].click(shelf.open, saved, list(started), **options)
    parts["pin"].click(shelf.pin, saved, changed, **options)
    parts["forget"].click(shelf.forget, [saved, parts["start"], parts["end"]], changed, **options)
    parts["delete"].click(shelf.delete, [saved, parts["sure"]], [*changed, parts["sure"]], **options)


class Shelf:
    """The handlers of the Library tab; they hold nothing of a page themselves."""

    def __init__(self, studio: Studio, handlers: Handlers) -> None:
        self.studio = studio
        self.handlers = handlers

    def choices(self) -> Any:
        """The saved memories, newest first."""
        named = [(self._words(name), name) for name in reversed(self.studio.saved())]
        return gr.update(choices=[(words, name) for words, name in named if words])

    def look(self) -> Updates:
        """Returns the choices and the usage."""
        return self.choices(), usage_html(self.studio.library.stats() if self.studio.library else {})

    def open(self, name: str | None, request: gr.Request) -> Updates:
        """Returns the notice, the pieces, the chat and the chips."""
        key = key_of(request)
        return self.handlers.start(key, lambda: self.studio.start_saved(key, name or ""))

    def pin(self, name: str | None) -> Updates:
        """Returns the notice, the choices and the usage."""
        try:
            pinned = self.studio.pin(name or "")
        except VStreamError as error:
            return self._refused(error)
        return notice_html("it stays, whatever comes" if pinned else "it gives way when its turn comes", "done"), *self.look()

    def forget(self, name: str | None, start: str, end: str, request: gr.Request) -> Updates:
        """Returns the notice, the choices and the usage."""
        try:
            first, last = seconds_of(start), seconds_of(end)
            if first is None or last is None:
                raise QuestionError("say from when to when to forget, in seconds like 134, or 2:14")
            num, traces = self.studio.forget(key_of(request), name or "", first, last)
        except VStreamError as error:
            return self._refused(error)
        words = f"{num} chunks between {clock(first)} and {clock(last)} are forgotten"
        if traces:
            return notice_html(f"{words}; traces of them stay in the files until this memory is opened again"), *self.look()
        return notice_html(words, "done"), *self.look()

    def delete(self, name: str | None, sure: bool, request: gr.Request) -> Updates:
        """Returns the notice, the choices, the usage and the check box."""
        try:
            if not sure:
                raise QuestionError("tick the box first: what is deleted is gone")
            self.studio.delete(key_of(request), name or "")
        except VStreamError as error:
            return *self._refused(error), gr.skip()
        choices, usage = self.look()
        return notice_html("the memory is deleted", "done"), gr.update(value=None, **_choices_of(choices)), usage, False

    def _refused(self, error: VStreamError) -> Updates:
        return notice_html(str(error)), gr.skip(), gr.skip()

    def _words(self, name: str) -> str:
        """Source, start and length; empty for a memory in which nothing is stored yet."""
        try:
            folder = self.studio.saved_folder(name)
            found = describe(folder)
        except VStreamError as error:
            return f"{name}: {error}"
        if not found.num_chunks or not found.sittings:
            return ""
        first, last = found.sittings[0], found.sittings[-1]
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first.started_unix))
        pinned = " · pinned" if is_pinned(folder) else ""
        return f"{last.source} · {began} · {clock(found.end_seconds)} long · {size(found.num_bytes)}{pinned}"


def usage_html(stats: Mapping[str, Any]) -> str:
    """How full the library is, and what had to give way lately, the newest first. stats: see `Library.stats`."""
    if not stats:
        return ""
    num = stats["num_memories"]
    words = f"{num} {'memory' if num == 1 else 'memories'}, {size(stats['num_bytes'])} of {size(stats['capacity_bytes'])}."
    words += " When it is full, what was watched longest ago thins out first and is deleted in the end; pinned memories stay."
    gone = "".join(f"<li>{escaped(notice)}</li>" for notice in reversed(stats["notices"]))
    return f'<p class="vs-note">{escaped(words)}</p>' + (f'<ul class="vs-list vs-scroll">{gone}</ul>' if gone else "")


def _choices_of(update: Any) -> dict[str, Any]:
    return {"choices": update["choices"]}
