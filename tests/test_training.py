# SPDX-License-Identifier: Apache-2.0
"""Training: the right objective, blind to the test fold, repeatable, and fit to be gone on with."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import TrainerCallback, set_seed

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.feature_store import FeatureStore
from timnet_hf.recipes import Augmentation, Recipe
from timnet_hf.training import (
    ProgressReport,
    Trained,
    TrainingError,
    build_arguments,
    build_model,
    newest_checkpoint,
    train,
)
from timnet_hf.training_steps import AugmentedSet, RecordingSet, collate

from .tiny_training import poisoned, same_weights, tiny_recipe, tiny_store

PLAIN = TimNetFeatureExtractor()


@pytest.fixture(autouse=True)
def seeded(one_thread: None) -> None:
    """What is drawn depends on the seed."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def store() -> FeatureStore:
    return tiny_store()


def run(
    store: FeatureStore,
    folder: Path,
    recipe: Recipe | None = None,
    rows: Any = None,
    seed: int = 0,
    resume: bool = False,
    callbacks: tuple[Any, ...] = (),
    **overrides: Any,
) -> Trained:
    recipe = recipe or tiny_recipe()
    arguments = build_arguments(recipe, folder, seed, overrides)
    rows = range(len(store)) if rows is None else rows
    return train(store, rows, recipe, PLAIN, arguments, resume=resume, callbacks=callbacks)


class TestTrain:
    def plain_loss(self, store: FeatureStore, recipe: Recipe, weights: torch.Tensor) -> float:
        """The loss of the untrained network on the whole store, by torch's own function."""
        mean, std = store.statistics(range(len(store)))
        extractor = TimNetFeatureExtractor(mean=mean.tolist(), std=std.tolist())
        recordings = RecordingSet(store, range(len(store)), extractor)
        batch = collate([recordings[item] for item in range(len(store))])
        set_seed(0)
        model = build_model(recipe, store.label_names).train()
        logits = model(batch["input_values"], batch["attention_mask"]).logits
        targets = 0.9 * batch["labels"] + 0.1 / len(store.label_names)
        return float(F.cross_entropy(logits, targets, weight=weights).detach())

    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "class weights"])
    def test_optimises_smoothed_cross_entropy(
        self, weighted: bool, store: FeatureStore, tmp_path: Path
    ) -> None:
        rows = [0, 1, 2, 3, 4, 8]  # four angry, one happy, one sad
        part = replace(
            store,
            features={s: [v[r] for r in rows] for s, v in store.features.items()},
            labels=store.labels[rows],
        )
        recipe = tiny_recipe(
            Augmentation(),
            {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0},
            num_train_epochs=1,
            per_device_train_batch_size=6,
        )
        recipe = replace(recipe, class_weights=weighted)
        weights = torch.tensor([6 / (3 * 4), 6 / 3, 6 / 3]) if weighted else torch.ones(3)

        trained = run(part, tmp_path, recipe)

        assert trained.log[0]["loss"] == pytest.approx(
            self.plain_loss(part, recipe, weights), abs=2e-4
        )

    def test_learns(self, store: FeatureStore, tmp_path: Path) -> None:
        trained = run(store, tmp_path, num_train_epochs=8)

        losses = [entry["loss"] for entry in trained.log if "loss" in entry]
        assert len(losses) == 8
        assert losses[-1] < 0.8 * losses[0]
        assert trained.epochs == 8
        assert not trained.model.training

    def test_standardises_with_a_copy_of_the_extractor(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        rows = [0, 1, 4, 5, 8, 9]

        trained = run(store, tmp_path, rows=rows)

        mean, std = store.statistics(rows)
        assert trained.extractor.mean == mean.tolist()
        assert trained.extractor.std == std.tolist()
        assert PLAIN.mean is None

    def test_a_recipe_may_do_without_standardisation(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        trained = run(store, tmp_path, replace(tiny_recipe(), standardize=False))

        assert trained.extractor.mean is None

    def test_overrides_win_over_the_recipe(self, store: FeatureStore, tmp_path: Path) -> None:
        recipe = tiny_recipe()
        arguments = build_arguments(recipe, tmp_path, 0, {"num_train_epochs": 1})

        trained = train(store, range(12), recipe, PLAIN, arguments, {"bidirectional": False})

        assert trained.epochs == 1
        assert trained.model.config.num_streams == 1
        assert trained.model.config.hidden_size == 8

    def test_same_seed_same_weights_other_seed_other_weights(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        one, same, other = (run(store, tmp_path, seed=seed) for seed in (1, 1, 2))

        assert same_weights(one.model, same.model)
        assert not same_weights(one.model, other.model)

    @pytest.mark.parametrize("value", [float("nan"), 1e6])
    def test_nothing_of_the_test_fold_reaches_the_model(
        self, value: float, store: FeatureStore, tmp_path: Path
    ) -> None:
        test = [3, 7, 11]
        rows = [row for row in range(12) if row not in test]

        clean = run(store, tmp_path, rows=rows)
        beside_poison = run(poisoned(store, test, value), tmp_path, rows=rows)

        assert same_weights(clean.model, beside_poison.model)
        assert clean.extractor.to_dict() == beside_poison.extractor.to_dict()
        assert [e.get("loss") for e in clean.log] == [e.get("loss") for e in beside_poison.log]

    def test_poison_in_the_training_fold_would_be_seen(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        clean = run(store, tmp_path)
        poisonous = run(poisoned(store, [3], 1e3), tmp_path)

        assert not same_weights(clean.model, poisonous.model)

    @pytest.mark.parametrize(
        ("rows", "names"), [(range(8), "sad"), ([0, 8], "happy"), ([], "angry, happy, sad")]
    )
    def test_a_label_without_recordings_is_refused(
        self, rows: Any, names: str, store: FeatureStore, tmp_path: Path
    ) -> None:
        with pytest.raises(TrainingError, match=f"No training recording for: {names}. Add some"):
            run(store, tmp_path, rows=rows)

    def test_says_at_once_how_much_there_is(
        self, store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO", logger="timnet_hf"):
            trained = run(store, tmp_path)

        assert caplog.messages[0] == (
            f"training 12 recordings, 3 labels, {trained.model.num_parameters()} parameters, "
            "2 epochs"
        )

    def test_prints_nothing_where_no_bar_is_wanted(
        self, store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(store, tmp_path, disable_tqdm=True)

        assert capsys.readouterr().out == ""

    def test_reports_every_step(self, store: FeatureStore, tmp_path: Path) -> None:
        seen: list[tuple[int, int, str]] = []

        run(store, tmp_path, callbacks=(ProgressReport(lambda *now: seen.append(now)),))

        assert [(done, total) for done, total, _ in seen] == [(step, 6) for step in range(1, 7)]
        assert seen[0][2] == ""
        assert seen[-1][2].startswith("loss ")


class CtrlC(TrainerCallback):
    """The user loses patience after so many steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise KeyboardInterrupt


#: Twelve recordings in batches of four: three steps an epoch, nine in all.
CHOICES: dict[str, Any] = {"num_train_epochs": 3, "save_strategy": "epoch"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    return run(tiny_store(), tmp_path_factory.mktemp("whole"), **CHOICES)


class TestResume:
    @pytest.mark.parametrize("steps", [3, 4, 6, 8])
    def test_ends_bit_identical_to_an_uninterrupted_run(
        self, steps: int, uninterrupted: Trained, store: FeatureStore, tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path, callbacks=(CtrlC(steps),), **CHOICES)
        assert newest_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{steps // 3 * 3}")
        torch.manual_seed(99), np.random.seed(99), random.seed(99)

        made: list[int] = []
        report = ProgressReport(lambda done, *_: made.append(done))
        resumed = run(store, tmp_path, resume=True, callbacks=(report,), **CHOICES)

        assert made == list(range(steps // 3 * 3 + 1, 10)), "what was done is not done again"
        assert same_weights(resumed.model, uninterrupted.model)
        assert resumed.extractor.to_dict() == uninterrupted.extractor.to_dict()
        assert [entry.get("loss") for entry in resumed.log[:3]] == [
            entry.get("loss") for entry in uninterrupted.log[:3]
        ]

    def test_goes_on_from_the_middle_of_an_epoch_too(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        """Not bit-identical: there, the loader had already drawn the batch after the checkpoint."""
        choices = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path, callbacks=(CtrlC(5),), **choices)
        assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")

        resumed = run(store, tmp_path, resume=True, **choices)

        assert resumed.epochs == 3
        assert resumed.log[-1]["step"] == 9

    @pytest.mark.parametrize("damage", ["cut short", "not yet written"])
    def test_passes_over_a_checkpoint_that_was_being_written(
        self, damage: str, uninterrupted: Trained, store: FeatureStore, tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path, callbacks=(CtrlC(7),), **CHOICES)
        shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "checkpoint-9")
        state = tmp_path / "checkpoint-9" / "trainer_state.json"
        if damage == "cut short":
            state.write_bytes(state.read_bytes()[:40])
        else:
            state.unlink()

        resumed = run(store, tmp_path, resume=True, **CHOICES)

        assert same_weights(resumed.model, uninterrupted.model)

    def test_the_tenth_checkpoint_is_newer_than_the_ninth(self, tmp_path: Path) -> None:
        for step in (9, 10):
            (tmp_path / f"checkpoint-{step}").mkdir()
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        (tmp_path / "checkpoint-old").mkdir()

        assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    @pytest.mark.parametrize("folder", ["", "missing"])
    def test_without_a_checkpoint_is_refused(
        self, folder: str, store: FeatureStore, tmp_path: Path
    ) -> None:
        with pytest.raises(TrainingError, match="no checkpoint to resume from. Train without"):
            run(store, tmp_path / folder, resume=True)


def test_recordings_of_unknown_speakers_are_standardised_with_all_others() -> None:
    store = tiny_store()
    named = [index for index, speaker in enumerate(store.speakers) if speaker == "a"]
    store.speakers = [speaker if speaker == "a" else None for speaker in store.speakers]
    extractor = TimNetFeatureExtractor(mean=[0.5] * 39, std=[2.0] * 39)
    rows = range(len(store))
    plain = AugmentedSet(store, rows, extractor, Augmentation())
    by_speaker = AugmentedSet(store, rows, extractor, Augmentation(speaker_share=1.0))

    pairs = zip(plain.__getitems__(list(rows)), by_speaker.__getitems__(list(rows)), strict=True)

    for row, (one, other) in enumerate(pairs):
        same = torch.equal(one["input_values"], other["input_values"])
        assert same == (row not in named)
