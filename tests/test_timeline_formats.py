# SPDX-License-Identifier: Apache-2.0
"""Timelines as text, each read back by what reads that format, with the names strangers give."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from timnet_hf.timeline_formats import (
    TIMELINE_FORMATS,
    Timeline,
    format_timelines,
    timeline_files,
)


def event(start: float, end: float, label: str, score: float = 0.75) -> dict[str, Any]:
    scores = {"calm": 1 - score, "tense": 1 - score, label: score}
    return {"start": start, "end": end, "label": label, "score": score, "scores": scores}


CALL = Timeline(
    "call.wav",
    [event(0.5, 3.0, "tense"), event(3.0, 4.25, "calm"), event(3661.5, 3662.125, "tense", 1.0)],
    3700.0,
)
BROKEN = Timeline("broken.wav", [], error="broken.wav: cannot be decoded; convert it")
NASTY = [
    "=HYPERLINK(A1)",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    " =1",
    "\n+1",
    "＝1",
    'a "quoted" name',
    "a --> b",
    "<v Bob>&amp;",
    "two\nlines\r\n\nand blank ones",
    "a return\rin the middle",
    "\rat the start",
    "at the end\r",
    "a feed at the end\n",
    'a quote"\rand a return',
    "comma, semicolon; tab\t",
    "50% %41",
    "Überraschung 驚き",
    "bytes \udcff that are no text",
    "\x00\x1b[31m\x85\u2028",
    "",
    " ",
]


# --- a small reader for each format, as its specification says -----------------------------------


def read_textgrid(text: str) -> dict[str, list[tuple[float, float, str]]]:
    """The interval tiers of a long TextGrid: quotes are doubled within strings."""
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\n')
    values = re.findall(r'= (-?[\d.e-]+|"(?:[^"]|"")*")$', text.split("item []:")[1], re.M)
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    while values:
        assert values.pop(0) == '"IntervalTier"'
        name, low, high, size = (values.pop(0) for _ in range(4))
        tier = tiers[name.strip('"')] = []
        for _ in range(int(size)):
            start, end, label = (values.pop(0) for _ in range(3))
            tier.append((float(start), float(end), label[1:-1].replace('""', '"')))
        assert (tier[0][0], tier[-1][1]) == (float(low), float(high))
        assert all(a[1] == b[0] and a[0] < a[1] for a, b in zip(tier, tier[1:], strict=False))
    return tiers


def read_webvtt(text: str) -> list[tuple[float, float, str]]:
    header, *cues = text.removesuffix("\n").split("\n\n")
    assert re.fullmatch(r"WEBVTT( .*)?", header)
    assert "-->" not in header
    found = []
    for number, cue in enumerate(cues, start=1):
        name, times, payload = cue.split("\n")
        assert name == str(number)
        clock = r"(\d\d+):([0-5]\d):([0-5]\d\.\d{3})"
        match = re.fullmatch(f"{clock} --> {clock}", times)
        assert match is not None
        h1, m1, s1, h2, m2, s2 = map(float, match.groups())
        assert not re.search("<|>|-->", payload)
        assert not re.search("&(?!amp;|lt;|gt;)", payload)
        plain = payload.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        found.append((h1 * 3600 + m1 * 60 + s1, h2 * 3600 + m2 * 60 + s2, plain))
    return found


# --- the formats ------------------------------------------------------------------------------


def test_json_holds_everything() -> None:
    call, broken = json.loads(format_timelines([CALL, BROKEN], "json"))
    assert call == {"path": "call.wav", "duration": 3700.0, "events": CALL.events}
    assert broken == {"path": "broken.wav", "error": BROKEN.error}


def test_csv_has_a_row_an_event_and_a_row_an_error() -> None:
    rows = list(csv.DictReader(io.StringIO(format_timelines([CALL, BROKEN], "csv"))))
    assert list(rows[0]) == ["path", "start", "end", "label", "score", "calm", "tense", "error"]
    assert rows[0] == {
        "path": "call.wav",
        "start": "0.500",
        "end": "3.000",
        "label": "tense",
        "score": "0.750000",
        "calm": "0.250000",
        "tense": "0.750000",
        "error": "",
    }
    assert [row["path"] for row in rows] == ["call.wav"] * 3 + ["broken.wav"]
    assert rows[3]["error"] == BROKEN.error


def test_rttm_has_ten_fields_a_line() -> None:
    assert format_timelines([BROKEN, CALL], "rttm").splitlines() == [
        "SPEAKER call.wav 1 0.500 2.500 <NA> <NA> tense 0.7500 <NA>",
        "SPEAKER call.wav 1 3.000 1.250 <NA> <NA> calm 0.7500 <NA>",
        "SPEAKER call.wav 1 3661.500 0.625 <NA> <NA> tense 1.0000 <NA>",
    ]


def test_textgrid_fills_the_recording_with_intervals() -> None:
    tiers = read_textgrid(format_timelines([CALL], "textgrid"))
    assert tiers["emotion"] == [
        (0.0, 0.5, ""),
        (0.5, 3.0, "tense"),
        (3.0, 4.25, "calm"),
        (4.25, 3661.5, ""),
        (3661.5, 3662.125, "tense"),
        (3662.125, 3700.0, ""),
    ]
    assert [text for _, _, text in tiers["score"]] == ["", "0.7500", "0.7500", "", "1.0000", ""]


def test_webvtt_has_a_cue_an_event() -> None:
    text = format_timelines([CALL], "vtt")
    assert read_webvtt(text) == [
        (0.5, 3.0, "tense (75%)"),
        (3.0, 4.25, "calm (75%)"),
        (3661.5, 3662.125, "tense (100%)"),
    ]
    assert "01:01:01.500 --> 01:01:02.125" in text


def test_a_recording_where_nobody_speaks() -> None:
    silent = Timeline("silent.wav", [], 2.5)
    assert json.loads(format_timelines([silent], "json"))[0]["events"] == []
    lines = format_timelines([silent], "csv").splitlines()
    assert lines == ["path,start,end,label,score,error", "silent.wav,,,,,"]
    assert format_timelines([silent], "rttm") == ""
    assert read_textgrid(format_timelines([silent], "textgrid"))["emotion"] == [(0.0, 2.5, "")]
    assert read_webvtt(format_timelines([silent], "vtt")) == []


def test_a_textgrid_without_duration_ends_with_the_last_event() -> None:
    grid = read_textgrid(format_timelines([Timeline("a", CALL.events)], "textgrid"))
    assert grid["emotion"][-1][1] == 3662.125
    with pytest.raises(ValueError, match="a.wav: .* needs the recording's duration"):
        format_timelines([Timeline("a.wav", [])], "textgrid")


# --- names that want to be something else -------------------------------------------------------


@pytest.mark.parametrize("format", TIMELINE_FORMATS)
@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_a_format(name: str, format: str) -> None:
    text = format_timelines([Timeline(name, [event(0, 1, name), event(1, 2, "calm")], 3)], format)
    text.encode("utf-8")
    if format == "json":
        (item,) = json.loads(text)
        assert [one["end"] for one in item["events"]] == [1, 2]
    elif format == "csv":
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert [row[1:3] for row in rows[1:]] == [["0.000", "1.000"], ["1.000", "2.000"]]
        if "\udcff" not in name:
            plain = name.replace("\0", "\u2400")
            assert rows[1][0] in (plain, f"'{plain}") and rows[1][3] == rows[1][0]
        for row in rows:
            for cell in row:
                assert not re.match(r"\s*[=+@＝＋－＠-]|[\t\r\n]", cell)
    elif format == "rttm":
        first, second = (line.split() for line in text.splitlines())
        assert (len(first), len(second)) == (10, 10)
        assert first[1] == first[7] != ""
        if name.isprintable() and name:
            assert unquote(first[1]) == name
    elif format == "textgrid":
        tiers = read_textgrid(text)
        assert [(start, end) for start, end, _ in tiers["emotion"]] == [(0, 1), (1, 2), (2, 3)]
        if name.isprintable():
            assert tiers["emotion"][0][2] == name
    else:
        assert [cue[:2] for cue in read_webvtt(text)] == [(0, 1), (1, 2)]


@given(st.text(), st.text())
def test_any_name_can_be_written(path: str, label: str) -> None:
    timeline = Timeline(path, [event(0.25, 1, label)], 2)
    for format in TIMELINE_FORMATS:
        format_timelines([timeline], format).encode("utf-8")
    text = format_timelines([timeline], "csv")
    assert "\0" not in text, "the csv module of Python 3.10 refuses it"
    _, row = csv.reader(io.StringIO(text, newline=""))
    shown = path.replace("\0", "\u2400")
    assert (row[1], row[0].removeprefix("'")) == ("0.250", shown.removeprefix("'"))
    assert len(read_webvtt(format_timelines([timeline], "vtt"))) == 1
    assert len(read_textgrid(format_timelines([timeline], "textgrid"))["emotion"]) == 3
    assert len(format_timelines([timeline], "rttm").split()) == 10


# --- what is refused --------------------------------------------------------------------------


def test_an_unknown_format_is_refused() -> None:
    known = "json, csv, rttm, textgrid, vtt"
    with pytest.raises(ValueError, match=f"Unknown timeline format 'xml'. Choose one of {known}"):
        format_timelines([CALL], "xml")


@pytest.mark.parametrize("format", ["textgrid", "vtt"])
def test_a_format_for_one_recording_takes_one_without_error(format: str) -> None:
    for timelines in ([CALL, CALL], []):
        with pytest.raises(ValueError, match="holds one recording, not .* Write one file each"):
            format_timelines(timelines, format)
    with pytest.raises(ValueError, match="broken.wav: cannot be decoded"):
        format_timelines([BROKEN], format)


# --- the timelines of files -------------------------------------------------------------------


def test_files_become_timelines_and_a_bad_one_a_record(tmp_path: Path, speech: np.ndarray) -> None:
    from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
    from timnet_hf.pipeline_timnet import TimNetTimelinePipeline

    soundfile.write(tmp_path / "good.wav", speech, 16_000, subtype="FLOAT")
    (tmp_path / "bad.wav").write_bytes(b"no sound" * 99)
    model = TimNetForAudioClassification(TimNetConfig(hidden_size=4, num_labels=2))
    extractor = TimNetFeatureExtractor()
    paths = [tmp_path / "good.wav", tmp_path / "bad.wav", str(tmp_path / "absent.wav")]
    good, bad, absent = timeline_files(paths, model, extractor, window=1.0)
    pipeline = TimNetTimelinePipeline(model=model, feature_extractor=extractor)
    assert (good.path, good.duration, good.error) == (str(paths[0]), 2.0, None)
    for event, wanted in zip(good.events, pipeline(speech, window=1.0), strict=True):
        assert event["scores"] == pytest.approx(wanted["scores"], abs=1e-6)
        assert [event[key] for key in ("start", "end", "label")] == [
            wanted[key] for key in ("start", "end", "label")
        ]
    for timeline, path in ((bad, paths[1]), (absent, paths[2])):
        assert (timeline.path, timeline.events, timeline.duration) == (str(path), [], None)
        assert timeline.error is not None
        assert Path(path).name in timeline.error


@pytest.mark.parametrize(("options", "message"), [({"hop": 9.0}, "hop"), ({"vad": "x"}, "vad")])
def test_wrong_parameters_are_no_fault_of_a_file(options: dict[str, Any], message: str) -> None:
    from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification

    model = TimNetForAudioClassification(TimNetConfig(hidden_size=4, num_labels=2))
    with pytest.raises(ValueError, match=message):
        list(timeline_files(["absent.wav"], model, TimNetFeatureExtractor(), **options))
