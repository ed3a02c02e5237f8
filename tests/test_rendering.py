# SPDX-License-Identifier: Apache-2.0
"""Predictions as text: programs can read it, people are shown what is there, nothing is run."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from timnet_hf.corpora import CORPORA
from timnet_hf.prediction import Prediction
from timnet_hf.rendering import render_corpora, render_predictions, render_timelines
from timnet_hf.timeline_formats import TIMELINE_FORMATS, Timeline, format_timelines

GOOD = Prediction("calls/a.wav", {"sad": 0.7, "angry": 0.2, "happy": 0.1}, duration=1.25)
QUIET = Prediction("b.wav", {"angry": 0.4, "sad": 0.35, "happy": 0.25}, duration=3.0, silent=True)
BAD = Prediction("c.wav", {}, error="c.wav: is empty; record it again")


def rendered(
    output_format: str, *predictions: Prediction, top_k: int = 3, encoding: str = "utf-8"
) -> tuple[str, list[bool]]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console = Console(file=file, width=120)
    failed = list(render_predictions(predictions, output_format, top_k, console))
    file.flush()
    return raw.getvalue().decode(encoding), failed


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_every_format_says_which_recordings_failed(output_format: str) -> None:
    assert rendered(output_format, GOOD, BAD, QUIET)[1] == [False, True, False]


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown format 'xml'.*table, json, csv"):
        rendered("xml", GOOD)


class TestJson:
    def test_is_one_array_of_records(self) -> None:
        text, _ = rendered("json", GOOD, BAD, QUIET)

        good, bad, quiet = json.loads(text)
        assert good == {
            "path": "calls/a.wav",
            "label": "sad",
            "score": 0.7,
            "duration": 1.25,
            "silent": False,
            "scores": [
                {"label": "sad", "score": 0.7},
                {"label": "angry", "score": 0.2},
                {"label": "happy", "score": 0.1},
            ],
        }
        assert bad == {"path": "c.wav", "error": "c.wav: is empty; record it again"}
        assert quiet["silent"] is True

    @pytest.mark.parametrize(("top_k", "shown"), [(1, 1), (2, 2), (9, 3)])
    def test_lists_as_many_labels_as_were_asked_for(self, top_k: int, shown: int) -> None:
        (record,) = json.loads(rendered("json", GOOD, top_k=top_k)[0])

        assert len(record["scores"]) == shown

    def test_of_nothing_is_an_empty_array(self) -> None:
        assert json.loads(rendered("json")[0]) == []

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
    @pytest.mark.parametrize(
        "path", ['a"b\\c\nd.wav', "日本.wav", "\U0001f600.wav", "caf\udce9.wav"]
    )
    def test_any_name_comes_back_as_it_was(self, path: str, encoding: str) -> None:
        text, _ = rendered("json", Prediction(path, GOOD.scores), encoding=encoding)

        assert json.loads(text)[0]["path"] == path

    def test_readable_names_stay_readable(self) -> None:
        assert "größe.wav" in rendered("json", Prediction("größe.wav", GOOD.scores))[0]


class TestCsv:
    def test_has_a_row_for_each_recording_and_a_column_for_each_label(self) -> None:
        text, _ = rendered("csv", GOOD, BAD, QUIET)

        good, bad, quiet = rows(text)
        assert list(good) == ["path", "label", "score", "angry", "happy", "sad", "error"]
        assert good["label"] == "sad"
        assert (good["score"], good["sad"], good["happy"]) == ("0.700000", "0.700000", "0.100000")
        assert quiet["score"] == quiet["angry"] == "0.400000"
        assert bad["error"] == "c.wav: is empty; record it again"
        assert bad["label"] == bad["score"] == bad["sad"] == ""

    def test_recordings_that_failed_first_keep_their_place(self) -> None:
        text, failed = rendered("csv", BAD, BAD, GOOD)

        assert [row["path"] for row in rows(text)] == ["c.wav", "c.wav", "calls/a.wav"]
        assert failed == [True, True, False]

    def test_with_failures_alone_still_has_a_header(self) -> None:
        (row,) = rows(rendered("csv", BAD)[0])

        assert row == {"path": "c.wav", "label": "", "score": "", "error": BAD.error}

    def test_is_written_as_it_comes(self) -> None:
        file = io.StringIO()
        console = Console(file=file)

        def predictions() -> object:
            yield GOOD
            assert len(file.getvalue().splitlines()) == 2
            yield GOOD

        assert list(render_predictions(predictions(), "csv", 1, console)) == [False, False]

    @pytest.mark.parametrize(
        "path", ["=1+1.wav", "+x.wav", "-x.wav", "@SUM(A1).wav", " =1.wav", "＝1.wav", "\tx", "\rx"]
    )
    def test_no_cell_is_a_formula(self, path: str) -> None:
        bad = Prediction(path, {}, error=f"{path}: is empty")
        labelled = Prediction("a.wav", {'=HYPERLINK("http://x")': 0.9, "b": 0.1})

        text, _ = rendered("csv", labelled, Prediction(path, labelled.scores), bad)

        table = list(csv.reader(io.StringIO(text, newline="")))
        assert len(table) == 4
        cells = [cell for row in table for cell in row]
        assert "'" + path in cells
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "＝")) for cell in cells)

    @pytest.mark.parametrize("path", ['a,"b".wav', "two\nlines.wav", "日本.wav"])
    def test_odd_names_stay_in_their_cell(self, path: str) -> None:
        text, _ = rendered("csv", Prediction(path, GOOD.scores), GOOD)

        assert [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))] == [
            path,
            "calls/a.wav",
        ]

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_names_that_cannot_be_encoded_are_escaped(self, encoding: str) -> None:
        text, _ = rendered("csv", Prediction("caf\udce9.wav", GOOD.scores), encoding=encoding)

        assert rows(text)[0]["path"] == r"caf\udce9.wav"


class TestTable:
    def test_shows_the_label_its_share_and_what_comes_next(self) -> None:
        _, line, *_ = rendered("table", GOOD)[0].splitlines()

        assert line.split() == [
            "a.wav",
            "1.2",
            "sad",
            "██████",
            "70%",
            "angry",
            "20%,",
            "happy",
            "10%",
        ]

    def test_shows_as_many_labels_as_were_asked_for(self) -> None:
        text, _ = rendered("table", GOOD, top_k=2)

        assert "angry" in text and "happy" not in text

    def test_says_what_is_silence_and_what_failed(self) -> None:
        _, quiet, bad = rendered("table", QUIET, BAD)[0].splitlines()

        assert quiet.rstrip().endswith("silence")
        assert bad.split("error")[1].strip() == "c.wav: is empty; record it again"

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("[red]a.wav", "[red]a.wav"),
            ("[bold].wav", "[bold].wav"),
            (":smile:.wav", ":smile:.wav"),
            ("back\\.wav", "back\\.wav"),
            ("größe 日本.wav", "größe 日本.wav"),
            ("two\nlines.wav", r"two\nlines.wav"),
            ("\x1b[31mred\x07.wav", r"\x1b[31mred\x07.wav"),
            ("caf\udce9.wav", r"caf\udce9.wav"),
            ("\u202egnp.wav", r"\u202egnp.wav"),
        ],
    )
    def test_odd_names_are_shown_and_do_nothing(self, path: str, shown: str) -> None:
        good = Prediction(f"folder/{path}", GOOD.scores, 1.0)
        bad = Prediction(path, {}, error=f"{path}: is empty")

        text, _ = rendered("table", good, bad)

        lines = text.splitlines()
        assert len(lines) == 3
        assert lines[1].startswith(shown)
        assert f"{shown}: is empty" in lines[2]
        assert "\x1b" not in text

    def test_labels_are_shown_as_they_are(self) -> None:
        text, _ = rendered("table", Prediction("a.wav", {"[b]": 0.9, ":x:": 0.1}, 1.0))

        assert "[b]" in text and ":x: 10%" in text

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_any_output_can_hold_it(self, encoding: str) -> None:
        text, _ = rendered("table", Prediction("日本.wav", GOOD.scores), GOOD, encoding=encoding)

        assert r"\u65e5\u672c.wav" in text
        assert "###### 70%" in text


EVENTS = [
    {"start": 0.5, "end": 3.0, "label": "sad", "score": 0.75, "scores": {"sad": 0.75}},
    {"start": 61.0, "end": 62.5, "label": "[b]:x:", "score": 0.5, "scores": {"[b]:x:": 0.5}},
]
CALL = Timeline("calls/[red]a.wav", EVENTS, duration=63.0)
MUTE = Timeline("mute.wav", [], duration=4.0)
LOST = Timeline("c.wav", [], error="c.wav: is empty; record it again")


def timelines(output_format: str, *shown: Timeline) -> tuple[str, str, list[bool]]:
    out, err = (Console(file=io.StringIO(), width=120) for _ in range(2))
    failed = list(render_timelines(shown, output_format, out, err))
    return out.file.getvalue(), err.file.getvalue(), failed  # type: ignore[attr-defined]


class TestTimelines:
    @pytest.mark.parametrize("output_format", ["table", *TIMELINE_FORMATS])
    def test_every_format_says_which_recordings_failed(self, output_format: str) -> None:
        assert timelines(output_format, CALL, LOST, MUTE)[2] == [False, True, False]

    def test_a_table_has_a_line_for_each_event(self) -> None:
        text, _, _ = timelines("table", CALL, MUTE, LOST)

        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert lines == [
            "[red]a.wav",
            "0.50 to 3.00 s sad ██████ 75%",
            "61.00 to 62.50 s [b]:x: ████ 50%",
            "mute.wav",
            "no speech",
            "c.wav",
            "error c.wav: is empty; record it again",
        ]

    @pytest.mark.parametrize("output_format", ["json", "csv", "rttm"])
    def test_formats_for_many_recordings_hold_them_all(self, output_format: str) -> None:
        text, err, _ = timelines(output_format, CALL, LOST)

        assert text == format_timelines([CALL, LOST], output_format)
        assert err == ""

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
    def test_any_name_comes_back_from_json_as_it_was(self, encoding: str) -> None:
        raw = io.BytesIO()
        out = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=120)
        named = Timeline("é \U0001f600.wav", EVENTS, duration=63.0)

        list(render_timelines([named], "json", out, out))
        out.file.flush()

        (found,) = json.loads(raw.getvalue().decode(encoding))
        assert found["path"] == named.path

    @pytest.mark.parametrize("output_format", ["vtt", "textgrid"])
    def test_formats_for_one_recording_tell_errors_apart(self, output_format: str) -> None:
        text, err, _ = timelines(output_format, CALL, LOST)

        assert text == format_timelines([CALL], output_format)
        assert err == "c.wav: is empty; record it again\n"

    def test_an_unknown_format_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(
            ValueError, match="Unknown timeline format 'srt'.*table, json, csv, rttm"
        ):
            timelines("srt", CALL)


def test_the_table_of_corpora_has_them_all() -> None:
    console = Console(file=io.StringIO(), width=200)

    render_corpora(console)

    text = console.file.getvalue()  # type: ignore[attr-defined]
    for corpus in CORPORA.values():
        assert corpus.name in text
        assert str(corpus.n_files) in text
