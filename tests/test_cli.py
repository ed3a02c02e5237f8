# SPDX-License-Identifier: Apache-2.0
"""The `timnet` command as a user meets it: what it prints, and the status it ends with."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer

from timnet_hf import __version__, cli
from timnet_hf.hub import Change, PublishResult

from .model_folders import LABELS, write_model_folder
from .test_conversion import keras_layers, make_model
from .test_conversion import write as write_keras
from .timnet_command import Ended, Timnet, in_this_process

COMMANDS = tuple(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def timnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Timnet:
    return in_this_process(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def clips(tmp_path: Path, speech: np.ndarray) -> Path:
    """A folder of three recordings, the second of which is none."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    soundfile.write(folder / "1.wav", speech, 16_000)
    (folder / "2.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "more" / "3.flac", speech[:8000], 16_000)
    (folder / "notes.txt").write_text("not audio")
    return folder


class TestHelp:
    def test_names_every_command(self, timnet: Timnet) -> None:
        ended = timnet("--help")

        assert ended.status == 0
        assert len(COMMANDS) >= 12 and all(command in ended.out for command in COMMANDS)

    @pytest.mark.parametrize("command", [*COMMANDS, "corpora check", "corpora download"])
    def test_every_command_explains_itself(self, command: str, timnet: Timnet) -> None:
        ended = timnet(*command.split(), "--help")

        assert ended.status == 0
        assert "Usage" in ended.out

    def test_comes_without_loading_a_heavy_library(self, tmp_path: Path) -> None:
        """Loading torch takes seconds; nobody who asks for help should wait for it."""
        script = """
import sys
sys.argv = ["timnet", *sys.argv[1:]]
from timnet_hf.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "torchaudio", "transformers", "datasets", "evaluate", "sklearn", "matplotlib"}
heavy |= {"gradio", "ray", "onnxruntime", "h5py", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""
        for arguments in (["--help"], ["train", "--help"], ["--version"], ["corpora"]):
            done = subprocess.run(
                [sys.executable, "-c", script, *arguments],
                cwd=Path(cli.__file__).parents[1],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == "[]", arguments

    def test_version(self, timnet: Timnet) -> None:
        assert timnet("--version") == Ended(0, f"{__version__}\n", "")


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("frobnicate", "No such command"),
            ("predict", "Missing argument"),
            ("predict a.wav --no-such-option", "No such option"),
            ("predict a.wav --top-k 0", "top-k"),
            ("predict a.wav --top-k many", "top-k"),
            ("train --data-dir x", "--output-dir"),
            ("cross-validate --data-dir x --jobs 0", "jobs"),
            ("cross-validate --data-dir x --folds 1", "folds"),
            ("corpora check emodb", "--data-dir"),
        ],
    )
    def test_ends_with_status_2_and_says_why(
        self, arguments: str, said: str, timnet: Timnet
    ) -> None:
        ended = timnet(*arguments.split())

        assert ended.status == 2
        assert said in ended.message

    def test_a_fault_of_ours_is_not_dressed_up(
        self, timnet: Timnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("timnet_hf.audio.find_audio_files", None)

        with pytest.raises(TypeError):
            timnet("predict", tmp_path)

    def test_ctrl_c_ends_with_status_130(
        self, timnet: Timnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("timnet_hf.audio.find_audio_files", stop)

        ended = timnet("predict", tmp_path)

        assert (ended.status, ended.err.split()) == (130, ["stopped"])


class TestPredict:
    def test_prints_a_table(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips / "1.wav", clips / "more", "--model", model)

        assert ended.status == 0
        assert re.search(r"^1\.wav +2\.0 +\w+ +█+ \d+%", ended.out, re.MULTILINE)
        assert re.search(r"^3\.flac +0\.5 +\w+ +█+ \d+%", ended.out, re.MULTILINE)
        assert ended.err == ""

    @pytest.mark.parametrize("output_format", ["table", "json", "csv"])
    def test_a_bad_file_is_told_and_the_others_scored(
        self, output_format: str, timnet: Timnet, model: Path, clips: Path
    ) -> None:
        ended = timnet("predict", clips, "--model", model, "--format", output_format)

        assert ended.status == 2
        assert ended.out.index("1.wav") < ended.out.index("2.wav") < ended.out.index("3.flac")
        assert "notes.txt" not in ended.out

    def test_json_can_be_parsed(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips, "-m", model, "--format", "json", "--top-k", 2)

        first, bad, third = json.loads(ended.out)
        assert first["path"] == str(clips / "1.wav")
        assert first["label"] in LABELS
        assert len(first["scores"]) == len(third["scores"]) == 2
        assert "2.wav" in bad["error"] and "label" not in bad

    def test_csv_can_be_parsed(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips, "-m", model, "--format", "csv")

        first, bad, third = csv.DictReader(io.StringIO(ended.out))
        assert sum(float(first[name]) for name in LABELS) == pytest.approx(1, abs=1e-5)
        assert float(third["score"]) == max(float(third[name]) for name in LABELS)
        assert bad["error"] and not bad["label"]

    def test_a_file_that_is_not_there(self, timnet: Timnet, model: Path, tmp_path: Path) -> None:
        ended = timnet("predict", tmp_path / "gone.wav", "-m", model, "--format", "json")

        assert ended.status == 2
        assert "gone.wav" in json.loads(ended.out)[0]["error"]

    def test_a_folder_without_recordings(self, timnet: Timnet, model: Path, tmp_path: Path) -> None:
        ended = timnet("predict", tmp_path, "-m", model)

        assert ended.status == 2
        assert f"{tmp_path}: no recordings; give files or a folder" in ended.message

    def test_a_model_that_is_not_there(self, timnet: Timnet, clips: Path, tmp_path: Path) -> None:
        ended = timnet("predict", clips, "--model", tmp_path / "gone")

        assert ended.status == 2
        assert ended.out == ""
        assert f"error: {tmp_path / 'gone'}: not a folder." in ended.message

    @pytest.mark.parametrize("more", [[], ["--segments"]])
    def test_an_unknown_format(
        self, more: list[str], timnet: Timnet, model: Path, clips: Path
    ) -> None:
        ended = timnet("predict", clips, "-m", model, "--format", "xml", *more)

        assert ended.status == 2
        assert "format 'xml'. Choose one of table, json, csv" in ended.message

    def test_segments_make_a_timeline(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips / "1.wav", "-m", model, "--segments", "--format", "json")

        assert ended.status == 0
        (timeline,) = json.loads(ended.out)
        assert timeline["duration"] == pytest.approx(2.0)
        assert all(event["label"] in LABELS for event in timeline["events"])

    def test_segments_are_cut_as_asked_for(self, timnet: Timnet, model: Path, clips: Path) -> None:
        finer = ("--window", 0.4, "--hop", 0.2, "--vad", "energy")
        for options, said in (
            (finer, None),
            (("--vad", "magic"), "Unknown vad 'magic'. Choose one of energy, silero"),
            (("--hop", 9), "hop must be at least 0.05 s and window at least hop"),
        ):
            ended = timnet(
                *("predict", clips / "1.wav", "-m", model, "--segments", "--format", "csv"),
                *options,
            )
            assert (ended.status == 2) == (said is not None)
            assert said is None or said in ended.message

    def test_what_is_said_of_windows_reaches_the_timeline(
        self, timnet: Timnet, model: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(
            "timnet_hf.timeline_formats.timeline_recordings",
            lambda *_, **options: asked.append(options) or [],
        )
        timnet(
            *("predict", clips / "1.wav", "-m", model, "--segments"),
            *("--window", 0.4, "--hop", 0.2, "--vad", "energy"),
        )
        assert asked == [{"window": 0.4, "hop": 0.2, "vad": "energy"}]

    def test_segments_of_a_bad_file(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips, "-m", model, "--segments", "--format", "csv")

        assert ended.status == 2
        rows = list(csv.DictReader(io.StringIO(ended.out)))
        assert {Path(row["path"]).name for row in rows} == {"1.wav", "2.wav", "3.flac"}


class TestCorpora:
    def test_are_listed(self, timnet: Timnet) -> None:
        ended = timnet("corpora")

        assert ended.status == 0
        assert "emodb  http://emodb.bilderbar.info" in ended.out
        for name in ("casia", "emodb", "emovo", "iemocap", "ravdess", "savee"):
            assert name in ended.out

    def test_an_unknown_corpus(self, timnet: Timnet, tmp_path: Path) -> None:
        for command in ("check", "download"):
            ended = timnet("corpora", command, "klingon", "--data-dir", tmp_path)
            assert ended.status == 2
            assert "unknown corpus 'klingon'" in ended.message

    def test_whom_to_ask_for_a_corpus_needs_no_folder(self, timnet: Timnet) -> None:
        ended = timnet("corpora", "download", "casia")
        assert ended.status == 2 and "CASIA cannot be downloaded by everybody" in ended.message
        ended = timnet("corpora", "download", "emodb")
        assert ended.status == 2 and "--data-dir" in ended.message

    def test_a_copy_that_is_not_as_published(self, timnet: Timnet, tmp_path: Path) -> None:
        (tmp_path / "wav").mkdir()
        soundfile.write(tmp_path / "wav" / "03a01Fa.wav", np.zeros(1600), 16_000)

        ended = timnet("corpora", "check", "emodb", "--data-dir", tmp_path)

        assert ended.status == 2
        assert "NOT as published" in ended.out
        assert "recordings: 1 of 535" in ended.out


class TestConvert:
    def test_a_file_that_is_no_checkpoint(self, timnet: Timnet, tmp_path: Path) -> None:
        weights = tmp_path / "weights.hdf5"
        weights.write_bytes(b"not HDF5")

        ended = timnet("convert", weights, "--labels", "a,b", "--output-dir", tmp_path / "m")

        assert ended.status == 2
        assert "weights.hdf5" in ended.message
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(("asked", "length"), [((), 96_000), (("--corpus", "CASIA"), 88_000)])
    def test_clips_are_as_long_as_those_of_the_corpus(
        self, timnet: Timnet, tmp_path: Path, asked: tuple[str, ...], length: int
    ) -> None:
        layers = keras_layers(make_model(num_labels=len(LABELS)))
        write_keras(tmp_path / "weights.hdf5", layers)
        said = ("--labels", ",".join(LABELS), "--output-dir", tmp_path / "m", *asked)

        assert timnet("convert", tmp_path / "weights.hdf5", *said).status == 0

        saved = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
        assert saved["num_samples"] == length


class TestPublish:
    def test_a_folder_that_is_no_model(self, timnet: Timnet, tmp_path: Path) -> None:
        ended = timnet("publish", "--model", tmp_path, "--repo-id", "ann/timnet", "--dry-run")

        assert ended.status == 2
        assert str(tmp_path) in ended.message

    @pytest.mark.parametrize(
        ("result", "said"),
        [
            ({"commit": "abc", "url": "https://hub/ann/t"}, "published: https://hub/ann/t"),
            ({"changes": ()}, "ann/t is up to date"),
            ({"folder": Path("out")}, "nothing was pushed; out holds what would be"),
        ],
    )
    def test_says_what_became_of_it(
        self,
        result: dict[str, Any],
        said: str,
        timnet: Timnet,
        model: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked: list[Any] = []

        def publish(*arguments: Any, **options: Any) -> PublishResult:
            asked.append((arguments, options))
            changes = (Change("config.json", "changed", "-[old]\n+[new]"),)
            return PublishResult(**{"repo_id": "ann/t", "changes": changes, **result})

        monkeypatch.setattr("timnet_hf.hub.publish", publish)

        ended = timnet("publish", "-m", model, "--repo-id", "ann/t", "--private")

        assert ended.status == 0
        assert asked == [((model, "ann/t"), {"private": True, "dry_run": False})]
        assert ended.out.splitlines()[-1] == said
        if "changes" not in result:
            assert "-[old]\n+[new]" in ended.out

    def test_the_page_is_published_with_what_was_asked_for(
        self, timnet: Timnet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def publish_space(*arguments: Any, **options: Any) -> PublishResult:
            asked.append((arguments, options))
            return PublishResult("ann/demo", (), folder=Path("out"), note="ann/m is private")

        monkeypatch.setattr("timnet_hf.hub.publish_space", publish_space)

        ended = timnet(
            "publish-space", "--repo-id", "ann/demo", "--model-repo", "ann/m", "--dry-run"
        )

        assert (ended.status, ended.message) == (0, "ann/m is private")
        assert asked == [(("ann/demo", "ann/m"), {"private": False, "dry_run": True})]

    def test_an_unknown_metric(self, timnet: Timnet) -> None:
        ended = timnet("publish-metric", "f1", "--repo-id", "ann/f1", "--dry-run")

        assert ended.status == 2
        assert "'f1' is not a metric; choose one of uar, war" in ended.message


def test_the_page_is_opened_with_what_was_asked_for(
    timnet: Timnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("timnet_hf.space.launch_space", lambda *now: asked.append(now) or 3)

    assert timnet("space", "--model", "m", "--port", 7861).status == 3
    assert asked == [("m", 7861)]
