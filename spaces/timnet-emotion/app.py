# SPDX-License-Identifier: Apache-2.0
"""The page: name the emotion in a recording, live from a microphone, or in many files.

It stands on its own: the model comes from the Hub, or from a folder, with its code beside it.

Environment:
    TIMNET_MODEL: Hub ids or folders of the checkpoints on offer, separated as in `PATH`; the
        first is the default.
    TIMNET_EXAMPLES: Folder of clips to try; by default `examples` beside this file.
    TIMNET_KEPT: Seconds that an upload is kept; by default 600.
"""

from __future__ import annotations

import atexit
import html
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402  (reads its environment when it is imported)
from batch import BATCH_LIMIT, score_files  # noqa: E402
from checkpoints import Checkpoint, CheckpointError, Checkpoints, named_sources  # noqa: E402
from explanation import MAX_DURATION, explain  # noqa: E402
from figures import explanation_figure, timeline_figure  # noqa: E402
from live import LiveSession  # noqa: E402
from memory import give_back  # noqa: E402
from recording import (  # noqa: E402
    MAX_MINUTES,
    RecordingError,
    decode_recording,
    load_recording,
)
from voice import knowing  # noqa: E402

HERE = Path(__file__).resolve().parent

#: Megabytes that one file may have: an hour of 16-bit mono at 16 kHz, or of a good mp3.
MAX_FILE_SIZE_MB = 120
#: Seconds after which an uploaded recording is deleted, and how often is looked.
KEPT = max(1, int(os.environ.get("TIMNET_KEPT") or 600))
SWEEP = min(60, KEPT)
#: Visitors whose work is done at the same time, who wait, and who listen live; and how long.
AT_ONCE, WAITING, LISTENING, LISTENING_SECONDS = 2, 40, 8, 600
#: Work on whole recordings counts together: each may take a quarter of a gigabyte.
SCORING: dict[str, Any] = {"concurrency_id": "scoring", "concurrency_limit": AT_ONCE}

TITLE = "TIM-Net: emotion in speech"
INTRO = """# Emotion in speech
A very small network names the emotion that a voice *plays*. It learned from actors: see
[what this is not](#what-this-is-not)."""
EXAMPLES_NOTE = (
    "*A synthetic voice speaks in the examples. It caricatures an emotion and feels none: whatever "
    "the model answers says nothing about people.*"
)
WHAT_THIS_IS_NOT = f"""<h2 id="what-this-is-not">What this is not</h2>

- **Not a window into anybody's mind.** It names how a recording *sounds*, not what the speaker
  feels. It detects no lie, no intent, no illness.
- **Not made for everyday speech.** Its checkpoints learned from acted emotions, few speakers and
  one or two languages; other languages, ages, microphones and honest conversation are outside what
  it knows. A high percentage there is no sign of being right.
- **Not for judging people.** Do not use it to hire, grade, police, insure or treat anyone. In the
  European Union, emotion recognition at work and in education is prohibited (AI Act, Article
  5(1)(f)), and elsewhere the people concerned must be told.
- **Not a recorder.** Recordings are scored on the machine that runs this page, deleted within
  {KEPT // 60 + 1} minutes, used for nothing else, and never passed on.

Up to {MAX_MINUTES} minutes and {MAX_FILE_SIZE_MB} MB a recording, as wav, flac, ogg or mp3;
up to {BATCH_LIMIT} files at a time.
"""
#: Gradio's own grey on white is too pale to read.
GREY = "*neutral_500"
#: Comes with Gradio. Its semi-bold, which the theme would take, lacks most letters.
FONT = [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]
CSS = """
.gradio-container { max-width: 1080px !important; margin: auto; }
.picture img { display: block; width: 100%; max-width: 640px; margin: 2.2em auto 0; }
.strip > div:first-child { position: relative; height: 2.6em; border-radius: 6px; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.strip i { font-style: normal; }
.strip span { position: absolute; top: 0; bottom: 0; overflow: hidden; color: #1b1f24;
  text-align: center; line-height: 2.5em; white-space: nowrap; font-size: .9em; }
.strip > div:last-child { display: flex; justify-content: space-between; font-size: .8em;
  color: var(--body-text-color-subdued); }
"""


class Page:
    """The page's functions: each is a button there, and a named endpoint of its API."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def describe(self, checkpoint: str) -> str:
        """Load a checkpoint, and tell what it is."""
        found = self._checkpoint(checkpoint)
        labels = ", ".join(map(_plain, found.labels))
        size = found.timeline.model.num_parameters()
        return f"**{_plain(found.name)}** · {size:,} parameters · {labels}"

    def predict(
        self, recording: str | None, checkpoint: str, voice: list[str] | None = None
    ) -> tuple[dict[str, float], str]:
        """Score a recording: the probability of each emotion, and a sentence about it."""
        found = self._checkpoint(checkpoint, voice)
        waveform = _load(recording, found)
        scores, silent = _guarded(found.score, waveform)
        duration = _duration(len(waveform) / found.sampling_rate)
        if silent:
            return (
                scores,
                f"{duration} of silence: with nothing to hear, this means nothing.",
            )
        best = next(iter(scores))
        share = f"{100 * scores[best]:.0f} %"
        return scores, f"{_plain(found.name)} hears **{_plain(best)}** ({share}) in {duration}."

    def timeline(
        self, recording: str | None, checkpoint: str, voice: list[str] | None = None
    ) -> tuple[Any, list[list[Any]]]:
        """Find who-sounds-how-when: a picture, and a table of start, end, emotion, score."""
        found = self._checkpoint(checkpoint, voice)
        waveform = _load(recording, found)
        sound = {"array": waveform, "sampling_rate": found.sampling_rate}
        events = _guarded(found.timeline, sound)
        figure = timeline_figure(waveform, found.sampling_rate, events, found.labels)
        return figure, _rows(events)

    def explain(
        self, recording: str | None, checkpoint: str, voice: list[str] | None = None
    ) -> Any:
        """Show what the network looked at: when in the recording, and at what time scale."""
        found = self._checkpoint(checkpoint, voice)
        waveform = _load(recording, found)[: MAX_DURATION * found.sampling_rate]
        explanation = _guarded(explain, found, waveform)
        return explanation_figure(explanation, len(waveform) / found.sampling_rate)

    def live(
        self,
        chunk: str | None,
        checkpoint: str,
        session: LiveSession | None,
        voice: list[str] | None = None,
    ) -> tuple[LiveSession | None, Any, Any, Any]:
        """Take the next piece of a microphone's sound; answer with the timeline so far."""
        if chunk is None:
            return session, gr.skip(), gr.skip(), gr.skip()
        try:
            # Fed as it is decoded: two minutes at the highest rate are half a gigabyte.
            for rate, waveform in decode_recording(chunk, max_minutes=2):
                asked = (checkpoint, tuple(voice or ()), rate)
                if session is None or session.asked != asked:
                    session = LiveSession(self._checkpoint(checkpoint, voice), rate, asked)
                _guarded(session.feed, waveform)
        except RecordingError as error:
            raise _error(error) from error
        return self._shown(session)

    def live_end(self, session: LiveSession | None) -> tuple[None, Any, Any, Any]:
        """The microphone is off: show the last events, and forget the session."""
        if session is None:
            return None, gr.skip(), gr.skip(), gr.skip()
        session.finish()
        return None, *self._shown(session)[1:]

    def batch(
        self, recordings: list[str] | None, checkpoint: str, voice: list[str] | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """Score several recordings: a table with a row for each, and the same as a CSV file."""
        if not recordings:
            raise _error("Choose some recordings first.")
        if len(recordings) > BATCH_LIMIT:
            raise _error(f"{len(recordings)} files are too many: {BATCH_LIMIT} at a time.")
        return score_files(recordings, self._checkpoint(checkpoint, voice))

    def _checkpoint(self, name: str, voice: list[str] | None = None) -> Checkpoint:
        try:
            return knowing(self.checkpoints.get(name), voice)
        except (ValueError, OSError) as error:
            raise _error(error) from error

    @staticmethod
    def _shown(session: LiveSession) -> tuple[LiveSession, Any, str, str]:
        return session, session.scores or gr.skip(), session.strip(), session.status


def build(checkpoints: Checkpoints, examples: list[Path]) -> gr.Blocks:
    """Lay the page out.

    Args:
        checkpoints: What models are on offer.
        examples: Clips to try.
    """
    page = Page(checkpoints)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEEP, KEPT)) as blocks:
        gr.Markdown(INTRO)
        checkpoint = gr.Dropdown(
            checkpoints.names,
            value=checkpoints.names[0],
            allow_custom_value=True,
            label="Checkpoint",
            info="One of the list, or the Hub id of any TIM-Net: org/name",
            elem_id="checkpoint",
        )
        about = gr.Markdown(label="Description", elem_id="about")
        checkpoint.change(page.describe, checkpoint, about, api_name="checkpoint")
        blocks.load(page.describe, checkpoint, about, api_visibility="private")
        with gr.Accordion("Do you know the voice?", open=False, elem_id="voice"):
            voice = gr.File(
                file_count="multiple",
                label="Recordings of the same voice, or its profile",
                elem_id="voice-files",
            )
            gr.Markdown(
                "Other recordings of the same person, ten or more in all moods, tell the voice "
                "from the emotion. Or the profile that `timnet enroll` wrote. Every answer below "
                "is then for this voice."
            )
        with gr.Tab("One recording"):
            _recording_tab(page, checkpoint, voice, examples)
        with gr.Tab("Live"):
            _live_tab(page, checkpoint, voice)
        with gr.Tab("Several files"):
            _batch_tab(page, checkpoint, voice)
        gr.Markdown(WHAT_THIS_IS_NOT)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)


def _recording_tab(
    page: Page, checkpoint: gr.Dropdown, voice: gr.File, examples: list[Path]
) -> None:
    with gr.Row():
        with gr.Column(min_width=300):
            recording = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="Recording",
                elem_id="recording",
                buttons=[],
            )
            run = gr.Button("Name the emotion", variant="primary", elem_id="run")
            if examples:
                gr.Examples(
                    [[str(clip)] for clip in examples],
                    recording,
                    example_labels=[clip.stem for clip in examples],
                    cache_examples=False,
                    label="Examples",
                    elem_id="examples",
                    api_visibility="private",
                )
                gr.Markdown(EXAMPLES_NOTE)
        with gr.Column(min_width=300):
            answer = gr.Label(label="Probabilities", num_top_classes=8, elem_id="answer")
            verdict = gr.Markdown(label="Sentence", elem_id="verdict")
    picture = gr.Plot(label="Timeline", elem_id="timeline", elem_classes="picture")
    with gr.Accordion("The timeline as a table", open=False, elem_id="events"):
        table = gr.Dataframe(
            headers=["start", "end", "emotion", "score"],
            datatype=["number", "number", "str", "number"],
            column_count=4,
            row_count=1,
            interactive=False,
            label="Seconds; score: mean probability",
        )
    with gr.Accordion("What the network looked at", open=False, elem_id="why"):
        why = gr.Plot(label="Time and scale", elem_id="explanation", elem_classes="picture")
        gr.Markdown(
            "**When**: gradient × features of each moment; green speaks for the answer, red "
            "against it. **Scales**: the network sums one vector a time scale; the weights belong "
            "to the model, what each adds to this recording's answer is on the right. This shows "
            f"what the answer hangs on, not why anybody feels anything. First {MAX_DURATION} s."
        )
    inputs = [recording, checkpoint, voice]
    # One step after the other, so that the answer is there first. Each is an endpoint of its own.
    done = run.click(page.predict, inputs, [answer, verdict], api_name="predict", **SCORING)
    done = done.success(page.timeline, inputs, [picture, table], api_name="timeline", **SCORING)
    done.success(page.explain, inputs, why, api_name="explain", **SCORING)


def _live_tab(page: Page, checkpoint: gr.Dropdown, voice: gr.File) -> None:
    session = gr.State(time_to_live=2 * KEPT)
    with gr.Row():
        with gr.Column(min_width=300):
            microphone = gr.Audio(
                sources=["microphone"],
                type="filepath",
                streaming=True,
                label="Microphone",
                elem_id="microphone",
            )
            status = gr.Markdown("Press record and speak.", label="Status", elem_id="live-status")
        with gr.Column(min_width=300):
            now = gr.Label(label="Now", num_top_classes=8, elem_id="live-answer")
    strip = gr.HTML(label="The last half minute", elem_id="live-strip")
    inputs, outputs = [microphone, checkpoint, session, voice], [session, now, strip, status]
    microphone.stream(
        page.live,
        inputs,
        outputs,
        stream_every=0.5,
        time_limit=LISTENING_SECONDS,
        concurrency_limit=LISTENING,
        show_progress="hidden",
        api_name="listen",
        api_visibility="private",
    )
    # Gradio's own client cannot talk to a stream's event: for it, the same as a button unseen.
    gr.Button(visible=False).click(page.live, inputs, outputs, api_name="live")
    microphone.stop_recording(
        page.live_end, session, outputs, show_progress="hidden", api_name="live_end"
    )


def _batch_tab(page: Page, checkpoint: gr.Dropdown, voice: gr.File) -> None:
    files = gr.File(file_count="multiple", label="Recordings", elem_id="files")
    run = gr.Button("Name the emotions", variant="primary", elem_id="run-batch")
    table = gr.Dataframe(interactive=False, label="Answers", elem_id="batch")
    download = gr.DownloadButton("Download as CSV", elem_id="csv")
    inputs = [files, checkpoint, voice]
    run.click(page.batch, inputs, [table, download], api_name="batch", **SCORING)


def _load(recording: str | None, checkpoint: Checkpoint) -> Any:
    if not recording:
        raise _error("Record something, or upload a recording, first.")
    try:
        return load_recording(recording, checkpoint.sampling_rate)
    except RecordingError as error:
        raise _error(error) from error


def _guarded(function: Any, *arguments: Any) -> Any:
    """Call the model; what it refuses becomes a sentence on the page."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise _error(f"The model cannot use this recording: {error}") from error


def _error(message: object) -> gr.Error:
    # Gradio renders a message as HTML, and it may hold a file's name.
    return gr.Error(html.escape(str(message), quote=False), print_exception=False)


def _plain(text: str) -> str:
    """Text for a Markdown component that means nothing but its letters."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$<>&-])", r"\\\1", text)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _rows(events: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [round(event["start"], 2), round(event["end"], 2), event["label"], round(event["score"], 3)]
        for event in events
    ]


async def _refuse_address(url: str) -> Any:
    raise _error("Upload the recording itself: this page fetches no address.")


def _sweep(folder: Path) -> None:
    """Delete old files again and again: Gradio forgets the uploads that were broken off."""
    while True:
        time.sleep(SWEEP)
        for path in folder.rglob("*"):
            with suppress(OSError):  # it went meanwhile
                # Changed, not modified: a copy of a file keeps the time of the original.
                if path.is_file() and time.time() - path.stat().st_ctime > KEPT + SWEEP:
                    path.unlink()


def main() -> None:
    """Load the default checkpoint, then serve the page until it is stopped."""
    give_back()
    checkpoints = Checkpoints(named_sources())
    try:
        checkpoints.get()
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    # Whatever visitors upload lies in one folder, which goes when the page does.
    folder = tempfile.mkdtemp(prefix="timnet-space-")
    os.environ["GRADIO_TEMP_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    threading.Thread(target=_sweep, args=(Path(folder),), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A request may name an address instead of an uploaded file, and Gradio would fetch it.
    gr.processing_utils.async_ssrf_protected_get = _refuse_address
    folder_of_clips = Path(os.environ.get("TIMNET_EXAMPLES") or HERE / "examples")
    clips = sorted(folder_of_clips.resolve().glob("*.flac"))
    # Served from where they lie: Gradio's copies would be deleted with the visitors' uploads.
    gr.set_static_paths(clips)
    build(checkpoints, clips).launch(
        theme=gr.themes.Default(primary_hue="teal", secondary_hue="teal", font=FONT).set(
            block_info_text_color=GREY, body_text_color_subdued=GREY
        ),
        css=CSS,
        max_file_size=f"{MAX_FILE_SIZE_MB}mb",
        footer_links=["api", "settings"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        share=False,
    )


if __name__ == "__main__":
    main()
