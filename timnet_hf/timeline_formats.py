# SPDX-License-Identifier: Apache-2.0
"""Timelines of files, as text that other programs read: JSON, CSV, RTTM, TextGrid and WebVTT.

File names and labels come from strangers. Each format has its own way in which a name can become
something else (a formula, a field, a cue), and each writer shuts it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification
    from .prediction import Scorer

__all__ = [
    "TIMELINE_FORMATS",
    "Timeline",
    "TimelineFormat",
    "csv_row",
    "format_timelines",
    "spreadsheet_text",
    "timeline_files",
    "timeline_recordings",
]


@dataclass(frozen=True)
class Timeline:
    """The events of one recording.

    Attributes:
        path: Its name, as the output shall show it.
        events: What the timeline pipeline returns for it: dicts with ``start``, ``end`` (seconds),
            ``label``, ``score`` and ``scores``, in order, without overlap.
        duration: Of the recording, in seconds; None where it is not known.
        error: Why there are no events to trust, or None.
    """

    path: str
    events: Sequence[dict[str, Any]]
    duration: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class TimelineFormat:
    """How timelines are written.

    Attributes:
        extension: Of a file in this format, with the dot.
        many: Whether one text can hold several recordings.
        write: Makes the text of timelines.
    """

    extension: str
    many: bool
    write: Callable[[Sequence[Timeline]], str]


def timeline_files(
    paths: Iterable[str | os.PathLike[str]],
    model: TimNetForAudioClassification,
    extractor: TimNetFeatureExtractor,
    **parameters: Any,
) -> Iterator[Timeline]:
    """Make the timelines of recordings with a network in PyTorch, see `timeline_recordings`."""
    from .prediction import TorchScorer

    return timeline_recordings(paths, TorchScorer(model, extractor), **parameters)


def timeline_recordings(
    paths: Iterable[str | os.PathLike[str]],
    scorer: Scorer,
    *,
    batch_size: int = 16,
    **parameters: Any,
) -> Iterator[Timeline]:
    """Make the timelines of recordings of any length, in bounded memory, one by one.

    Args:
        paths: The recordings. One that cannot be read becomes a timeline with its error.
        scorer: Scores the windows.
        batch_size: Windows that go through the model in one call.
        **parameters: ``window``, ``hop`` and ``vad`` of `timnet_hf.timeline_timnet.TimelineStream`.

    Yields:
        One timeline a path, in order.

    Raises:
        ValueError: A parameter is out of its range.
        ImportError: ``vad="silero"`` is asked for and silero-vad is not installed.
    """
    from .audio import stream_audio
    from .timeline_timnet import TimelineStream

    for given in paths:
        path = os.fspath(given)
        stream = TimelineStream(
            lambda waveforms: scorer.score(waveforms)[0],
            scorer.labels,
            scorer.sampling_rate,
            batch_size=batch_size,
            **parameters,
        )
        events: list[dict[str, Any]] = []
        try:
            for block in stream_audio(path, scorer.sampling_rate):
                events += stream.feed(block)
            events += stream.finish()
        except (ValueError, OSError) as error:
            text = str(error)
            yield Timeline(path, [], error=text if path in text else f"{path}: {text}")
        else:
            yield Timeline(path, events, stream.duration)


def format_timelines(timelines: Iterable[Timeline], format: str) -> str:
    """Write timelines in one of `TIMELINE_FORMATS`.

    Args:
        timelines: One, or several where the format can hold them. Rows keep their order.
        format: ``"json"``, ``"csv"``, ``"rttm"``, ``"textgrid"`` or ``"vtt"``.

    Returns:
        The text, ending in a line feed. It can always be encoded as UTF-8.

    Raises:
        ValueError: The format is unknown; or it holds one recording, and was given another number
            or one with an error.

    Example:
        >>> from timnet_hf.timeline_formats import Timeline, format_timelines
        >>> event = {"start": 0.5, "end": 3.0, "label": "sad", "score": 0.9, "scores": {"sad": 0.9}}
        >>> print(format_timelines([Timeline("call.wav", [event])], "rttm"), end="")
        SPEAKER call.wav 1 0.500 2.500 <NA> <NA> sad 0.9000 <NA>
    """
    if format not in TIMELINE_FORMATS:
        raise ValueError(
            f"Unknown timeline format {format!r}. Choose one of {', '.join(TIMELINE_FORMATS)}."
        )
    timelines = list(timelines)
    if not TIMELINE_FORMATS[format].many:
        if len(timelines) != 1:
            raise ValueError(
                f"The format {format} holds one recording, not {len(timelines)}. Write one file "
                "each, or choose json, csv or rttm."
            )
        if timelines[0].error is not None:
            raise ValueError(timelines[0].error)
    return TIMELINE_FORMATS[format].write(timelines)


def _json(timelines: Sequence[Timeline]) -> str:
    """A list of objects with path, duration and events, or path and error; numbers unrounded."""
    items = [
        {"path": timeline.path, "duration": timeline.duration, "events": [*timeline.events]}
        if timeline.error is None
        else {"path": timeline.path, "error": timeline.error}
        for timeline in timelines
    ]
    # What is no character becomes an escape such as \udcff here, which JSON reads back.
    return _text(json.dumps(items, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _csv(timelines: Sequence[Timeline]) -> str:
    """A row an event or error, and one without times for a recording in which nobody speaks.

    Every label has a column. Spreadsheets take no cell for a formula.
    """
    labels: dict[str, None] = {}
    for timeline in timelines:
        for event in timeline.events:
            labels.update(dict.fromkeys(event["scores"]))
    rows = [["path", "start", "end", "label", "score", *labels, "error"]]
    for timeline in timelines:
        if timeline.error is not None or not timeline.events:
            blank = [""] * (4 + len(labels))
            rows.append([timeline.path, *blank, timeline.error or ""])
        for event in timeline.events:
            times = (f"{event[name]:.3f}" for name in ("start", "end"))
            scores = (event["scores"].get(label) for label in labels)
            written = ("" if score is None else f"{score:.6f}" for score in scores)
            rows.append(
                [timeline.path, *times, event["label"], f"{event['score']:.6f}", *written, ""]
            )
    return "".join(csv_row([_text(value) for value in row]) for row in rows)


def csv_row(values: Iterable[object]) -> str:
    """One row of a CSV file, ending in a line feed; spreadsheets take no cell for a formula."""
    line = io.StringIO()
    # Only with its own line end does the writer put quotes around a lone carriage return too.
    csv.writer(line).writerow([spreadsheet_text(str(value)) for value in values])
    return line.getvalue().removesuffix("\r\n") + "\n"


def spreadsheet_text(text: str) -> str:
    """Text that no spreadsheet runs: what looks like the start of a formula gets an apostrophe.

    A NUL, which many readers of tables stop at, becomes its picture.
    """
    text = text.replace("\0", "\u2400")
    return f"'{text}" if re.match(r"\s*[=+\-@＝＋－＠]|[\t\r\n]", text) else text


def _rttm(timelines: Sequence[Timeline]) -> str:
    """Ten fields a line, as diarisation tools read them, with the emotion in place of the speaker.

    Fields end at white space, so white space, quotes and ``%`` in names are percent-encoded.
    A recording with an error has no line.
    """
    lines = []
    for timeline in timelines:
        for event in timeline.events:
            start = round(event["start"], 3)
            lines.append(
                f"SPEAKER {_field(timeline.path)} 1 {start:.3f} {event['end'] - start:.3f} "
                f"<NA> <NA> {_field(event['label'])} {event['score']:.4f} <NA>\n"
            )
    return "".join(lines)


def _field(value: str) -> str:
    encoded = re.sub(r"[\s\x00-\x20\x7f\"'%]", lambda found: quote(found[0], safe=""), _text(value))
    return encoded or "<NA>"


def _textgrid(timelines: Sequence[Timeline]) -> str:
    """Praat's long text format: the tiers ``emotion`` and ``score``, which fill all of the time."""
    (timeline,) = timelines
    last = max((event["end"] for event in timeline.events), default=0.0)
    end = max(last, timeline.duration or 0.0)
    if not end:
        raise ValueError(
            f"{_text(timeline.path)}: a TextGrid of no events needs the recording's duration."
        )
    intervals: list[tuple[float, float, dict[str, str]]] = []
    position = 0.0
    for event in timeline.events:
        if event["start"] > position:
            intervals.append((position, event["start"], {}))
        texts = {"emotion": str(event["label"]), "score": f"{event['score']:.4f}"}
        intervals.append((event["start"], event["end"], texts))
        position = event["end"]
    if position < end:
        intervals.append((position, end, {}))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end!r}",
        "tiers? <exists>",
        "size = 2",
        "item []:",
    ]
    for number, tier in enumerate(("emotion", "score"), start=1):
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{tier}"',
            "        xmin = 0",
            f"        xmax = {end!r}",
            f"        intervals: size = {len(intervals)}",
        ]
        for index, (begin, stop, texts) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {begin!r}",
                f"            xmax = {stop!r}",
                f"            text = {_quoted(texts.get(tier, ''))}",
            ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A Praat string: on one line, its quotes doubled."""
    return '"' + _line(value).replace('"', '""') + '"'


def _webvtt(timelines: Sequence[Timeline]) -> str:
    """A cue an event, for the subtitles of any player: the label and its probability."""
    (timeline,) = timelines
    cues = [f"WEBVTT - {_cue_text(timeline.path)}\n"]
    for number, event in enumerate(timeline.events, start=1):
        start = round(event["start"] * 1000)
        end = max(start + 1, round(event["end"] * 1000))
        cues.append(
            f"{number}\n{_clock(start)} --> {_clock(end)}\n"
            f"{_cue_text(event['label'])} ({event['score']:.0%})\n"
        )
    return "\n".join(cues)


def _cue_text(value: str) -> str:
    """One line of a cue: no tag, no entity and no arrow can come of it, and it is never blank."""
    text = _line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.strip() or "?"


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}.{rest:03}"


def _line(value: str) -> str:
    """Text without line breaks and other control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", _text(value))


def _text(value: str) -> str:
    """Text that UTF-8 can hold: names of files may have bytes that are no characters."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


#: Name of a format → how it is written.
TIMELINE_FORMATS: dict[str, TimelineFormat] = {
    "json": TimelineFormat(".json", True, _json),
    "csv": TimelineFormat(".csv", True, _csv),
    "rttm": TimelineFormat(".rttm", True, _rttm),
    "textgrid": TimelineFormat(".TextGrid", False, _textgrid),
    "vtt": TimelineFormat(".vtt", False, _webvtt),
}
