# SPDX-License-Identifier: Apache-2.0
"""The two jobs as a whole: a folder with a model, and a report; both from recordings on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import timnet_hf.calibration
import timnet_hf.training
from timnet_hf import corpora, feature_store, joined_corpora, reporting
from timnet_hf.configuration_timnet import ABLATIONS, TimNetConfig
from timnet_hf.corpora import CorpusError
from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.experiment import (
    Data,
    load_data,
    run_cross_validation,
    train_to_folder,
    with_ablation,
)
from timnet_hf.hub import verify_model_folder
from timnet_hf.prediction import load_model
from timnet_hf.protocols import Fold, ProtocolError
from timnet_hf.recipes import get_recipe
from timnet_hf.training import ProgressReport, TrainingError

from .tiny_training import same_weights, tiny_recipe, write_recordings

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = tiny_recipe()


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 20)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains, fails."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a training started")

    monkeypatch.setattr(timnet_hf.training, "train", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings of two labels, two speakers and two rooms."""
    return write_recordings(tmp_path_factory.mktemp("data") / "calls", metadata=True)


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    return load_data(folder)


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_to_folder(
        data,
        RECIPE,
        tmp_path_factory.mktemp("models") / "new" / "model",
        seed=3,
        overrides={"num_train_epochs": 3},
        command="timnet train",
    )


class TestLoadData:
    def test_own_recordings_go_by_the_name_of_their_folder(self, data: Data) -> None:
        assert data.name == "calls"
        assert data.corpus is None
        assert len(data.dataset) == 8

    def test_what_is_said_of_recordings_belongs_to_the_checksum(
        self, folder: Path, data: Data, tmp_path: Path
    ) -> None:
        other = shutil.copytree(folder, tmp_path / "calls")
        assert load_data(other).sha256 == data.sha256
        table = (other / "metadata.csv").read_text()
        (other / "metadata.csv").write_text(table.replace(",a,", ",c,"))
        assert load_data(other).sha256 != data.sha256

    def test_a_folder_called_like_a_corpus_is_not_that_corpus(self, tmp_path: Path) -> None:
        own = load_data(write_recordings(tmp_path / "ravdess"))
        assert (own.name, own.corpus) == ("own-ravdess", None)

    def test_a_corpus_goes_by_its_short_name(self, emodb_dir: Path) -> None:
        data = load_data(emodb_dir, "EMO-DB")

        assert (data.name, data.corpus, len(data.dataset)) == ("emodb", "emodb", 535)

    def test_several_corpora_are_one(
        self, data: Data, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recordings = data.dataset.select_columns(["path", "audio", "label", "speaker", "sentence"])
        monkeypatch.setattr(corpora, "load_corpus", lambda *_: recordings)
        sums = iter("ab")
        monkeypatch.setattr(corpora, "dataset_checksum", lambda _: next(sums))

        joined = load_data(folder, "EMO-DB+ravdess")

        assert (joined.name, joined.corpus, len(joined.dataset)) == ("emodb-ravdess", None, 16)
        assert {name.partition(":")[0] for name in joined.dataset["speaker"]} == {
            "emodb",
            "ravdess",
        }

    def test_an_unknown_corpus_is_refused(self, folder: Path) -> None:
        with pytest.raises(CorpusError, match="unknown corpus 'klingon'"):
            load_data(folder, "klingon")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="missing"):
            load_data(tmp_path / "missing")


class TestTrainToFolder:
    def test_leaves_a_folder_that_is_whole(self, trained: Path) -> None:
        verify_model_folder(trained)

        names = {path.name for path in trained.iterdir()}
        assert {
            "README.md",
            "config.json",
            "model.safetensors",
            "modeling_timnet.py",
            "preprocessor_config.json",
            "training_record.json",
        } <= names
        assert "trainer" not in names  # checkpoints are gone once they are of no use

    def test_labels_network_and_features_travel_together(self, trained: Path) -> None:
        network, extractor = load_model(trained)

        assert network.config.id2label == {0: "angry", 1: "happy"}
        assert network.config.hidden_size == 8
        assert extractor.mean is not None and len(extractor.mean) == 39

    def test_records_how_it_was_made(self, trained: Path, data: Data) -> None:
        record = json.loads((trained / "training_record.json").read_text())

        assert record["corpus"] == "calls"
        assert record["recipe"] == json.loads(json.dumps(RECIPE.to_dict()))
        assert record["overrides"] == {"num_train_epochs": 3}
        assert record["config"] == {}
        assert record["seed"] == 3
        assert record["labels"] == ["angry", "happy"]
        assert record["data"] == {"files": 8, "sha256": data.sha256}
        assert {"python", "torch", "transformers", "timnet-hf"} - {"timnet-hf"} <= set(
            record["versions"]
        )
        assert record["command"] == "timnet train"
        assert record["started"].endswith("+00:00")
        assert record["wall_time_seconds"] >= 0
        assert [entry["epoch"] for entry in record["log"] if "loss" in entry] == [1, 2, 3]
        network, _ = load_model(trained)
        assert record["parameters"] == network.num_parameters(only_trainable=True)

    def test_an_interrupted_training_goes_on_to_the_same_model(
        self, trained: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choices: dict[str, Any] = {"seed": 3, "overrides": {"num_train_epochs": 3}}
        seen: list[tuple[Any, ...]] = []

        def progress(*now: Any) -> None:
            if now[:2] == ("training", 5):  # in the third epoch of two steps each
                raise KeyboardInterrupt
            seen.append(now)

        with pytest.raises(KeyboardInterrupt):
            train_to_folder(data, RECIPE, tmp_path, progress=progress, **choices)
        assert sorted(path.name for path in tmp_path.glob("trainer/checkpoint-*")) == [
            "checkpoint-2",
            "checkpoint-4",
        ]
        assert not (tmp_path / "model.safetensors").exists()
        assert ("features", 8, 8, "") in seen
        assert [now[1:3] for now in seen if now[0] == "training"] == [(k, 6) for k in range(1, 5)]

        train_to_folder(data, RECIPE, tmp_path, resume=True, **choices)

        resumed, whole = (load_file(path / "model.safetensors") for path in (tmp_path, trained))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
        assert not (tmp_path / "trainer").exists()

    @pytest.mark.parametrize("known", [True, False])
    def test_the_time_of_an_interrupted_training_is_that_of_all_its_parts(
        self, data: Data, unfinished: Path, known: bool
    ) -> None:
        noted = unfinished / "trainer" / "time.json"
        before = json.loads(noted.read_text())
        assert before["started"].endswith("+00:00") and before["seconds"] >= 0
        before = {"started": "2025-01-01T00:00:00+00:00", "seconds": 1000}
        noted.write_text(json.dumps(before)) if known else noted.unlink()

        train_to_folder(data, RECIPE, unfinished, resume=True)

        record = json.loads((unfinished / "training_record.json").read_text())
        if known:
            assert record["started"] == before["started"]
            assert 1000 <= record["wall_time_seconds"] < 2000
        else:  # stopped by a version that noted none: a part would be taken for the whole
            assert record["started"] is None
            assert record["wall_time_seconds"] is None
            assert "Training took" not in (unfinished / "README.md").read_text()

    def test_the_temperature_is_fitted_on_speakers_left_out(
        self, trained: Path, data: Data, tmp_path: Path
    ) -> None:
        folder = train_to_folder(
            data, RECIPE, tmp_path, seed=3, overrides={"num_train_epochs": 3}, calibration=1
        )

        config = load_model(folder)[0].config
        assert config.apply_temperature and config.temperature != 1.0
        record = json.loads((folder / "training_record.json").read_text())
        assert record["calibration"] == 1
        assert set(record["held_out"]) == {"recordings", "ece_uncalibrated", "ece"}
        assert 0 < record["held_out"]["recordings"] < record["data"]["files"]
        assert f"temperature of {config.temperature:.3f}" in (folder / "README.md").read_text()
        calibrated, plain = (load_file(path / "model.safetensors") for path in (folder, trained))
        assert all(torch.equal(calibrated[name], plain[name]) for name in plain)

    def test_a_resumed_training_does_not_fit_its_temperature_again(
        self, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*now: Any) -> None:
            if now[:2] == ("training", 3):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_to_folder(data, RECIPE, tmp_path, calibration=1, progress=stop)
        fitted = json.loads((tmp_path / "trainer" / "temperature.json").read_text())
        monkeypatch.setattr(timnet_hf.calibration, "held_out_logits", pytest.fail)

        train_to_folder(data, RECIPE, tmp_path, calibration=1, resume=True)

        assert load_model(tmp_path)[0].config.temperature == fitted["temperature"]

    @pytest.fixture
    def unfinished(self, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The folder of a training that was stopped after its first epoch."""
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 3:
                    raise KeyboardInterrupt

            patch.setattr(ProgressReport, "on_step_end", stop)
            train_to_folder(data, RECIPE, tmp_path, progress=lambda *_: None)
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"seed": 1}, "seed"),
            ({"calibration": 2}, "calibration"),
            ({"recipe": tiny_recipe(learning_rate=0.5)}, "recipe"),
            ({"config": {"kernel_size": 3}, "seed": 1}, "config, seed"),
        ],
    )
    def test_another_training_does_not_go_on_from_there(
        self,
        change: dict[str, Any],
        named: str,
        unfinished: Path,
        data: Data,
        no_training: None,
    ) -> None:
        arguments = {"recipe": RECIPE, **change}

        with pytest.raises(TrainingError, match=f"of a training with another {named}. Resume with"):
            train_to_folder(data, output_dir=unfinished, resume=True, **arguments)

    def test_other_recordings_do_not_go_on_from_there(
        self, unfinished: Path, data: Data, no_training: None
    ) -> None:
        with pytest.raises(TrainingError, match="of a training with another data"):
            train_to_folder(replace(data, sha256="1" * 64), RECIPE, unfinished, resume=True)

    def test_a_new_training_does_not_mix_with_an_unfinished_one(
        self, unfinished: Path, data: Data, no_training: None
    ) -> None:
        with pytest.raises(TrainingError, match="holds checkpoints of an unfinished training"):
            train_to_folder(data, RECIPE, unfinished)

        assert (unfinished / "trainer" / "checkpoint-2").is_dir()

    def test_nothing_to_resume_is_said_before_any_work(
        self, data: Data, tmp_path: Path, no_training: None
    ) -> None:
        with pytest.raises(TrainingError, match="no checkpoint to resume from"):
            train_to_folder(
                data, RECIPE, tmp_path, resume=True, progress=lambda *_: pytest.fail("worked")
            )

    def test_a_place_that_cannot_be_written_is_said_before_any_work(
        self, data: Data, tmp_path: Path, no_training: None
    ) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(OSError, match="file"):
            train_to_folder(
                data, RECIPE, tmp_path / "file", progress=lambda *_: pytest.fail("worked")
            )


def cross_validate(data: Data, results: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    return run_cross_validation(data, RECIPE, options.pop("protocol", "loso"), results, **options)


class TestCrossValidation:
    def test_leaves_a_report_of_all_recordings(self, data: Data, tmp_path: Path) -> None:
        seen: list[tuple[Any, ...]] = []

        folder, report = cross_validate(data, tmp_path, progress=lambda *now: seen.append(now))

        assert folder == tmp_path / "calls" / "loso" / "tiny"
        assert json.loads((folder / "report.json").read_text()) == report
        assert (folder / "report.md").exists() and (folder / "tsne.png").exists()
        assert report["n_files"] == 8
        assert report["n_folds"] == 2
        assert set(report["per_speaker"]) == {"a", "b"}
        assert set(report["per_class_recall"]) == {"angry", "happy"}
        assert seen[7:] == [
            ("features", 8, 8, ""),
            ("folds", 0, 2, ""),
            ("folds", 1, 2, "seed 0, speaker-a"),
            ("folds", 2, 2, "seed 0, speaker-b"),
        ]

    def test_a_killed_run_gives_the_same_report(self, data: Data, tmp_path: Path) -> None:
        def kill(what: str, done: int, total: int, detail: str) -> None:
            if (what, done) == ("folds", 3):
                raise KeyboardInterrupt

        options: dict[str, Any] = {"seeds": (0, 1), "command": "timnet cross-validate"}
        _, whole = cross_validate(data, tmp_path / "whole", **options)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(data, tmp_path / "killed", progress=kill, **options)
        assert not list((tmp_path / "killed").rglob("report.json"))

        _, resumed = cross_validate(data, tmp_path / "killed", **options)

        whole.pop("wall_time_seconds"), resumed.pop("wall_time_seconds")
        assert resumed == whole
        assert resumed["seeds"] == [0, 1]

    def test_fewer_seeds_do_not_shrink_a_report(self, data: Data, tmp_path: Path) -> None:
        three, one = "timnet cross-validate --seeds 3 --jobs 1", "timnet cross-validate --jobs 1"
        folder, all_three = cross_validate(data, tmp_path, seeds=(0, 1, 2), command=three)
        _, report = cross_validate(data, tmp_path, seeds=(0,), command=one)
        assert report["command"] == "timnet cross-validate --jobs 1 --seeds 3"
        assert {**report, "command": three} == all_three and report["seeds"] == [0, 1, 2]

        # The command makes so many seeds from the first on, so none is left out between.
        (folder / "folds" / "seed-1" / "speaker-b.json").unlink()
        _, report = cross_validate(data, tmp_path, seeds=(0,), command=one)
        assert report["seeds"] == [0] and report["command"] == one

    @pytest.mark.parametrize(
        "option", [{"protocol": "kfold"}, {"n_folds": 3}, {"group_by": "room"}]
    )
    def test_judged_on_another_corpus_there_are_no_folds_to_choose(
        self, option: dict[str, Any], data: Data, tmp_path: Path, no_training: None
    ) -> None:
        with pytest.raises(CrossValidationError, match="all of one is learned from"):
            cross_validate(data, tmp_path, **{"protocol": None, "test_data": data, **option})

    def test_clips_of_two_corpora_are_as_long_as_the_longer_ones(
        self, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(dataset: Any, extractor: Any, *_: Any) -> None:
            raise InterruptedError(extractor.num_samples)

        monkeypatch.setattr(feature_store, "compute_features", stop)
        fold = Fold("to-ravdess", np.arange(4), np.arange(4, 8))
        both = replace(data, corpora=("emodb", "ravdess"))
        monkeypatch.setattr(joined_corpora, "cross_corpus_fold", lambda *_: (both, fold))
        one, other = (replace(data, name=name, corpora=(name,)) for name in ("emodb", "ravdess"))
        with pytest.raises(InterruptedError, match="110000"):
            recipe = replace(RECIPE, preset="paper")
            run_cross_validation(one, recipe, None, tmp_path, test_data=other)

    def test_groups_of_any_column_stay_together(self, data: Data, tmp_path: Path) -> None:
        folder, report = cross_validate(
            data, tmp_path, protocol="group", group_by="room", n_folds=2
        )

        assert report["n_folds"] == 2 and report["group_by"] == "room"
        room = dict(zip(data.dataset["path"], data.dataset["room"], strict=True))
        rooms = {Path(path).name: value for path, value in room.items()}
        for path in (folder / "folds").rglob("*.json"):
            assert len({rooms[name] for name in json.loads(path.read_text())["files"]}) == 1

    @pytest.mark.parametrize("other", [{"n_folds": 4}, {"protocol": "group", "group_by": "room"}])
    def test_other_folds_do_not_mix(
        self, other: dict[str, Any], data: Data, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        first = {**other, "n_folds": 2}
        if "group_by" in other:
            first["group_by"], other = "speaker", {**other, "n_folds": 2}
        else:
            first["protocol"] = "kfold"
            other = {**other, "protocol": "kfold"}
        cross_validate(data, tmp_path, **first)
        request.getfixturevalue("no_training")

        with pytest.raises(CrossValidationError, match="fold of other|another group_by"):
            cross_validate(data, tmp_path, **other)

    def test_an_ablation_lies_beside_the_whole_network(self, data: Data, tmp_path: Path) -> None:
        variant, config = with_ablation("plain-tcn")

        folder, report = cross_validate(data, tmp_path, variant=variant, config=config)

        assert folder == tmp_path / "calls" / "loso" / "tiny-plain-tcn"
        assert report["recipe"] == "tiny-plain-tcn"
        assert report["fusion_weights"] == [1.0]
        (whole,) = {
            len(json.loads(path.read_text())["fusion_weights"])
            for path in (folder / "folds").rglob("*.json")
        }
        assert whole == 1

    @pytest.mark.parametrize("name", ["no-multi-scale", "plain-tcn"])
    def test_one_scale_is_one_with_the_default_recipe_too(self, name: str) -> None:
        config = {**get_recipe("default").config, **with_ablation(name)[1]}

        assert TimNetConfig(**config).num_scales == 1

    def test_choosing_on_the_test_fold_is_labelled(self, data: Data, tmp_path: Path) -> None:
        folder, report = cross_validate(data, tmp_path, selection="best-on-test")

        assert folder.name == "tiny-best-on-test"
        assert report["leaks_test_fold"] is True
        assert "Leaks" in (folder / "report.md").read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"protocol": "bootstrap"}, "unknown protocol 'bootstrap'"),
            ({"protocol": "loto"}, "sentence"),
            ({"protocol": "emobox"}, "emobox"),
            ({"protocol": "group"}, "column to group by"),
            ({"protocol": "group", "group_by": "shoe"}, "no column 'shoe'"),
            ({"protocol": "group", "group_by": "room", "n_folds": 3}, "cannot make 3 folds"),
            ({"protocol": "kfold", "n_folds": 10}, "8 recordings cannot make 10 folds"),
        ],
    )
    def test_folds_that_cannot_be_made_are_refused_before_any_training(
        self,
        options: dict[str, Any],
        message: str,
        data: Data,
        tmp_path: Path,
        no_training: None,
    ) -> None:
        with pytest.raises(ProtocolError, match=message):
            cross_validate(data, tmp_path, **options)

        assert list(tmp_path.iterdir()) == []

    def test_no_seed_is_refused(self, data: Data, tmp_path: Path, no_training: None) -> None:
        with pytest.raises(CrossValidationError, match="No seed. Ask for at least one"):
            cross_validate(data, tmp_path, seeds=())


class TestAblations:
    def test_none_is_the_whole_network(self) -> None:
        assert with_ablation(None) == ("", {})

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_each_is_named_and_switches_something_off(self, name: str) -> None:
        variant, config = with_ablation(name)

        assert variant == name
        assert config and not any(config.values())
        config.clear()
        assert with_ablation(name)[1]  # the table itself is not handed out

    def test_an_unknown_one_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(CrossValidationError, match="'no-sound'.*no-backward, no-multi-scale"):
            with_ablation("no-sound")


def test_script_and_command_get_the_same_model(data: Data, trained: Path, tmp_path: Path) -> None:
    """Whether progress is watched or not, the weights are the same."""
    again = train_to_folder(
        data,
        RECIPE,
        tmp_path,
        seed=3,
        overrides={"num_train_epochs": 3},
        progress=lambda *_: None,
    )

    assert same_weights(load_model(again)[0], load_model(trained)[0])
