"""What happens when something on the page is used. Every handler finds its own tab by the page's session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np

from data.errors import MemoryBankError, QuestionError, VStreamError
from vstream.answer import checked_question
from vstream.ui.chips import chips_html, merged
from vstream.ui.dialogue import Exchange, messages
from vstream.ui.refresh import fresh, timeline_of
from vstream.ui.stage import Snapshot, notice_html, stage_html
from vstream.ui.studio import PageError, Studio
from vstream.ui.tab import Tab
from vstream.ui.text import seconds_of

Updates = tuple[Any, ...]


class Handlers:
    """One studio's handlers; they hold nothing of a page themselves."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def open(self, request: gr.Request) -> Updates:
        """The page was loaded. Returns the notice, the pieces, the chat and the chips."""
        key = key_of(request)

        def begin() -> None:
            self.studio.open(key)
            self.studio.start_first(key)

        return self.start(key, begin)

    def start_demo(self, seed: float | None, speed: float, request: gr.Request) -> Updates:
        key = key_of(request)
        return self.start(key, lambda: self.studio.start_demo(key, seed, speed))

    def start_url(self, url: str, request: gr.Request) -> Updates:
        key = key_of(request)
        return self.start(key, lambda: self.studio.start_url(key, url))

    def start_upload(self, path: str | None, request: gr.Request) -> Updates:
        key = key_of(request)
        if not path:
            return (notice_html("choose a video file first"), *self._unchanged(5))
        return self.start(key, lambda: self.studio.start_upload(key, path))

    def start(self, key: str, begin: Callable[[], None]) -> Updates:
        """Start a stream; an error leaves what runs as it is and is shown in words."""
        try:
            begin()
            tab = self.studio.tab(key)
        except VStreamError as error:
            return (notice_html(str(error)), *self._unchanged(5))
        note = notice_html(tab.before.note, "info") if tab.before.note else ""
        return (note, *self._pieces(tab), messages(tab.dialogue), chips_html([], tab.thumbnail))

    def camera(self, picture: np.ndarray | None, request: gr.Request) -> Any:
        """A frame of the page's camera. Returns the notice."""
        if picture is None:
            return gr.skip()
        try:
            self.studio.tab(key_of(request)).push(picture)
        except VStreamError as error:
            return notice_html(str(error))
        return gr.skip()

    def stop_stream(self, request: gr.Request) -> Updates:
        try:
            tab = self.studio.tab(key_of(request))
        except PageError as error:
            return (notice_html(str(error)), *self._unchanged(3))
        tab.stop()
        return ("", *self._pieces(tab))

    def tick(self, request: gr.Request) -> Updates:
        """Returns the pieces; those that the page shows already are skipped."""
        try:
            tab = self.studio.tab(key_of(request))
        except PageError:
            return (stage_html(Snapshot("closed"), None), gr.skip(), gr.skip())
        session = tab.session
        try:
            return self._pieces(tab)
        except MemoryBankError:
            # The stream was ended while it was looked at: the next refresh shows what there is then.
            if tab.session is session:
                raise
            return self._unchanged(3)

    def look_at(self, event: gr.EventData, request: gr.Request) -> Updates:
        """A chip or a bar was chosen. Returns the notice, the pieces, the player and the button back."""
        try:
            tab = self.studio.tab(key_of(request))
            seconds = tab.look_at(_chunk_of(event))
        except VStreamError as error:
            return (notice_html(str(error)), *self._unchanged(5))
        player = gr.update(playback_position=seconds) if tab.is_upload else gr.skip()
        return ("", *self._pieces(tab), player, gr.update(interactive=True))

    def look_live(self, request: gr.Request) -> Updates:
        try:
            tab = self.studio.tab(key_of(request))
        except PageError as error:
            return (notice_html(str(error)), *self._unchanged(4))
        tab.look_live()
        return ("", *self._pieces(tab), gr.update(interactive=False))

    def ask(self, question: str, at: str, with_dialogue: bool, request: gr.Request) -> Iterator[Updates]:
        """Yields the chat, the chips, the timeline, the question box, and the Ask and Stop buttons."""
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        try:
            tab = self.studio.tab(key_of(request))
            question, seconds = checked_question(question), seconds_of(at)
        except VStreamError as error:
            yield (*self._unchanged(1), notice_html(str(error)), *self._unchanged(2), *idle)
            return
        dialogue, index = tab.dialogue, len(tab.dialogue)
        dialogue.append(Exchange(question))
        tab.shown = index
        yield (
            messages(dialogue),
            chips_html([], tab.thumbnail, "Looking for the moments…"),
            gr.skip(),
            "",
            gr.update(interactive=False),
            gr.update(interactive=True),
        )
        answer = None
        try:
            for answer in tab.ask(question, seconds, with_dialogue):
                first = dialogue[index].answer is None
                dialogue[index] = Exchange(question, answer)
                if first:
                    yield (messages(dialogue), *self._evidence_of(tab, index, dialogue[index]), *self._unchanged(3))
                elif not answer.done:
                    yield (messages(dialogue), *self._unchanged(5))
            if answer and not answer.done:
                dialogue[index] = Exchange(question, answer, stopped=True)
        except VStreamError as error:
            dialogue[index] = Exchange(question, answer, error=str(error))
        if tab.dialogue is not dialogue:
            # A new stream was started or the conversation was cleared meanwhile: this answer belongs to neither.
            yield (messages(tab.dialogue), *self._unchanged(3), *idle)
            return
        yield (messages(dialogue), *self._evidence_of(tab, index, dialogue[index]), gr.skip(), *idle)

    def stop_answer(self, request: gr.Request) -> None:
        try:
            self.studio.tab(key_of(request)).cancel()
        except PageError:
            return  # Nothing is being written on a page that has gone.

    def clear(self, request: gr.Request) -> Updates:
        """The conversation was thrown away. Returns the empty chips and the timeline without marks."""
        try:
            tab = self.studio.tab(key_of(request))
        except PageError:
            return self._unchanged(2)
        tab.cancel()
        # A new list: an answer that is being written ends in the old one.
        tab.dialogue, tab.marked = [], frozenset()
        return chips_html([], tab.thumbnail), timeline_of(tab)

    def show_answer(self, event: gr.SelectData, request: gr.Request) -> Updates:
        """An earlier message was chosen. Returns its chips and the timeline with its marks."""
        try:
            tab = self.studio.tab(key_of(request))
            index = _message_of(event) // 2
            exchange = tab.dialogue[index]
        except (VStreamError, IndexError):
            return self._unchanged(2)
        tab.shown = index
        return self._evidence(tab, exchange)

    def close(self, request: gr.Request) -> None:
        """The page was closed or reloaded."""
        self.studio.close(key_of(request))

    def _pieces(self, tab: Tab) -> Updates:
        pieces = fresh(tab)
        return tuple(pieces.get(name, gr.skip()) for name in ("stage", "telemetry", "timeline"))

    def _evidence_of(self, tab: Tab, index: int, exchange: Exchange) -> Updates:
        """The evidence of an answer that is being written, unless an earlier one is being looked at meanwhile."""
        return self._evidence(tab, exchange) if tab.shown == index else self._unchanged(2)

    def _evidence(self, tab: Tab, exchange: Exchange) -> Updates:
        """The chips of an answer, and the timeline with its chunks marked."""
        evidence = tab.evidence(exchange)
        tab.marked = frozenset(moment.chunk_id for moment in evidence)
        return chips_html(merged(evidence), tab.thumbnail, exchange.note), timeline_of(tab)

    def _unchanged(self, num: int) -> Updates:
        return tuple(gr.skip() for _ in range(num))


def key_of(request: gr.Request) -> str:
    """Which page asks. Raises PageError."""
    if not request.session_hash:
        raise PageError("this page has no session; reload it")
    return request.session_hash


def _chunk_of(event: gr.EventData) -> int:
    """The chunk that a click names; what a browser sends is not trusted to be a number."""
    try:
        return int(event._data["chunk"])
    except (KeyError, TypeError, ValueError) as error:
        raise QuestionError("this is not a moment of the stream; choose another one") from error


def _message_of(event: gr.SelectData) -> int:
    index = event.index[0] if isinstance(event.index, list | tuple) else event.index
    return index if isinstance(index, int) and index >= 0 else 10**9
