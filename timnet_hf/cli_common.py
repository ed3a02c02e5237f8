# SPDX-License-Identifier: Apache-2.0
"""What the commands of ``timnet`` share: the terminal, options, a progress bar."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)

ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A folder, a Hub id, or the name of a shipped checkpoint."),
]
ScorerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A folder, a Hub id, a shipped checkpoint's name, or an .onnx file."
    ),
]
DataOption: TypeAlias = Annotated[
    Path, typer.Option("--data-dir", help="Folder that holds the recordings.")
]
CorpusOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="A known corpus, or several as one: emodb+ravdess; without it, --data-dir holds your "
        "own data.",
    ),
]
AsIsOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--as-is",
        help="Take a corpus that is not as published as it is; what cannot be decoded is left out.",
    ),
]
RecipeOption: TypeAlias = Annotated[str, typer.Option("--recipe", help="default or paper.")]


def say(text: str, console: Console = out, style: str | None = None) -> None:
    """Print a line as it is: no markup in file names, no line breaks in what may be copied."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar for each kind of work, with the time left; plain silence where there is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    tasks: dict[str, Any] = {}
    # The time left comes from all that was done so far: folds take minutes, and the half a minute
    # that is usual would hold none.
    with Progress(*columns, console=err, speed_estimate_period=math.inf) as bars:

        def update(what: str, done: int, total: int, detail: str) -> None:
            if is_new := what not in tasks:
                tasks[what] = bars.add_task(what, total=total, detail=detail)
            bars.update(tasks[what], completed=done, total=total, detail=detail)
            if is_new:
                bars.advance(tasks[what], 0)  # when it began: the speed is measured from there
            if 0 < total <= done:
                bars.stop_task(tasks[what])

        yield update


def typed_command() -> str:
    """What the user typed, for records, which go public: file names only, and no token.

    Where the data lie is nobody's business either: ``DATA`` stands for their folder.
    """
    words, before = ["timnet"], ""
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        meant = option or before
        if value and "token" in meant:
            value = "TOKEN"
        elif value and meant == "--data-dir":
            value = "DATA"
        before = "" if equals else option
        words.append(option + equals + (Path(value).name if "/" in value else value))
    return shlex.join(words)


__all__ = [
    "AsIsOption",
    "CorpusOption",
    "DataOption",
    "ModelOption",
    "RecipeOption",
    "ScorerOption",
    "typed_command",
    "err",
    "out",
    "progress_bars",
    "say",
]
