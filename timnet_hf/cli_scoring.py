# SPDX-License-Identifier: Apache-2.0
"""``timnet score``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .cli_common import ModelOption, err, progress_bars, say


def score(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="A folder, a manifest (.csv, .jsonl; column path), or Parquet."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    model: ModelOption = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core.")
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Recordings that are done, or after a crash redone, as one; by default a 64th of "
            "the input, 32 to 1,024.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Recordings that go through the network together.")
    ] = 16,
    audio_column: Annotated[
        str | None, typer.Option(help="Parquet's column of recordings, where it is not plain.")
    ] = None,
) -> None:
    """Score any number of recordings into one Parquet file, one row each.

    A run that was stopped goes on with the same command. A recording that cannot be read becomes a
    row with its error.
    """
    from .memory import keep_freed_memory
    from .scoring import score as score_all

    keep_freed_memory()
    started = time.perf_counter()

    with progress_bars() as bars:

        def show(done: int, total: int, audio_seconds: float) -> None:
            rate = audio_seconds / max(time.perf_counter() - started, 1e-9)
            bars("recordings", done, total, f"{rate:,.0f} × real time" if rate else "")

        summary = score_all(
            source,
            output,
            model,
            engine=engine,
            address=address,
            workers=workers,
            shard_size=shard_size,
            batch_size=batch_size,
            audio_column=audio_column,
            progress=show,
        )
    say(f"{summary.rows} recordings in {summary.output}")
    if summary.errors:
        say(f"{summary.errors} of them have no scores; the column `error` says why", err)


__all__ = ["score"]
