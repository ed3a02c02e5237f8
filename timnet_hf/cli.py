# SPDX-License-Identifier: Apache-2.0
"""The ``timnet`` command: it reads the command line, calls the package, prints what comes back.

Exit status: 0 when all went well, 2 when something could not be done (the message says what),
130 when the user stopped it.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .cli_common import ScorerOption, err, out, say
from .cli_corpora import corpora_app
from .cli_export import export
from .cli_hub import publish, publish_metric, publish_space, space
from .cli_scoring import score
from .cli_speaker import enroll
from .cli_training import convert, cross_validate, train

app = typer.Typer(
    name="timnet",
    help="Speech emotion recognition with TIM-Net, a network of about 0.1 M parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command line; errors of the package end it with status 2 and one clear message."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        status = app(standalone_mode=False)  # then click hands back the code of an Exit
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if hasattr(error, "show"):  # click's own errors: wrong options and the like
            error.show()
            status = 2
        elif isinstance(error, (ValueError, OSError, ImportError)):
            say(f"error: {error}", err, style="red")
            status = 2
        elif type(error).__name__ == "Abort":  # what older versions of typer make of Ctrl-C
            status = 130
        else:
            raise
    if status == 130:
        say("stopped", err)
    sys.exit(status or 0)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(__version__)
        raise typer.Exit()


@app.command()
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    model: ScorerOption = None,
    output_format: Annotated[
        str,
        typer.Option(
            "--format", help="table, json or csv; with --segments also rttm, textgrid, vtt."
        ),
    ] = "table",
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to print.")] = 3,
    segments: Annotated[bool, typer.Option("--segments", help="A timeline for each file.")] = False,
    window: Annotated[float, typer.Option(help="With --segments: seconds scored at a time.")] = 2.5,
    hop: Annotated[float, typer.Option(help="With --segments: seconds between windows.")] = 0.5,
    vad: Annotated[
        str, typer.Option(help="With --segments: how silence is left out, energy or silero.")
    ] = "energy",
    speaker: Annotated[
        Path | None, typer.Option(help="The voice's profile, from `timnet enroll`.")
    ] = None,
) -> None:
    """Name the emotion in recordings."""
    from .audio import AudioError, find_audio_files
    from .prediction import load_scorer, predict_recordings
    from .rendering import render_predictions, render_timelines
    from .timeline_formats import timeline_recordings

    files = find_audio_files(inputs)
    if not files:
        raise AudioError(f"{', '.join(map(str, inputs))}: no recordings; give files or a folder")
    # Loading compiled loops takes as long as they save in so many recordings.
    scorer = load_scorer(model, speaker=speaker, compiled=len(files) >= 500)
    if segments:
        timelines = timeline_recordings(files, scorer, window=window, hop=hop, vad=vad)
        failures = render_timelines(timelines, output_format, out, err)
    else:
        predictions = predict_recordings(files, scorer)
        failures = render_predictions(predictions, output_format, top_k, out)
    if sum(failures):
        raise typer.Exit(2)


# The other commands, in the order in which `timnet --help` lists them. Each module imports what
# is heavy inside its functions: a command that is not called costs nothing.
_FLAGS_FOLLOW = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_FLAGS_FOLLOW)(train)
app.command()(enroll)
app.command("cross-validate")(cross_validate)
app.command()(convert)
app.command()(export)
app.command()(score)
app.command()(publish)
app.command("publish-metric")(publish_metric)
app.command("publish-space")(publish_space)
app.command()(space)
app.add_typer(corpora_app, name="corpora", invoke_without_command=True, no_args_is_help=False)

__all__ = ["app", "main"]
