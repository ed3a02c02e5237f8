# SPDX-License-Identifier: Apache-2.0
"""The `timnet` command as a user meets it: what it prints, and the status it ends with."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import timnet_hf.training
from timnet_hf import __version__, cli, reporting
from timnet_hf.hub import Change, PublishResult
from timnet_hf.recipes import RECIPES
from timnet_hf.training import ProgressReport

from .model_folders import LABELS, write_model_folder
from .tiny_training import tiny_recipe, write_recordings

COMMANDS = ("predict", "train", "convert", "cross-validate", "publish", "space", "corpora")


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What was said of an error, on one line."""
        return " ".join(self.err.split())


Timnet = Callable[..., Ended]


@pytest.fixture
def timnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Timnet:
    """Run the command in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["timnet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code
        return Ended(int(status or 0), *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default recipe and a bootstrap that take no time."""
    monkeypatch.setitem(RECIPES, "default", replace(tiny_recipe(), name="default"))
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 20)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a training started")

    monkeypatch.setattr(timnet_hf.training, "train", refuse)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own recordings, two labels by two speakers, listed in a metadata.csv."""
    return write_recordings(tmp_path_factory.mktemp("data") / "own", metadata=True)


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
        assert all(command in ended.out for command in COMMANDS)

    @pytest.mark.parametrize("command", [*COMMANDS, "publish-metric", "corpora check"])
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
        self, timnet: Timnet, monkeypatch: pytest.MonkeyPatch, own: Path, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(timnet_hf.training, "train", lambda *_, **__: None)

        with pytest.raises(AttributeError):
            timnet("train", "--data-dir", own, "--output-dir", tmp_path / "m")

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

    def test_segments_of_a_bad_file(self, timnet: Timnet, model: Path, clips: Path) -> None:
        ended = timnet("predict", clips, "-m", model, "--segments", "--format", "csv")

        assert ended.status == 2
        rows = list(csv.DictReader(io.StringIO(ended.out)))
        assert {Path(row["path"]).name for row in rows} == {"1.wav", "2.wav", "3.flac"}


class TestTrain:
    def test_then_predict_with_what_it_made(
        self, timnet: Timnet, own: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "a model"

        ended = timnet(
            *("train", "--data-dir", own, "--output-dir", folder, "--seed", 4),
            *("--num-train-epochs", 1, "--learning_rate", "1e-3", "--warmup-steps=0"),
        )

        assert ended.status == 0, ended.err
        assert "own: 8 recordings, recipe default, seed 4" in ended.err
        assert (
            ended.out == f"model in {folder}\ntry it: timnet predict --model '{folder}' your.wav\n"
        )
        record = json.loads((folder / "training_record.json").read_text())
        assert record["overrides"] == {
            "num_train_epochs": 1.0,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
        }
        assert record["seed"] == 4
        assert record["command"] == (
            "timnet train --data-dir own --output-dir 'a model' --seed 4 "
            "--num-train-epochs 1 --learning_rate 1e-3 --warmup-steps=0"
        )

        ended = timnet("predict", own, "--model", folder, "--format", "json")

        assert ended.status == 0
        assert {one["label"] for one in json.loads(ended.out)} <= {"angry", "happy"}

    def test_takes_one_sub_folder_a_class_in_any_format(
        self, timnet: Timnet, tmp_path: Path
    ) -> None:
        data = write_recordings(tmp_path / "data", per_class=2)
        sound = np.random.default_rng(0).uniform(-0.3, 0.3, (22_050, 2))
        for name in ("angry/x.flac", "happy/y.ogg", "happy/deeper/z.mp3"):
            (data / name).parent.mkdir(exist_ok=True)
            soundfile.write(data / name, sound, 44_100)

        ended = timnet(
            *("train", "--data-dir", data, "--output-dir", tmp_path / "m"),
            *("--num-train-epochs", 1),
        )

        assert ended.status == 0, ended.err
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        assert config["id2label"] == {"0": "angry", "1": "happy"}
        record = json.loads((tmp_path / "m" / "training_record.json").read_text())
        assert record["data"]["files"] == 7

    def test_ctrl_c_keeps_a_checkpoint_that_resume_goes_on_from(
        self, timnet: Timnet, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def train(folder: str, *more: str) -> Ended:
            where = ("--data-dir", own, "--output-dir", tmp_path / folder)
            return timnet("train", *where, "--num-train-epochs", 3, *more)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert train("whole").status == 0
        with monkeypatch.context() as patch:

            def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 5:
                    raise KeyboardInterrupt

            patch.setattr(ProgressReport, "on_step_end", stop)
            ended = train("stopped")

        assert ended.status == 130
        checkpoints = tmp_path / "stopped" / "trainer"
        assert f"The last checkpoint is in {checkpoints}; go on with --resume." in ended.message
        assert ended.message.endswith("stopped")
        again = train("stopped")
        assert again.status == 2
        assert "holds checkpoints of an unfinished training" in again.message

        assert train("stopped", "--resume").status == 0
        torch.set_num_threads(threads)

        one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "stopped"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("--no-such-flag 3", "unrecognized arguments: --no_such_flag 3"),
            ("--num-train-epochs many", "invalid float value: 'many'"),
            ("stray", "unrecognized arguments: stray"),
            ("--lr-scheduler-type wavy", "invalid choice"),
            ("--recipe best", "Unknown recipe 'best'"),
            ("--corpus klingon", "unknown corpus 'klingon'"),
            ("--corpus emodb", "no recording"),
            ("--resume", "no checkpoint to resume from"),
        ],
    )
    def test_what_cannot_be_done_is_said_before_any_training(
        self,
        more: str,
        said: str,
        timnet: Timnet,
        own: Path,
        tmp_path: Path,
        no_training: None,
    ) -> None:
        folder = tmp_path / "m"

        ended = timnet("train", "--data-dir", own, "--output-dir", folder, *more.split())

        assert ended.status == 2
        assert said.lower() in ended.message.lower()
        assert len(ended.err) < 2000  # no list of all flags
        assert not folder.exists()

    def test_data_that_cannot_be_learnt_from(
        self, timnet: Timnet, tmp_path: Path, no_training: None
    ) -> None:
        one_class = write_recordings(tmp_path / "one", labels=["sad"])
        empty_class = write_recordings(tmp_path / "empty")
        (empty_class / "sad").mkdir()
        bad_file = write_recordings(tmp_path / "bad")
        (bad_file / "angry" / "2.wav").write_bytes(b"")
        (tmp_path / "nothing").mkdir()

        for data, said in {
            one_class: "needs two classes",
            empty_class: "the class 'sad' is empty",
            bad_file: str(Path("angry", "2.wav")),
            tmp_path / "nothing": "neither a metadata.csv nor sub-folders",
            tmp_path / "gone": "gone",
        }.items():
            ended = timnet("train", "--data-dir", data, "--output-dir", tmp_path / "m")
            assert ended.status == 2
            assert said in ended.message

    def test_an_output_that_is_a_file(
        self, timnet: Timnet, own: Path, tmp_path: Path, no_training: None
    ) -> None:
        (tmp_path / "m").write_text("mine")

        ended = timnet("train", "--data-dir", own, "--output-dir", tmp_path / "m")

        assert ended.status == 2
        assert (tmp_path / "m").read_text() == "mine"


class TestCrossValidate:
    def test_prints_the_figures_and_where_the_report_is(
        self, timnet: Timnet, own: Path, tmp_path: Path
    ) -> None:
        results = tmp_path / "results"

        ended = timnet(*("cross-validate", f"--data-dir={own}", "--seeds", 1, "--results", results))

        assert ended.status == 0, ended.err
        report = json.loads((results / "own/loso/default/report.json").read_text())
        assert report["seeds"] == [0]
        assert report["command"] == (
            "timnet cross-validate --data-dir=own --seeds 1 --results results"
        )
        assert ended.out.splitlines() == [
            f"UAR {report['uar']['pooled']:.2f} %  (plain SVC {report['baseline']['uar']:.2f} %)",
            f"WAR {report['war']['pooled']:.2f} %  (plain SVC {report['baseline']['war']:.2f} %)",
            f"report in {results / 'own/loso/default'}",
        ]

    def test_switches_reach_the_run(self, timnet: Timnet, own: Path, tmp_path: Path) -> None:
        ended = timnet(
            *("cross-validate", "--data-dir", own, "--results", tmp_path, "--seeds", 2),
            *("--protocol", "group", "--group-by", "room", "--folds", 2),
            *("--ablation", "no-backward", "--select", "best-on-test"),
        )

        assert ended.status == 0, ended.err
        folder = tmp_path / "own/group/default-no-backward-best-on-test"
        report = json.loads((folder / "report.json").read_text())
        assert report["seeds"] == [0, 1]
        assert report["n_folds"] == 2
        assert report["leaks_test_fold"] is True
        fixed = json.loads((folder / "run.json").read_text())["fixed"]
        assert fixed["config"] == {"bidirectional": False}

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("--protocol bootstrap", "unknown protocol 'bootstrap'"),
            ("--protocol loto", "sentence"),
            ("--protocol group", "column to group by"),
            ("--protocol group --group-by speaker --folds 5", "cannot make 5 folds"),
            ("--protocol kfold --folds 9", "8 recordings cannot make 9 folds"),
            ("--corpus klingon", "unknown corpus 'klingon'; known are casia, emodb"),
            ("--recipe best", "Unknown recipe 'best'"),
            ("--ablation no-sound", "Unknown ablation 'no-sound'"),
            ("--select luckiest", "Unknown --select 'luckiest': last-epoch, best-on-test"),
            ("--seeds 0", "seeds"),
        ],
    )
    def test_what_cannot_be_done_is_said_before_any_training(
        self,
        more: str,
        said: str,
        timnet: Timnet,
        own: Path,
        tmp_path: Path,
        no_training: None,
    ) -> None:
        results = tmp_path / "results"

        ended = timnet("cross-validate", "--data-dir", own, "--results", results, *more.split())

        assert ended.status == 2
        assert said in ended.message
        assert not results.exists()

    def test_speakers_that_do_not_allow_it(
        self, timnet: Timnet, tmp_path: Path, no_training: None
    ) -> None:
        unknown = write_recordings(tmp_path / "unknown")
        single = write_recordings(tmp_path / "single", metadata=True)
        table = single / "metadata.csv"
        table.write_text(table.read_text().replace(",b,", ",a,"))
        alone = write_recordings(tmp_path / "alone", metadata=True)
        table = alone / "metadata.csv"
        text = re.sub(r"(angry\d.wav,angry),\w", r"\1,a", table.read_text())
        table.write_text(re.sub(r"(happy\d.wav,happy),\w", r"\1,b", text))

        for data, said in {
            unknown: "the speaker of 8 of 8 recordings is unknown",
            single: "the only speaker is a; leaving one out takes at least two",
            alone: "speaker-a: all recordings of angry are on the test side",
        }.items():
            ended = timnet("cross-validate", "--data-dir", data, "--results", tmp_path / "r")
            assert ended.status == 2
            assert said in ended.message

    def test_a_changed_configuration_is_refused(
        self,
        timnet: Timnet,
        own: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> None:
        run = ("cross-validate", "--data-dir", own, "--results", tmp_path, "--seeds", 1)
        assert timnet(*run).status == 0
        changed = replace(tiny_recipe(learning_rate=0.5), name="default")
        monkeypatch.setitem(RECIPES, "default", changed)
        request.getfixturevalue("no_training")

        ended = timnet(*run)

        assert ended.status == 2
        assert "holds a run with another recipe. Move it away" in ended.message

    def test_ctrl_c_ends_with_status_130(
        self, timnet: Timnet, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(timnet_hf.training, "train", stop)

        ended = timnet("cross-validate", "--data-dir", own, "--results", tmp_path / "r")

        assert ended.status == 130
        assert ended.message.endswith("stopped")


class TestCorpora:
    def test_are_listed(self, timnet: Timnet) -> None:
        ended = timnet("corpora")

        assert ended.status == 0
        for name in ("casia", "emodb", "emovo", "iemocap", "ravdess", "savee"):
            assert name in ended.out

    def test_an_unknown_corpus(self, timnet: Timnet, tmp_path: Path) -> None:
        for command in ("check", "download"):
            ended = timnet("corpora", command, "klingon", "--data-dir", tmp_path)
            assert ended.status == 2
            assert "unknown corpus 'klingon'" in ended.message

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
