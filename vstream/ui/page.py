"""The page's layout, and which handler each part is wired to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from vstream.ui.chips import chips_html
from vstream.ui.handlers import Handlers
from vstream.ui.library import library_parts, wire_library
from vstream.ui.stage import Snapshot, stage_html, telemetry_html
from vstream.ui.studio import Studio
from vstream.ui.text import escaped
from vstream.ui.timeline import legend_html, tier_names, timeline_html
from vstream.ui.unasked import build_unasked

TITLE = "vstream"
CAMERA_NOTE = "Press record to start. Browsers give the camera to this computer and to https pages only."
PROMISE = "Watch a stream, ask about any moment of it."
CSS_FILE = Path(__file__).with_name("page.css")
REFRESH_SECONDS = 0.8
CAMERA_SECONDS = 0.25
"""Twice as often as frames are sampled by default, so that hardly a sampling slot stays empty."""
SPEEDS = [("live", 1.0), ("4 ×", 4.0), ("fastest", 0.0)]

CHOOSE_CHUNK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-chunk]');
  if (!button) return;
  trigger('click', {chunk: Number(button.dataset.chunk)});
  document.getElementById('stage')?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
});
element.addEventListener('keydown', (event) => {
  const step = {ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9}[event.key];
  const bars = [...element.querySelectorAll('.vs-bar')];
  const index = bars.indexOf(document.activeElement);
  if (!step || index < 0) return;
  event.preventDefault();
  bars[Math.min(bars.length - 1, Math.max(0, index + step))].focus();
});
"""
"""A click on a bar or a chip names its chunk; the arrow keys move along the timeline."""

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = HIDDEN | {"queue": False}
WORKING: dict[str, Any] = HIDDEN | {"concurrency_limit": None}


def build(studio: Studio) -> gr.Blocks:
    """The page over `studio`. Launch it with `vstream.ui.serve`."""
    handlers = Handlers(studio)
    names = tier_names(studio.adapter.device.type)
    model = studio.adapter.info.name.rstrip("/").rpartition("/")[2]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.HTML(f'<header class="vs-header"><h1>{TITLE}</h1><p>{PROMISE} Model: {escaped(model)}</p></header>')
        with gr.Row(equal_height=False, elem_classes="vs-columns"):
            with gr.Column(scale=5, min_width=320):
                sources = _sources(studio)
                notice = gr.HTML("", elem_id="notice")
                stage = gr.HTML(stage_html(Snapshot("opening"), None), elem_id="stage")
                with gr.Row(elem_classes="vs-buttons"):
                    stop_stream = gr.Button("Stop stream", size="sm", min_width=90, elem_id="stop-stream")
                    back = gr.Button("Back to live", size="sm", interactive=False, min_width=90, elem_id="back-to-live")
                timeline = gr.HTML(timeline_html([], names), js_on_load=CHOOSE_CHUNK, elem_id="timeline")
                gr.HTML(legend_html(names))
                telemetry = gr.HTML(telemetry_html(Snapshot(), names), elem_id="telemetry")
            with gr.Column(scale=4, min_width=320), gr.Tabs(elem_id="speech"):
                with gr.Tab("Chat", id="chat"):
                    chat = gr.Chatbot(
                        label="Conversation",
                        show_label=False,
                        elem_id="chat",
                        height=380,
                        layout="bubble",
                        render_markdown=False,
                        latex_delimiters=[],
                        buttons=[],
                        feedback_options=None,
                        placeholder="Ask what is on screen, what happened, or when.",
                    )
                    chips = gr.HTML(chips_html([], lambda _: None), js_on_load=CHOOSE_CHUNK, elem_id="chips")
                    question = gr.Textbox(
                        label="Question",
                        placeholder="what is on screen now ?",
                        lines=1,
                        max_lines=4,
                        max_length=4000,
                        elem_id="question",
                    )
                    with gr.Row(elem_classes="vs-buttons"):
                        ask = gr.Button("Ask", variant="primary", min_width=90, elem_id="ask")
                        stop_answer = gr.Button("Stop", variant="stop", interactive=False, min_width=90, elem_id="stop-answer")
                    with gr.Row():
                        at = gr.Textbox(
                            label="At stream time",
                            placeholder="now, or 2:14",
                            max_lines=1,
                            max_length=20,
                            min_width=130,
                            elem_id="at",
                        )
                        with_dialogue = gr.Checkbox(
                            label="Follow-up", info="The model also reads the earlier questions and answers", min_width=150
                        )
                alerts = build_unasked(studio, sources["player"], CHOOSE_CHUNK)
        pieces = [stage, telemetry, timeline]
        started = [notice, *pieces, chat, chips]
        looked = [notice, *pieces, sources["player"], back]
        answered = [chat, chips, timeline, question, ask, stop_answer]

        page.load(handlers.open, None, started, **WORKING)
        page.unload(handlers.close)
        gr.Timer(REFRESH_SECONDS).tick(handlers.tick, None, pieces, **AT_ONCE)
        sources["demo"].click(handlers.start_demo, [sources["seed"], sources["speed"]], started, **WORKING)
        sources["player"].upload(handlers.start_upload, sources["player"], started, **WORKING)
        sources["file"].click(handlers.start_upload, sources["player"], started, **WORKING)
        wire_library(studio, handlers, sources["library"], started, WORKING)
        gr.on([sources["open_url"].click, sources["url"].submit], handlers.start_url, sources["url"], started, **WORKING)
        sources["camera"].stream(handlers.camera, sources["camera"], notice, stream_every=CAMERA_SECONDS, **WORKING)
        stop_stream.click(handlers.stop_stream, None, [notice, *pieces], **WORKING)
        for chosen in (timeline, chips, alerts):
            chosen.click(handlers.look_at, None, looked, **AT_ONCE)
        back.click(handlers.look_live, None, [notice, *pieces, back], **AT_ONCE)
        gr.on([ask.click, question.submit], handlers.ask, [question, at, with_dialogue], answered, **WORKING)
        stop_answer.click(handlers.stop_answer, None, None, **AT_ONCE)
        chat.clear(handlers.clear, None, [chips, timeline], **AT_ONCE)
        chat.select(handlers.show_answer, None, [chips, timeline], **AT_ONCE)
    return page


def _sources(studio: Studio) -> dict[str, Any]:
    """The source tabs. Returns their parts by name."""
    with gr.Tabs(elem_id="sources"):
        with gr.Tab("Demo", id="demo"), gr.Row(elem_classes="vs-source"):
            seed = gr.Number(label="World seed", value=7, precision=0, minimum=0, min_width=110, elem_id="seed")
            speed = gr.Dropdown(SPEEDS, value=1.0, label="Speed", min_width=130, filterable=False, elem_id="speed")
            demo = gr.Button("Start demo", variant="primary", min_width=110, elem_id="start-demo")
        with gr.Tab("File", id="file"):
            player = gr.Video(label="Video file", sources=["upload"], height=220, elem_id="player")
            file = gr.Button("Watch this file again", size="sm", elem_id="start-file")
        with gr.Tab("URL", id="url"), gr.Row(elem_classes="vs-source"):
            url = gr.Textbox(
                label="Stream address",
                placeholder="rtsp://… or https://…",
                max_length=2000,
                scale=3,
                min_width=200,
                elem_id="url",
            )
            open_url = gr.Button("Open URL", variant="primary", min_width=110, elem_id="open-url")
        with gr.Tab("Camera", id="camera"):
            gr.HTML(f'<p class="vs-note">{CAMERA_NOTE}</p>')
            camera = gr.Image(
                sources=["webcam"],
                streaming=True,
                type="numpy",
                label="Camera",
                height=220,
                buttons=[],
                webcam_options=gr.WebcamOptions(mirror=False),
                elem_id="camera",
            )
        library = library_parts(studio)
    return {
        "library": library,
        "seed": seed,
        "speed": speed,
        "demo": demo,
        "player": player,
        "file": file,
        "url": url,
        "open_url": open_url,
        "camera": camera,
    }
