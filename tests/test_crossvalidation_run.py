# SPDX-License-Identifier: Apache-2.0
"""A cross-validation as a whole: from recordings on disk to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timnet_hf import crossvalidation_run, feature_store, joined_corpora, reporting
from timnet_hf.configuration_timnet import ABLATIONS, TimNetConfig
from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.crossvalidation_run import run_cross_validation, with_ablation
from timnet_hf.experiment import Data, load_data
from timnet_hf.protocols import Fold, ProtocolError
from timnet_hf.recipes import get_recipe

from .tiny_training import tiny_recipe, write_recordings

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = tiny_recipe()


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Eight recordings of two labels, two speakers and two rooms."""
    return load_data(write_recordings(tmp_path_factory.mktemp("data") / "calls", metadata=True))


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

    def test_a_temperature_is_fitted_on_training_recordings_only(
        self, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Fold] = []

        def watched(plan: Any, store: Any, extractor: Any, folds: Any, *rest: Any, **more: Any):
            seen.extend(folds)
            return cross(plan, store, extractor, folds, *rest, **more)

        cross = crossvalidation_run.cross_validate
        monkeypatch.setattr(crossvalidation_run, "cross_validate", watched)

        _, report = cross_validate(data, tmp_path, protocol="kfold", n_folds=2, calibration=1)

        assert report["temperature"] > 0 and len(seen) == 2
        for fold in seen:
            (inner,) = fold.inner
            assert {*inner.train, *inner.test} == {*fold.train}
            assert not {*fold.train} & {*fold.test}

    def test_inner_folds_that_cannot_be_made_name_their_fold_and_the_way_out(
        self, tmp_path: Path, no_training: None
    ) -> None:
        few = load_data(write_recordings(tmp_path / "few", per_class=2, metadata=True))
        with pytest.raises(ProtocolError, match=r"speaker-a: .* Leave out the calibration"):
            cross_validate(few, tmp_path, calibration=1)

    @pytest.mark.parametrize(
        "option", [{"protocol": "kfold"}, {"n_folds": 3}, {"group_by": "room"}]
    )
    def test_judged_on_another_corpus_there_are_no_folds_to_choose(
        self, option: dict[str, Any], data: Data, tmp_path: Path, no_training: None
    ) -> None:
        with pytest.raises(CrossValidationError, match="all of one is learned from"):
            cross_validate(data, tmp_path, **{"protocol": None, "test_data": data, **option})

    def test_on_another_corpus_gives_a_report_of_that_corpus(
        self, data: Data, tmp_path: Path
    ) -> None:
        other = load_data(
            write_recordings(tmp_path / "talks", per_class=6, seconds=0.4, metadata=True)
        )

        folder, report = cross_validate(
            data, tmp_path / "results", protocol=None, test_data=other, seeds=(0, 1)
        )

        assert folder == tmp_path / "results" / "calls" / "to-talks" / "tiny"
        assert (report["n_files"], report["n_folds"]) == (len(other.dataset), 1)
        assert report["labels"] == ["angry", "happy"] and set(report["baselines"])
        assert {name.partition(":")[0] for name in report["per_speaker"]} == {"talks"}
        assert report["uar"]["ci95_speakers"][0] <= report["uar"]["pooled"]
        assert list(report["enrolled"]) == ["1", "3", "all"]  # nobody has more than ten
        known = json.loads((folder.with_name("tiny-adapted") / "report.json").read_text())
        assert known["transductive"] and known["n_files"] == report["n_files"]

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

    def test_another_run_is_refused_before_any_work(
        self, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cross_validate(data, tmp_path, protocol="kfold", n_folds=2)
        cross_validate(data, tmp_path / "rooms", protocol="group", group_by="room", n_folds=2)
        monkeypatch.setattr(feature_store, "compute_features", None)

        with pytest.raises(CrossValidationError, match="fold of other"):
            cross_validate(data, tmp_path, protocol="kfold", n_folds=4)
        with pytest.raises(CrossValidationError, match="holds a run with another group_by"):
            cross_validate(
                data, tmp_path / "rooms", protocol="group", group_by="speaker", n_folds=2
            )
        other = replace(RECIPE, class_weights=not RECIPE.class_weights)
        with pytest.raises(CrossValidationError, match="holds a run with another recipe"):
            run_cross_validation(data, other, "kfold", tmp_path, n_folds=2)

    def test_an_ablation_lies_beside_the_whole_network(self, data: Data, tmp_path: Path) -> None:
        variant, config = with_ablation("plain-tcn")

        folder, report = cross_validate(data, tmp_path, variant=variant, config=config)

        assert folder == tmp_path / "calls" / "loso" / "tiny-plain-tcn"
        assert report["recipe"] == "tiny-plain-tcn"
        assert report["fusion_weights"] == {}, "one scale has nothing to weigh"
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
