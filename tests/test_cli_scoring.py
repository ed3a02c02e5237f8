# SPDX-License-Identifier: Apache-2.0
"""`timnet score`: what it says, and with what status it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from timnet_hf.scoring import Summary

from .scoring_world import rows, save_model, write_sounds
from .timnet_command import Timnet, in_this_process


@pytest.fixture
def timnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Timnet:
    return in_this_process(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_says_what_it_has_done_and_what_it_could_not(
    timnet: Timnet, model: Path, tmp_path: Path
) -> None:
    sounds = write_sounds(tmp_path / "in", 3)
    (sounds / "clip1a.wav").write_bytes(b"")
    output = tmp_path / "out.parquet"

    ended = timnet("score", sounds, "--output", output, "--model", model, "--workers", 1)

    assert ended.status == 0, ended.err  # the table is whole
    assert ended.out == f"4 recordings in {output}\n"
    assert "1 of them have no scores; the column `error` says why" in ended.message
    assert len(rows(output)) == 4

    again = timnet("score", sounds, "--output", output, "--model", model)
    assert (again.status, again.out) == (0, ended.out)


def test_what_is_asked_for_reaches_the_scoring(
    timnet: Timnet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def scored(source: Path, output: Path, model: str, **options: Any) -> Summary:
        asked.update(options)
        return Summary(output, rows=7, errors=0)

    monkeypatch.setattr("timnet_hf.scoring.score", scored)
    options = {"engine": "ray", "address": "h:1", "workers": 2, "shard_size": 9}
    options |= {"batch_size": 3, "audio_column": "sound"}
    words = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]

    ended = timnet("score", tmp_path, "-o", tmp_path / "out.parquet", "-m", model, *sum(words, ()))

    assert ended.status == 0 and ended.out.startswith("7 recordings in ")
    assert {name: asked[name] for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "spark"), "Unknown engine 'spark': local, ray."),
        (("--address", "h:1"), "add --engine ray"),
        (("--shard-size", 0), "Invalid value for '--shard-size'"),
    ],
)
def test_refuses_what_makes_no_sense(
    timnet: Timnet, model: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    ended = timnet(
        "score", tmp_path, "--output", tmp_path / "out.parquet", "--model", model, *options
    )

    assert ended.status == 2
    assert message in ended.message


def test_an_input_that_is_not_there_is_named(timnet: Timnet, model: Path, tmp_path: Path) -> None:
    ended = timnet("score", tmp_path / "no.csv", "-o", tmp_path / "out.parquet", "--model", model)

    assert ended.status == 2
    assert "no.csv: no such file or folder; check the path" in ended.err.replace("\n", "")
    assert not list(tmp_path.iterdir())
