"""The tabs Watches and Commentary: their layout, and what happens when something in them is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from data.errors import QuestionError, VStreamError, WatchError
from vstream.captions import FORMATS, write_captions
from vstream.commentary import STYLES, NarrationRules
from vstream.session import StreamSession
from vstream.ui.speech import log_html, utterances_html, watches_html
from vstream.ui.stage import notice_html
from vstream.ui.studio import PageError, Studio
from vstream.ui.tab import Tab
from vstream.watches import WatchRules, Webhook

Updates = tuple[Any, ...]
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
REFRESH_SECONDS = 1.0
FORMAT_NAMES = [("WebVTT", "vtt"), ("SubRip", "srt"), ("JSON lines", "jsonl"), ("Markdown", "md")]


class UnaskedHandlers:
    """One studio's handlers for what is said unasked."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def watch(
        self,
        words: str,
        cooldown: float | None,
        once: bool,
        url: str,
        threshold: float | None,
        confirm: int | None,
        of: int | None,
        expires: float | None,
        request: gr.Request,
    ) -> Updates:
        """A watch was set. url: where its alerts are posted too; empty: nowhere. The numbers: see `WatchRules`. Returns the
        notice, the watches, the log and the emptied box."""

        def begin(session: StreamSession) -> None:
            for name, value, hint in (("cooldown", cooldown, "seconds, 0 for none"), ("threshold", threshold, "0.5, or so")):
                if value is None:
                    raise WatchError(f"the {name} is empty; give {hint}")
            assert cooldown is not None and threshold is not None
            # A number that is left empty comes from the browser as 0.
            rules = WatchRules(threshold, cooldown, confirm or None, of or None, once, expires or None)
            hook = Webhook(url.strip(), self.studio.webhook_hosts) if url and url.strip() else None
            session.watch(words or "", rules, hook)

        return self._changed(request, begin, "")

    def unwatch(self, number: float | None, request: gr.Request) -> Updates:
        """A watch was taken back. Returns the notice, the watches, the log and the emptied box."""
        return self._changed(request, lambda session: session.unasked.watches.remove(int(number or 0)), None)

    def _changed(self, request: gr.Request, change: Callable[[StreamSession], None], box: Any) -> Updates:
        try:
            tab = self.studio.tab(request.session_hash or "")
            change(_session(tab))
        except VStreamError as error:
            return (notice_html(str(error)), gr.skip(), gr.skip(), gr.skip())
        return ("", *_watching(tab), box)

    def narrate(self, style: str, background: str, request: gr.Request) -> str:
        """Commentary was started. Returns the notice."""
        try:
            session = _session(self.studio.tab(request.session_hash or ""))
            session.narrate(NarrationRules(style=style, background=background or ""))
        except VStreamError as error:
            return notice_html(str(error))
        if (background.strip() or style != "plain") and not session.unasked.prompts.takes_talk:
            return notice_html("This model reads no background and knows one style; it comments in its own.", "info")
        return ""

    def quiet(self, request: gr.Request) -> str:
        """Commentary was stopped. Returns the notice."""
        try:
            _session(self.studio.tab(request.session_hash or "")).unasked.quiet()
        except VStreamError as error:
            return notice_html(str(error))
        return ""

    def export(self, kind: str, request: gr.Request) -> Updates:
        """The words so far as a file. Returns the notice, the file, and the player with its subtitles."""
        try:
            tab = self.studio.tab(request.session_hash or "")
            said = list(_session(tab).unasked.utterances)
            if kind not in FORMATS or not said:
                raise QuestionError("nothing has been said yet that could be written; start the commentary, or wait")
            folder = Path(tempfile.mkdtemp(prefix="captions-", dir=os.environ.get("GRADIO_TEMP_DIR")))
            path = folder / f"commentary.{kind}"
            write_captions(path, said)
            player = gr.skip()
            if tab.is_upload:
                write_captions(folder / "subtitles.vtt", said)
                player = gr.update(subtitles=str(folder / "subtitles.vtt"))
        except VStreamError as error:
            return (notice_html(str(error)), gr.skip(), gr.skip())
        return ("", gr.update(value=str(path), visible=True), player)

    def tick(self, request: gr.Request) -> Updates:
        """Returns the watches, the log, the words, and the style and background of the commentary, as far as the page does not
        show them yet."""
        try:
            tab = self.studio.tab(request.session_hash or "")
        except PageError:
            return (gr.skip(),) * 5
        filled = _filled(tab)
        session = tab.session
        unasked = session.unasked if session else None
        problems = [hook.problem for hook in list(unasked.watches.hooks.values())] if unasked else []
        is_on = unasked is not None and unasked.commentator is not None
        key = (id(session), unasked.watches.num_decisions, unasked.num_utterances, is_on, *problems) if unasked else None
        if tab.sent.get("unasked") == key:
            return (gr.skip(), gr.skip(), gr.skip(), *filled)
        tab.sent["unasked"] = key
        return (*_watching(tab), utterances_html(unasked.utterances if unasked else (), is_on), *filled)


def build_unasked(studio: Studio, player: gr.Video, choose_chunk: str) -> gr.HTML:
    """The two tabs, inside of an open `gr.Tabs`. Returns the alerts, whose clicks name a chunk. player: of recorded files."""
    handlers = UnaskedHandlers(studio)
    with gr.Tab("Watches", id="watches"):
        notice = gr.HTML("", elem_id="watch-notice")
        words = gr.Textbox(
            label="Tell me when …", placeholder="a red circle appears", max_length=300, max_lines=1, elem_id="watch-words"
        )
        with gr.Row(elem_classes="vs-buttons"):
            cooldown = gr.Number(label="Cooldown, seconds", value=3, minimum=0, min_width=110, elem_id="watch-cooldown")
            once = gr.Checkbox(label="Once", info="It ends with its first alert", min_width=110)
            watch = gr.Button("Watch", variant="primary", min_width=90, elem_id="watch")
        url = gr.Textbox(
            label="Also post its alerts to",
            placeholder="https://…",
            info=f"Allowed: {', '.join(sorted(studio.webhook_hosts))}",
            max_length=2000,
            max_lines=1,
            visible=bool(studio.webhook_hosts),
            elem_id="watch-webhook",
        )
        rules = _more_rules()
        watching = gr.HTML(watches_html((), ()), js_on_load=choose_chunk, elem_id="watching")
        with gr.Row(elem_classes="vs-buttons"):
            number = gr.Number(label="Watch number", value=1, precision=0, minimum=1, min_width=110)
            unwatch = gr.Button("Remove", size="sm", min_width=90, elem_id="unwatch")
        gr.HTML('<p class="vs-note">Why each alert came, or did not:</p>')
        log = gr.HTML(log_html(()), elem_id="watch-log")
    with gr.Tab("Commentary", id="commentary"):
        said_notice = gr.HTML("", elem_id="said-notice")
        with gr.Row():
            style = gr.Dropdown(list(STYLES), value="plain", label="Style", filterable=False, min_width=130)
            background = gr.Textbox(
                label="What it should know", placeholder="Title, names, what matters", max_length=4000, scale=3, min_width=200
            )
        with gr.Row(elem_classes="vs-buttons"):
            narrate = gr.Button("Comment", variant="primary", min_width=90, elem_id="narrate")
            quiet = gr.Button("Be quiet", min_width=90, elem_id="quiet")
        said = gr.HTML(utterances_html(()), elem_id="said")
        with gr.Row(elem_classes="vs-buttons"):
            kind = gr.Dropdown(FORMAT_NAMES, value="vtt", label="Format", filterable=False, min_width=130)
            export = gr.Button("Export", size="sm", min_width=90, elem_id="export")
        file = gr.File(label="Commentary", visible=False, elem_id="captions")
    changed = [notice, watching, log]
    gr.on([watch.click, words.submit], handlers.watch, [words, cooldown, once, url, *rules], [*changed, words], **HIDDEN)
    unwatch.click(handlers.unwatch, number, [*changed, number], **HIDDEN)
    narrate.click(handlers.narrate, [style, background], said_notice, **HIDDEN)
    quiet.click(handlers.quiet, None, said_notice, **HIDDEN)
    export.click(handlers.export, kind, [said_notice, file, player], **HIDDEN)
    shown = [watching, log, said, style, background]
    gr.Timer(REFRESH_SECONDS).tick(handlers.tick, None, shown, queue=False, **HIDDEN)
    return watching


def _more_rules() -> list[gr.Number]:
    """What few watches need, folded away: threshold, confirming looks, out of how many, expiry. 0 leaves a rule out."""
    with gr.Accordion("More rules", open=False, elem_id="watch-rules"), gr.Row():
        return [
            gr.Number(label=label, value=value, precision=precision, info=info, min_width=130, elem_id=f"watch-{name}")
            for name, label, value, precision, info in (
                ("threshold", "Least probability", WatchRules().threshold, None, "of a yes"),
                ("confirm", "Looks that confirm", 0, 0, "0: as it fits the model"),
                ("of", "Out of so many", 0, 0, "0: as it fits the model"),
                ("expires", "Ends after, seconds", 0, None, "0: never"),
            )
        ]


def _session(tab: Tab) -> StreamSession:
    if tab.session is None:
        raise QuestionError("there is no stream yet; choose a source and start it")
    return tab.session


def _watching(tab: Tab) -> tuple[str, str]:
    """The watches with their alerts, and the log."""
    session = tab.session
    if session is None:
        return watches_html((), ()), log_html(())
    watches = session.unasked.watches
    # Copied first: the feeding thread adds to both.
    watching = watches_html(watches.active, list(watches.alerts), session.unasked.kept, dict(watches.hooks))
    return watching, log_html(list(watches.log)[-2000:])


def _filled(tab: Tab) -> Updates:
    """The style and background by which a stream that has just begun is commented on, or was before."""
    session = tab.session
    if session is None or tab.filled_for is session:
        return (gr.skip(), gr.skip())
    tab.filled_for = session
    rules = session.unasked.narration or session.unasked.suggested
    return (rules.style, rules.background) if rules else (gr.skip(), gr.skip())
