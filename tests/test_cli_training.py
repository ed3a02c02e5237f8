# SPDX-License-Identifier: Apache-2.0
"""`timnet train` and `timnet cross-validate`: what they leave, and what they refuse at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from timnet_hf import feature_store, reporting, training
from timnet_hf.recipes import RECIPES
from timnet_hf.training import ProgressReport

from .test_corpora import published_layout, write
from .timnet_command import Ended, Timnet, in_this_process
from .tiny_training import tiny_recipe, write_recordings


@pytest.fixture
def timnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Timnet:
    return in_this_process(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default recipe and a bootstrap that take no time."""
    monkeypatch.setitem(RECIPES, "default", replace(tiny_recipe(), name="default"))
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 20)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own recordings, two labels by two speakers, listed in a metadata.csv."""
    return write_recordings(tmp_path_factory.mktemp("data") / "own", metadata=True)


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
            "timnet train --data-dir DATA --output-dir 'a model' --seed 4 "
            "--num-train-epochs 1 --learning_rate 1e-3 --warmup-steps=0"
        )

        ended = timnet("predict", own, "--model", folder, "--format", "json")

        assert ended.status == 0
        assert {one["label"] for one in json.loads(ended.out)} <= {"angry", "happy"}

    @pytest.mark.parametrize("command", ["train", "cross-validate"])
    def test_a_corpus_that_is_not_as_published_is_taken_as_it_is_on_request(
        self, command: str, timnet: Timnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def begin(dataset: Any, *_: Any) -> None:
            raise InterruptedError(f"work on {len(dataset)} recordings")

        monkeypatch.setattr(feature_store, "compute_features", begin)
        data = write(published_layout("savee"), tmp_path / "data")
        (data / "ALL" / "DC_a01.wav").unlink()
        where = ("--output-dir" if command == "train" else "--results", tmp_path / "out")
        words = (command, "--corpus", "savee", "--data-dir", data, *where)

        ended = timnet(*words)

        assert ended.status != 0
        assert "missing: DC_a01" in ended.err and "--as-is on the command line" in ended.err
        assert "work on 479 recordings" in timnet(*words, "--as-is").err

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

        made: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                *(ProgressReport, "on_step_end"),
                lambda self, args, state, control, **_: made.append(state.global_step),
            )
            assert train("stopped", "--resume").status == 0
        assert made == [5, 6], "it does not start over"
        torch.set_num_threads(threads)

        one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "stopped"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_seed_calibration_and_resuming_reach_the_training(
        self, timnet: Timnet, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}

        def trained(_data: Any, _recipe: Any, folder: Path, **options: Any) -> Path:
            asked.update(options)
            return folder

        monkeypatch.setattr("timnet_hf.experiment.train_to_folder", trained)
        ended = timnet(
            *("train", "--data-dir", own, "--output-dir", tmp_path, "--resume"),
            *("--calibrate", 3, "--seed", 4),
        )

        assert ended.status == 0
        assert (asked["seed"], asked["calibration"], asked["resume"]) == (4, 3, True)

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
            "timnet cross-validate --data-dir=DATA --seeds 1 --results results"
        )
        svc, linear = (report["baselines"][name] for name in ("svc", "linear"))
        assert ended.out.splitlines() == [
            *(
                f"{name.upper()} {report[name]['pooled']:.2f} %  (SVC {svc[name]:.2f} %, "
                f"logistic regression {linear[name]:.2f} %)"
                for name in ("uar", "war")
            ),
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
        assert "--data-dir DATA" in report["command"] and str(own) not in report["command"]
        fixed = json.loads((folder / "run.json").read_text())["fixed"]
        assert fixed["config"] == {"bidirectional": False}

    def test_jobs_calibration_and_another_corpus_reach_the_run(
        self, timnet: Timnet, own: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}

        def stop(*_: Any, **options: Any) -> None:
            asked.update(options)
            raise ValueError("seen")

        loaded: list[Any] = []
        monkeypatch.setattr(
            "timnet_hf.experiment.load_data", lambda _, name, strict: loaded.append((name, strict))
        )
        monkeypatch.setattr("timnet_hf.crossvalidation_run.run_cross_validation", stop)
        timnet(
            *("cross-validate", "--data-dir", own, "--corpus", "emodb", "--as-is"),
            *("--test-corpus", "ravdess", "--jobs", 2, "--calibrate", 3),
        )

        assert loaded == [("emodb", False), ("ravdess", False)]
        assert asked["jobs"] == 2 and asked["calibration"] == 3

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("--protocol bootstrap", "unknown protocol 'bootstrap'"),
            ("--protocol loto", "sentence"),
            ("--protocol group", "column to group by"),
            ("--protocol group --group-by speaker --folds 5", "cannot make 5 folds"),
            ("--group-by room", "loso does not group by 'room'"),
            ("--protocol loto --folds 3", "The number of folds of loto is given"),
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

        monkeypatch.setattr(training, "train", stop)

        ended = timnet("cross-validate", "--data-dir", own, "--results", tmp_path / "r")

        assert ended.status == 130
        assert ended.message.endswith("stopped")
