# SPDX-License-Identifier: Apache-2.0
"""A training as a whole: from recordings on disk to a folder with a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import timnet_hf.calibration
import timnet_hf.training
from timnet_hf import corpora
from timnet_hf.corpora import CorpusError
from timnet_hf.experiment import (
    Data,
    load_data,
    train_to_folder,
)
from timnet_hf.hub import HubError, verify_model_folder
from timnet_hf.prediction import load_model
from timnet_hf.training import ProgressReport, TrainingError

from .tiny_training import same_weights, tiny_recipe, write_recordings

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = tiny_recipe()


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
        monkeypatch.setattr(corpora, "load_corpus", lambda *_, **__: recordings)
        sums = iter("ab")
        monkeypatch.setattr(corpora, "dataset_checksum", lambda _: next(sums))

        joined = load_data(folder, "EMO-DB+ravdess")

        assert (joined.name, joined.corpus, len(joined.dataset)) == ("emodb-ravdess", None, 16)
        assert {name.partition(":")[0] for name in joined.dataset["speaker"]} == {
            "emodb",
            "ravdess",
        }

    def test_a_folder_called_like_a_corpus_or_several_is_none_of_them(self, tmp_path: Path) -> None:
        for name in ("emodb", "emodb-ravdess"):
            own = load_data(write_recordings(tmp_path / name, metadata=True))
            assert (own.name, own.corpora) == (f"own-{name}", ())

    def test_labels_from_a_file_beside_the_recordings_are_part_of_the_checksum(
        self, data: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The names and sounds of IEMOCAP stay, where an annotation is corrected."""
        corrected = data.dataset.map(lambda row: {"label": 1 - row["label"]})
        sums = {}
        for corpus in ("iemocap", "emodb"):
            for key, dataset in (("before", data.dataset), ("after", corrected)):
                monkeypatch.setattr(corpora, "load_corpus", lambda *_, given=dataset, **__: given)
                sums[corpus, key] = load_data("anywhere", corpus).sha256
        assert sums["iemocap", "before"] != sums["iemocap", "after"]
        assert sums["emodb", "before"] == sums["emodb", "after"]

    def test_an_unknown_corpus_is_refused(self, folder: Path) -> None:
        with pytest.raises(CorpusError, match="unknown corpus 'klingon'"):
            load_data(folder, "klingon")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="missing: no such folder"):
            load_data(tmp_path / "missing")


class TestTrainToFolder:
    def test_a_folder_of_something_else_is_refused_before_any_training(
        self, data: Data, tmp_path: Path, no_training: None
    ) -> None:
        (tmp_path / "README.md").write_text("my thesis")

        with pytest.raises(HubError, match=r"README\.md: is of something else than a model"):
            train_to_folder(data, RECIPE, tmp_path)

        assert (tmp_path / "README.md").read_text() == "my thesis"

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
        assert {"python", "torch", "transformers", "timnet-hf"} <= set(record["versions"])
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

        again: list[tuple[Any, ...]] = []
        train_to_folder(
            data, RECIPE, tmp_path, resume=True, progress=lambda *now: again.append(now), **choices
        )
        assert [now[1] for now in again if now[0] == "training"] == [5, 6], "not from the start"

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
        assert (record["calibration"], record["inner_folds"]) == (1, 2)  # there are two speakers
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
            ({"overrides": {"learning_rate": 0.5}}, "training arguments"),
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

        with pytest.raises(OSError, match="choose another output folder.*file"):
            train_to_folder(
                data, RECIPE, tmp_path / "file", progress=lambda *_: pytest.fail("worked")
            )


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
