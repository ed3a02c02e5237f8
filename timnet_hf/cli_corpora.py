# SPDX-License-Identifier: Apache-2.0
"""``timnet corpora``: list, check and download what models learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_common import DataOption, out, progress_bars, say

corpora_app = typer.Typer(help="The corpora of the paper.", no_args_is_help=True)


@corpora_app.callback(invoke_without_command=True)
def corpora(context: typer.Context) -> None:
    """List the corpora that can be loaded by name."""
    if context.invoked_subcommand is None:
        from .rendering import render_corpora

        render_corpora(out)


@corpora_app.command("check")
def corpora_check(name: str, data_dir: DataOption) -> None:
    """Compare a copy of a corpus with what its owners publish."""
    from .corpora import check_corpus

    report = check_corpus(name, data_dir)
    say(str(report))
    if not report.ok:
        raise typer.Exit(2)


@corpora_app.command("download")
def corpora_download(
    name: str,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder that takes the recordings.")
    ] = None,
) -> None:
    """Download a corpus whose owners allow it, or say whom to ask for it."""
    from .corpora import download_corpus, find_corpus

    if data_dir is None:
        if find_corpus(name).download is not None:
            raise typer.BadParameter("say where to, with --data-dir")
        data_dir = Path()  # never used: the download is refused with the way to get it
    with progress_bars() as progress:
        folder = download_corpus(
            name, data_dir, progress=lambda done, total: progress("download", done, total or 0, "")
        )
    say(f"{name} in {folder}")


__all__ = ["corpora_app"]
