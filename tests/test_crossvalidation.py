# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: complete, resumable, never mixed up, and blind to its test folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import timnet_hf.training
from timnet_hf import crossvalidation as module
from timnet_hf.calibration import inner_temperature
from timnet_hf.crossvalidation import CrossValidationError, Plan, read_folds
from timnet_hf.evaluation import uar, war
from timnet_hf.output_folder import write_json
from timnet_hf.protocols import Fold
from timnet_hf.training import Trained, TrainingError

from .tiny_run import EXTRACTOR, PLAN, records, run, three_folds
from .tiny_training import FULL, LABELS, poisoned, same_weights, tiny_recipe, tiny_store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """Every network that is trained in this process from now on."""
    made: list[Trained] = []
    original: Callable[..., Trained] = timnet_hf.training.train

    def watched(*arguments: Any, **options: Any) -> Trained:
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(timnet_hf.training, "train", watched)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("results"))


class TestRun:
    def test_lies_where_corpus_protocol_and_recipe_say(self, finished: Path) -> None:
        assert finished.parts[-3:] == ("toy", "kfold", "tiny")
        assert sorted(p.relative_to(finished).as_posix() for p in finished.rglob("*.json")) == [
            "folds/seed-0/fold-1.json",
            "folds/seed-0/fold-2.json",
            "folds/seed-0/fold-3.json",
            "run.json",
        ]

    def test_tests_each_recording_once(self, finished: Path) -> None:
        rows = [row for record in records(finished) for row in record["rows"]]

        assert sorted(rows) == list(range(12))

    def test_a_fold_tells_all_that_a_report_needs(self, finished: Path) -> None:
        store, (record, *_) = tiny_store(), records(finished)

        assert record["fold"] == "fold-1"
        assert record["seed"] == 0
        assert record["n_train"] == 8
        assert record["labels"] == LABELS
        assert {"code", "numba", "torch"} <= set(record["versions"])
        assert record["rows"] == [0, 3, 6, 9]
        assert record["files"] == ["0.wav", "3.wav", "6.wav", "9.wav"]
        assert record["speakers"] == ["a", "b", "a", "b"]
        assert record["references"] == store.labels[record["rows"]].tolist()
        assert np.shape(record["logits"]) == (4, 3)
        assert len(record["fusion_weights"]) == 2  # one a block
        assert record["parameters"] > 0

    def test_figures_of_a_fold_are_those_of_its_logits(self, finished: Path) -> None:
        for record in records(finished):
            references = np.array(record["references"])
            predictions = np.argmax(record["logits"], 1)
            assert record["uar"] == pytest.approx(uar(references, predictions))
            assert record["war"] == pytest.approx(war(references, predictions))

    def test_one_fold_draws_the_map_of_all_recordings(self, finished: Path) -> None:
        shown, *others = records(finished)

        assert np.shape(shown["tsne"]) == (12, 2)
        assert not any("tsne" in record for record in others)

    def test_notes_what_was_fixed_and_what_ran_it(self, finished: Path) -> None:
        note = json.loads((finished / "run.json").read_text())

        assert note["fixed"] == json.loads(json.dumps(PLAN.fixed()))
        assert note["meant"]["features.min_frequency"] == EXTRACTOR.min_frequency
        assert note["meant"]["network.num_hidden_layers"] == 2
        assert note["meant"]["network.kernel_size"] == 2  # a default
        assert note["command"] == "timnet cross-validate"
        assert {"python", "torch", "transformers", "numpy"} <= set(note["versions"])

    def test_tells_how_far_it_is(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int, str]] = []

        run(tmp_path, progress=lambda *now: seen.append(now))

        assert seen == [
            (0, 3, ""),
            (1, 3, "seed 0, fold-1"),
            (2, 3, "seed 0, fold-2"),
            (3, 3, "seed 0, fold-3"),
        ]


class TestBlindness:
    """What the test fold holds cannot be told from the trained network."""

    @pytest.mark.parametrize("selection", ["last-epoch", "best-on-test"])
    def test_garbage_in_the_test_fold_leaves_the_network_bit_identical(
        self, selection: str, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        everything = replace(FULL, tempo=0.2, speaker_share=0.5)
        plan = replace(PLAN, selection=selection, recipe=tiny_recipe(everything))
        fold = three_folds()[1]
        garbage = poisoned(tiny_store(), fold.test, 1e4)

        run(tmp_path / "clean", plan, folds=[fold])
        run(tmp_path / "poisoned", plan, garbage, folds=[fold])

        clean, beside_poison = trainings
        assert same_weights(clean.model, beside_poison.model)
        assert clean.extractor.to_dict() == beside_poison.extractor.to_dict()

    def test_choosing_the_epoch_on_the_test_fold_is_never_worse_there(self, tmp_path: Path) -> None:
        store = tiny_store(gap=0.3)
        honest = replace(PLAN, arguments={"num_train_epochs": 4})
        leaking = replace(honest, selection="best-on-test")

        last = records(run(tmp_path, honest, store), honest)
        best = records(run(tmp_path, leaking, store), leaking)

        assert leaking.folder(tmp_path) != honest.folder(tmp_path)
        assert leaking.name.endswith("best-on-test")
        for one, other in zip(last, best, strict=True):
            assert other["war"] >= one["war"]
            assert other["last_logits"] == one["logits"]  # the same training, told beside
            assert "tsne" not in other  # the model at hand is the last epoch's


class TestResume:
    def test_a_killed_run_trains_only_what_is_missing(
        self, finished: Path, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        def kill(done: int, total: int, name: str) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=kill)
        folder = PLAN.folder(tmp_path)
        assert sorted(path.name for path in folder.rglob("fold-*")) == [
            "fold-1.json",
            "fold-2.json",
        ]
        with pytest.raises(
            CrossValidationError, match="fold-3.json: not done yet. Run the command"
        ):
            read_folds(folder, PLAN, three_folds())
        trainings.clear()

        run(tmp_path)

        assert len(trainings) == 1
        assert records(folder) == records(finished)

    def test_folds_of_another_state_of_the_code_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = run(tmp_path)
        monkeypatch.setattr(module, "CODE", "of tomorrow")
        run(tmp_path)
        assert not caplog.records  # nothing is left to train
        (folder / "folds" / "seed-0" / "fold-2.json").unlink()

        run(tmp_path)

        assert "2 of 2 finished folds were trained by another state of the code" in caplog.text

    def test_a_finished_run_trains_nothing(self, tmp_path: Path, trainings: list[Trained]) -> None:
        run(tmp_path)
        trainings.clear()

        run(tmp_path)

        assert trainings == []

    def test_seeds_may_be_added(self, tmp_path: Path, trainings: list[Trained]) -> None:
        run(tmp_path)
        more = replace(PLAN, seeds=(0, 5))

        folder = run(tmp_path, more)

        assert len(trainings) == 6
        assert [record["seed"] for record in records(folder, more)] == [0, 0, 0, 5, 5, 5]
        assert not same_weights(trainings[0].model, trainings[3].model)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"data_sha256": "1" * 64}, "set of recordings"),
            ({"recipe": tiny_recipe(learning_rate=0.5)}, "recipe"),
            ({"config": {"bidirectional": False}}, "config"),
            ({"arguments": {"num_train_epochs": 1}, "config": {"kernel_size": 3}}, "arguments, co"),
        ],
    )
    def test_a_changed_configuration_is_refused(
        self, change: dict[str, Any], named: str, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        write_json(PLAN.folder(tmp_path) / "run.json", {"fixed": PLAN.fixed()})

        with pytest.raises(CrossValidationError, match=f"tiny: holds a run with another {named}"):
            run(tmp_path, replace(PLAN, **change))

        assert trainings == []

    def test_a_name_that_has_come_to_mean_something_else_is_refused(
        self, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        """The recipe names a preset, and leaves most of the network to its defaults."""
        note = PLAN.folder(tmp_path) / "run.json"
        meant = {**PLAN.meant(EXTRACTOR), "features.hop_length": 7, "network.kernel_size": 3}
        write_json(note, {"fixed": PLAN.fixed(), "meant": meant})

        with pytest.raises(
            CrossValidationError, match=r"with another features\.hop_length, network\.kernel_size\."
        ):
            run(tmp_path)

        assert trainings == []

    def test_a_run_from_before_that_was_noted_goes_on(self, tmp_path: Path) -> None:
        note = PLAN.folder(tmp_path) / "run.json"
        write_json(note, {"fixed": PLAN.fixed(), "command": "as it was"})

        run(tmp_path)

        kept = json.loads(note.read_text())
        assert kept["meant"] == json.loads(json.dumps(PLAN.meant(EXTRACTOR)))
        assert kept["command"] == "as it was"

    def test_a_setting_that_is_new_does_not_stop_a_run(
        self, tmp_path: Path, trainings: list[Trained], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meant = PLAN.meant(EXTRACTOR)
        del meant["network.num_centered_members"]
        write_json(PLAN.folder(tmp_path) / "run.json", {"fixed": PLAN.fixed(), "meant": meant})

        run(tmp_path)

        assert len(trainings) == 3
        # From now on it is held to what it means.
        now = {**PLAN.meant(EXTRACTOR), "network.num_centered_members": 7}
        monkeypatch.setattr(Plan, "meant", lambda *_: now)
        with pytest.raises(CrossValidationError, match=r"another network\.num_centered_members"):
            run(tmp_path)

    def test_folds_that_nothing_tells_of_are_not_touched(
        self, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        folder = run(tmp_path, folds=three_folds()[:1])
        (folder / "run.json").unlink()
        trainings.clear()

        with pytest.raises(CrossValidationError, match=r"holds folds, and no run\.json"):
            run(tmp_path, replace(PLAN, data_sha256="1" * 64))

        assert trainings == []

    def test_other_folds_under_the_same_names_are_refused(
        self, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        """Ten folds and five, or groups by two columns, name their folds alike."""
        run(tmp_path, folds=three_folds()[:1])
        trainings.clear()

        with pytest.raises(CrossValidationError, match="fold-1.json: holds a fold of other record"):
            run(tmp_path, folds=three_folds(of=2))

        assert trainings == []

    def test_a_calibration_that_is_left_out_is_refused(
        self, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        fixed = replace(PLAN, calibration=1).fixed()
        write_json(PLAN.folder(tmp_path) / "run.json", {"fixed": fixed})

        with pytest.raises(CrossValidationError, match="holds a run with another calibration"):
            run(tmp_path)

        assert trainings == []

    @pytest.mark.parametrize("content", ["", "[]", '{"command": ""}'])
    def test_a_damaged_note_of_the_configuration_is_told(
        self, content: str, tmp_path: Path, trainings: list[Trained]
    ) -> None:
        noted = PLAN.folder(tmp_path) / "run.json"
        noted.parent.mkdir(parents=True)
        noted.write_text(content)

        with pytest.raises(CrossValidationError, match=r"run\.json: is damaged"):
            run(tmp_path)

        assert trainings == []

    @pytest.mark.parametrize("content", ["", '{"fingerprint": "ab', "{}", "null", "[]"])
    def test_a_damaged_fold_is_trained_again(self, content: str, tmp_path: Path) -> None:
        folder = run(tmp_path)
        fold = folder / "folds" / "seed-0" / "fold-2.json"
        whole = json.loads(fold.read_text())
        fold.write_text(content)

        run(tmp_path)

        assert json.loads(fold.read_text())["logits"] == whole["logits"]


class TestFingerprint:
    def test_tells_every_fixed_part_apart(self) -> None:
        changes: list[dict[str, Any]] = [
            {},
            {"corpus": "other"},
            {"protocol": "loso"},
            {"recipe": tiny_recipe(learning_rate=0.5)},
            {"config": {"bidirectional": False}},
            {"arguments": {"num_train_epochs": 1}},
            {"selection": "best-on-test"},
            {"data_sha256": "1" * 64},
        ]

        assert len({replace(PLAN, **change).fingerprint() for change in changes}) == len(changes)

    def test_knows_nothing_of_seeds_and_wording(self) -> None:
        same = replace(PLAN, seeds=(1, 2), command="another", shown_fold="fold-2")

        assert same.fingerprint() == PLAN.fingerprint()


def test_a_training_that_diverged_is_told_apart_from_a_result(tmp_path: Path) -> None:
    store = tiny_store()
    store.original[1][:] = np.nan  # in the training side of the first fold

    with pytest.raises(CrossValidationError, match="seed 0, fold-1: the training diverged"):
        run(tmp_path, store=store, folds=three_folds()[:1])


class TestVoices:
    def test_of_new_speakers_are_scored_with_one_three_ten_and_all_recordings_enrolled(
        self, tmp_path: Path
    ) -> None:
        plan = PLAN
        store = tiny_store()
        store.speakers = [f"{row % 3}" for row in range(12)]  # three_folds by speaker
        folder = run(tmp_path, plan, store)
        for record in read_folds(folder, plan, three_folds()):
            assert list(record["enrolled"]) == ["1", "3", "10", "all"]
            shapes = {np.shape(logits) for logits in record["enrolled"].values()}
            assert shapes == {np.shape(record["logits"])}
            assert record["enrolled"]["all"] != record["logits"]
            assert record["enrolled"]["10"] == record["enrolled"]["all"]  # there are four
            one, three, every = (record["enrolled"][count] for count in ("1", "3", "all"))
            assert one != three != every != one
        plain = replace(plan, recipe=replace(plan.recipe, standardize=False))
        for record in read_folds(run(tmp_path / "plain", plain, store), plain, three_folds()):
            assert "enrolled" not in record  # as the paper's recipe: there is nothing to adapt

    @pytest.mark.parametrize(
        ("speakers", "selection"),
        [
            (["anna"] * 12, "last-epoch"),  # in training too
            (["anna", "otto", None] * 4, "last-epoch"),  # nobody knows whose voices the last are
            (["anna", "otto", "eva"] * 4, "best-on-test"),  # the model at hand is another one
        ],
    )
    def test_that_are_not_new_or_not_known_are_not(
        self, speakers: list[str | None], selection: str, tmp_path: Path
    ) -> None:
        plan = replace(PLAN, selection=selection)
        store = tiny_store()
        store.speakers = speakers
        records = read_folds(run(tmp_path, plan, store), plan, three_folds())
        known = [True, True, False] if None in speakers else [False] * 3
        assert ["enrolled" in record for record in records] == known


class TestTemperature:
    def test_is_noted_where_there_are_inner_folds(self, tmp_path: Path) -> None:
        folds = [
            replace(fold, inner=(Fold("inner-01", fold.train[::2], fold.train[1::2]),))
            for fold in three_folds()
        ]
        plan = replace(PLAN, calibration=1)
        folder = run(tmp_path, plan, folds=folds)
        found = [record["temperature"] for record in read_folds(folder, plan, folds)]
        assert len(set(found)) == 3

        # What a fold is tested on has no part in its temperature; what it holds out has.
        def fitted(name: str, rows: np.ndarray) -> float:
            garbage = poisoned(tiny_store(), rows, 1e4)
            folder = run(tmp_path / name, plan, garbage, folds=folds[1:2])
            (record,) = read_folds(folder, plan, folds[1:2])
            return float(record["temperature"])

        assert fitted("spoiled", folds[1].test) == found[1]
        assert fitted("shown", folds[1].inner[0].test) != found[1]
        plain = read_folds(run(tmp_path / "plain"), PLAN, three_folds())
        assert all("temperature" not in record for record in plain)
        # The network of the fold is the same one.
        beside = read_folds(folder, plan, folds)
        assert [r["logits"] for r in plain] == [r["logits"] for r in beside]

    def test_is_not_fitted_on_a_training_that_diverged(self, tmp_path: Path) -> None:
        fold = three_folds()[0]
        inner = Fold("inner-01", fold.train[::2], fold.train[1::2])
        store = tiny_store()
        store.original[fold.train[1]][:] = np.nan  # asked about, and never learned from

        with pytest.raises(TrainingError, match=r"inner-01, .*: the training diverged"):
            inner_temperature(store, [inner], PLAN.recipe, EXTRACTOR, seed=0)
