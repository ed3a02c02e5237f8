# SPDX-License-Identifier: Apache-2.0
"""Several recordings → one table, on the page and as CSV."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import Checkpoint
from gradio.utils import get_upload_folder
from recording import RecordingError, load_recording, shown_name

#: Files at a time.
BATCH_LIMIT = 50


def score_files(paths: list[str], checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Score recordings one after the other; one that cannot be read becomes a row that says so.

    Args:
        paths: The uploaded files.
        checkpoint: The model.

    Returns:
        The table as Gradio takes it, with ``headers`` and ``data``; and the path of the CSV file,
        in the folder whose files are deleted with the visitors' uploads.
    """
    headers = ["file", "emotion", "probability", "seconds", *checkpoint.labels, "note"]
    rows = [_row(path, checkpoint) for path in paths]
    folder = tempfile.mkdtemp(dir=_made(get_upload_folder()))
    target = Path(folder, "emotions.csv")
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_harmless(value) for value in headers])
        writer.writerows([_harmless(value) for value in row] for row in rows)
    return {"headers": headers, "data": rows}, str(target)


def _row(path: str, checkpoint: Checkpoint) -> list[Any]:
    name = shown_name(path)
    try:
        waveform = load_recording(path, checkpoint.sampling_rate)
        scores, silent = checkpoint.score(waveform)
    except (RecordingError, ValueError) as error:
        reason = str(error).removeprefix(f"{name} ")
        return [name, "", "", "", *[""] * len(checkpoint.labels), reason]
    best = next(iter(scores))
    seconds = round(len(waveform) / checkpoint.sampling_rate, 2)
    shares = [round(scores[label], 4) for label in checkpoint.labels]
    note = "silence: there is nothing to hear" if silent else ""
    return [name, best, round(scores[best], 4), seconds, *shares, note]


def _harmless(value: Any) -> Any:
    """An apostrophe before what a spreadsheet would take for a formula: it says that it is text."""
    if isinstance(value, str):
        value = value.replace("\0", "\u2400")  # Python 3.10 writes no NUL
    # Spreadsheets take the full-width signs for the same.
    if isinstance(value, str) and value.lstrip().startswith(tuple("=+-@|%＝＋－＠")):
        return f"'{value}"
    return value


def _made(folder: str) -> str:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


__all__ = ["BATCH_LIMIT", "score_files"]
