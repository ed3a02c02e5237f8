# SPDX-License-Identifier: Apache-2.0
"""Predictions and corpora as text: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .prediction import Prediction

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from .timeline_formats import Timeline

FORMATS = ("table", "json", "csv")


def render_predictions(
    predictions: Iterable[Prediction], output_format: str, top_k: int, console: Console
) -> Iterator[bool]:
    """Print predictions; yield for each whether it failed.

    JSON is one array, CSV has one row a recording and stays open to be read line by line.

    Raises:
        ValueError: The format is unknown.
    """
    if output_format not in FORMATS:
        raise ValueError(f"Unknown format {output_format!r}. Choose one of {', '.join(FORMATS)}.")
    if output_format == "csv":
        yield from _as_csv(predictions, console)
    elif output_format == "json":
        found = list(predictions)
        values = [_as_dict(one, top_k) for one in found]
        console.file.write(_json_for(values, console))
        yield from (one.error is not None for one in found)
    else:
        yield from _as_table(list(predictions), top_k, console)


def _json_for(values: Any, console: Console) -> str:
    """JSON as the output can hold it: a name that it cannot hold as it is, in ASCII."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    return text if _shown(text, console) == text else json.dumps(values, indent=2) + "\n"


def _as_dict(prediction: Prediction, top_k: int) -> dict[str, object]:
    if prediction.error is not None:
        return {"path": prediction.path, "error": prediction.error}
    return {
        "path": prediction.path,
        "label": prediction.label,
        "score": round(next(iter(prediction.scores.values())), 6),
        "duration": round(prediction.duration, 3),
        "silent": prediction.silent,
        "scores": [
            {"label": label, "score": round(score, 6)}
            for label, score in list(prediction.scores.items())[:top_k]
        ],
    }


def _as_csv(predictions: Iterable[Prediction], console: Console) -> Iterator[bool]:
    from .timeline_formats import csv_row

    labels: list[str] | None = None
    waiting: list[Prediction] = []

    def write(row: list[object]) -> None:
        console.file.write(_shown(csv_row(row), console))
        console.file.flush()

    def write_prediction(one: Prediction) -> None:
        scores = [f"{one.scores[name]:.6f}" if one.scores else "" for name in labels or []]
        score = f"{max(one.scores.values()):.6f}" if one.scores else ""
        write([one.path, one.label or "", score, *scores, one.error or ""])

    for prediction in predictions:
        yield prediction.error is not None
        if labels is None and prediction.scores:
            labels = sorted(prediction.scores)
            write(["path", "label", "score", *labels, "error"])
            for one in waiting:
                write_prediction(one)
        if labels is None:
            waiting.append(prediction)
        else:
            write_prediction(prediction)
    if labels is None:
        write(["path", "label", "score", "error"])
        for one in waiting:
            write_prediction(one)


def _shown(text: str, console: Console) -> str:
    """Text with escapes for what the output's encoding cannot hold."""
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _plain(text: str, console: Console) -> Text:
    """Text of someone else's making: no markup, no emoji codes, no control characters."""
    from rich.text import Text

    printable = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
    return Text(_shown(printable, console))


def _as_table(predictions: list[Prediction], top_k: int, console: Console) -> Iterator[bool]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recording", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_column("emotion")
    table.add_column("", min_width=12)
    table.add_column("then", overflow="fold")
    for one in predictions:
        name = _plain(Path(one.path).name, console)
        if one.error is not None:
            table.add_row(name, "", "[red]error[/red]", "", _plain(one.error, console))
        else:
            ranked = list(one.scores.items())[:top_k]
            rest = ", ".join(f"{label} {score:.0%}" for label, score in ranked[1:])
            label, score = ranked[0]
            emotion = _plain(label, console)
            emotion.stylize("bold")
            table.add_row(
                name,
                f"{one.duration:.1f}",
                emotion,
                _bar(score, console),
                _plain("silence" if one.silent else rest, console),
            )
    console.print(table)
    yield from (one.error is not None for one in predictions)


def render_timelines(
    timelines: Iterable[Timeline], output_format: str, console: Console, errors: Console
) -> Iterator[bool]:
    """Print timelines; yield for each whether it failed.

    Formats that hold one recording to a text are printed one after the other.

    Raises:
        ValueError: The format is unknown.
    """
    from .timeline_formats import TIMELINE_FORMATS, format_timelines

    if output_format != "table" and output_format not in TIMELINE_FORMATS:
        known = ", ".join(["table", *TIMELINE_FORMATS])
        raise ValueError(f"Unknown timeline format {output_format!r}. Choose one of {known}.")
    if output_format == "table":
        for one in timelines:
            _print_timeline(one, console)
            yield one.error is not None
    elif TIMELINE_FORMATS[output_format].many:
        found = list(timelines)
        text = format_timelines(found, output_format)
        is_json = output_format == "json"
        console.file.write(
            _json_for(json.loads(text), console) if is_json else _shown(text, console)
        )
        yield from (one.error is not None for one in found)
    else:
        for one in timelines:
            if one.error is None:
                console.file.write(_shown(format_timelines([one], output_format), console))
            else:
                errors.print(one.error, markup=False, highlight=False, soft_wrap=True)
            yield one.error is not None


def _print_timeline(timeline: Timeline, console: Console) -> None:
    from rich.table import Table

    console.print(_plain(Path(timeline.path).name, console), style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    if timeline.error is not None:
        table.add_row("  [red]error[/red]", _plain(timeline.error, console))
    elif not timeline.events:
        table.add_row("  no speech")
    for event in timeline.events:
        span = f"  {event['start']:8.2f} to {event['end']:8.2f} s"
        emotion = _plain(event["label"], console)
        table.add_row(span, emotion, _bar(event["score"], console))
    console.print(table)


def _bar(score: float, console: Console) -> str:
    """A probability as a bar and a number."""
    cell = "█" if console.encoding.startswith("utf") else "#"
    return f"{cell * max(1, round(8 * score))} {score:.0%}"


def render_corpora(console: Console) -> None:
    """Print the table of known corpora."""
    from rich.table import Table

    from .corpora import CORPORA

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "language", "recordings", "speakers", "labels", "licence"):
        table.add_column(column, overflow="fold")
    for corpus in CORPORA.values():
        table.add_row(
            corpus.name,
            corpus.language,
            str(corpus.n_files),
            str(corpus.n_speakers),
            ", ".join(corpus.labels),
            corpus.licence,
        )
    console.print(table)
    console.print("\nThey belong to their owners:")
    for corpus in CORPORA.values():
        console.print(f"{corpus.name}  {corpus.homepage}", highlight=False, soft_wrap=True)


__all__ = ["FORMATS", "render_corpora", "render_predictions", "render_timelines"]
