# SPDX-License-Identifier: Apache-2.0
"""Training: the augmentation, the loss, and runs that can be repeated, stopped and gone on with."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.feature_store import FeatureStore
from timnet_hf.recipes import Augmentation, Recipe
from timnet_hf.training import (
    AugmentedSet,
    ProgressReport,
    RecordingSet,
    SoftTargetLoss,
    Trained,
    TrainingError,
    build_arguments,
    build_model,
    collate,
    newest_checkpoint,
    train,
)

from .tiny_training import poisoned, same_weights, tiny_recipe, tiny_store

PLAIN = TimNetFeatureExtractor()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; what is drawn, on the seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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


def augmented(store: FeatureStore, smoothing: float = 0.0, **choices: Any) -> AugmentedSet:
    choices = {"speeds": (1.0,), **choices}
    return AugmentedSet(store, range(len(store)), PLAIN, Augmentation(**choices), smoothing)


def clips_of(batch: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [example["input_values"] for example in batch]


def targets_of(batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([example["labels"] for example in batch])


class TestRecordingSet:
    def test_hands_out_normalised_features_and_one_hot_targets(self, store: FeatureStore) -> None:
        mean, std = store.statistics([3, 9])
        extractor = TimNetFeatureExtractor(mean=mean.tolist(), std=std.tolist())
        recordings = RecordingSet(store, [9, 3], extractor)

        assert len(recordings) == 2
        example = recordings[0]
        np.testing.assert_allclose(
            example["input_values"], (store.original[9] - mean) / std, atol=1e-5
        )
        assert example["labels"].tolist() == [0.0, 0.0, 1.0]
        assert recordings[1]["labels"].tolist() == [1.0, 0.0, 0.0]


class TestAugmentation:
    def test_none_leaves_the_recordings_as_they_are(self, store: FeatureStore) -> None:
        batch = augmented(store).__getitems__([4, 0])

        for clip, row in zip(clips_of(batch), (4, 0), strict=True):
            np.testing.assert_array_equal(clip, store.original[row])
        assert targets_of(batch).tolist() == [[0, 1, 0], [1, 0, 0]]

    def test_smoothing_shares_a_tenth_among_all_labels(self, store: FeatureStore) -> None:
        targets = targets_of(augmented(store, smoothing=0.1).__getitems__([0]))

        torch.testing.assert_close(targets, torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]]))

    def test_draws_every_speed_of_the_recipe_and_no_other(self, store: FeatureStore) -> None:
        recordings = augmented(store, speeds=(0.9, 1.1))

        seen = {len(clip) for _ in range(30) for clip in clips_of(recordings.__getitems__([0]))}

        assert seen == {len(store.features[0.9][0]), len(store.features[1.1][0])}

    def test_crops_long_recordings_at_a_random_place(self, store: FeatureStore) -> None:
        recordings = augmented(store, max_seconds=0.2)  # ten frames
        whole = torch.from_numpy(store.original[0])
        places = whole.unfold(0, 10, 1).transpose(1, 2)  # every stretch of ten frames

        found = set()
        for _ in range(200):
            (clip,) = clips_of(recordings.__getitems__([0]))
            (place,) = (places == clip).all((1, 2)).nonzero().flatten().tolist()
            found.add(place)

        assert found == set(range(len(places)))

    def test_keeps_recordings_that_are_short_enough(self, store: FeatureStore) -> None:
        (clip,) = clips_of(augmented(store, max_seconds=5.0).__getitems__([0]))

        assert len(clip) == len(store.original[0])

    def test_offsets_each_coefficient_by_one_constant(self, store: FeatureStore) -> None:
        recordings = augmented(store, offset_std=0.3)

        offsets = []
        for _ in range(200):
            (clip,) = clips_of(recordings.__getitems__([0]))
            change = clip - torch.from_numpy(store.original[0])
            torch.testing.assert_close(change, change[:1].expand_as(change), atol=1e-5, rtol=0)
            offsets.append(change[0])

        drawn = torch.stack(offsets)
        assert float(drawn.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(drawn.std()) == pytest.approx(0.3, abs=0.02)

    def test_masks_one_run_of_frames_and_one_of_coefficients(self, store: FeatureStore) -> None:
        recordings = augmented(store, mask_frames=4, mask_coefficients=5)
        untouched = [values.copy() for values in store.original]

        widths = set()
        for _ in range(100):
            (clip,) = clips_of(recordings.__getitems__([0]))
            zero = clip == 0
            frames, coefficients = zero.all(1), zero.all(0)
            assert bool((zero == (frames[:, None] | coefficients[None, :])).all())
            for blanked in (frames, coefficients):
                assert int(blanked.int().diff().abs().sum()) <= 2  # in one piece
            widths.add((int(frames.sum()), int(coefficients.sum())))

        assert {width for width, _ in widths} == set(range(5))
        assert {width for _, width in widths} == set(range(6))
        for before, after in zip(untouched, store.original, strict=True):
            np.testing.assert_array_equal(before, after)  # the store itself stays whole

    def test_mixes_recordings_and_targets_by_the_same_weight(self, store: FeatureStore) -> None:
        recordings = augmented(store, mixup=1.0, mixup_alpha=1.0)
        first, second = (torch.from_numpy(store.original[row]) for row in (0, 4))
        repeated = second[torch.arange(len(first)) % len(second)]

        weights = []
        for _ in range(20):
            batch = recordings.__getitems__([0, 4])
            weight = float(targets_of(batch)[0, 0])
            weights.append(weight)
            clip = clips_of(batch)[0]
            torch.testing.assert_close(
                clip, weight * first + (1 - weight) * repeated, atol=1e-5, rtol=0
            )

        assert any(0.05 < weight < 0.95 for weight in weights)

    def test_mixes_the_share_of_recordings_that_was_asked_for(self, store: FeatureStore) -> None:
        recordings = augmented(store, mixup=0.5, mixup_alpha=5.0)

        batches = [targets_of(recordings.__getitems__(list(range(12)))) for _ in range(60)]

        mixed = torch.cat(batches).max(1).values < 1
        # A partner of the same class, two thirds of 8 in 11 are not, leaves the target one-hot.
        assert float(mixed.float().mean()) == pytest.approx(0.5 * 8 / 12, abs=0.06)

    def test_targets_sum_to_one_whatever_is_done(self, store: FeatureStore) -> None:
        recipe = tiny_recipe()
        recordings = AugmentedSet(store, range(12), PLAIN, recipe.augmentation, 0.1)

        for _ in range(10):
            targets = targets_of(recordings.__getitems__([0, 3, 5, 8, 11]))
            torch.testing.assert_close(targets.sum(1), torch.ones(5))
            assert float(targets.min()) > 0

    def test_a_recording_alone_in_its_batch_is_not_mixed(self, store: FeatureStore) -> None:
        (target,) = targets_of(augmented(store, mixup=1.0).__getitems__([5])).tolist()

        assert target == [0.0, 1.0, 0.0]

    def test_all_chance_is_torchs(self, store: FeatureStore) -> None:
        recordings = AugmentedSet(store, range(12), PLAIN, tiny_recipe().augmentation, 0.1)
        others = random.getstate(), np.random.get_state()[1].copy()

        torch.manual_seed(7)
        one = recordings.__getitems__([0, 1, 2, 5])
        random.seed(1), np.random.seed(1)
        torch.manual_seed(7)
        other = recordings.__getitems__([0, 1, 2, 5])
        torch.manual_seed(8)
        third = recordings.__getitems__([0, 1, 2, 5])

        for left, right in zip(one, other, strict=True):
            assert torch.equal(left["input_values"], right["input_values"])
            assert torch.equal(left["labels"], right["labels"])
        assert not all(
            torch.equal(a["labels"], b["labels"]) for a, b in zip(one, third, strict=True)
        )
        random.setstate(others[0])
        torch.manual_seed(7)
        recordings.__getitems__([0, 1, 2, 5])
        assert random.getstate() == others[0]


class TestCollate:
    def test_pads_at_the_end_and_masks_the_padding(self) -> None:
        examples = [
            {"input_values": torch.ones(3, 2), "labels": torch.tensor([1.0, 0.0])},
            {"input_values": 2 * torch.ones(1, 2), "labels": torch.tensor([0.0, 1.0])},
        ]

        batch = collate(examples)

        assert batch["input_values"].tolist() == [[[1, 1]] * 3, [[2, 2], [0, 0], [0, 0]]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert batch["labels"].tolist() == [[1, 0], [0, 1]]

    def test_needs_no_mask_where_nothing_is_padded(self) -> None:
        example = {"input_values": torch.ones(3, 2), "labels": torch.tensor([1.0, 0.0])}

        assert "attention_mask" not in collate([example, example])


class TestLoss:
    @pytest.fixture
    def logits(self) -> torch.Tensor:
        return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def test_is_cross_entropy_with_label_smoothing(
        self, logits: torch.Tensor, store: FeatureStore
    ) -> None:
        rows = [0, 4, 8, 1, 5, 9]
        targets = targets_of(augmented(store, smoothing=0.1).__getitems__(rows))

        loss = SoftTargetLoss(torch.ones(3))({"logits": logits}, targets)

        labels = torch.from_numpy(store.labels[rows])
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))

    def test_weighs_labels_as_torch_weighs_soft_targets(self, logits: torch.Tensor) -> None:
        targets = torch.softmax(2 * logits.flip(0), -1)
        weights = torch.tensor([0.5, 1.0, 3.0])

        loss = SoftTargetLoss(weights)({"logits": logits}, targets)

        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, weight=weights))

    def test_parts_of_a_step_add_up_to_the_whole(self, logits: torch.Tensor) -> None:
        targets = torch.softmax(logits.flip(0), -1)
        loss = SoftTargetLoss(torch.tensor([0.5, 1.0, 3.0]))

        parts = [
            loss({"logits": logits[part]}, targets[part], num_items_in_batch=torch.tensor(6 * 3))
            for part in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]

        torch.testing.assert_close(sum(parts), loss({"logits": logits}, targets))

    def test_accumulated_gradients_are_those_of_one_big_batch(
        self, store: FeatureStore, tmp_path: Path
    ) -> None:
        """On a network without batch statistics, where the two must agree; uneven end included."""

        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(39, 3)

            def forward(self, input_values: torch.Tensor, attention_mask: Any = None) -> Any:
                return {"logits": self.linear(input_values.sum(1) / 20)}

        def weights(batch: int, accumulated: int) -> torch.Tensor:
            torch.manual_seed(0)
            network = Mean()
            arguments = TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulated,
                num_train_epochs=1,
                optim="sgd",
                learning_rate=0.1,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                label_names=["labels"],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            Trainer(
                model=network,
                args=arguments,
                train_dataset=augmented(store, smoothing=0.1),
                data_collator=collate,
                compute_loss_func=SoftTargetLoss(torch.tensor([0.5, 1.0, 3.0])),
            ).train()
            return network.linear.weight.detach()

        # Twelve recordings: steps of eight and of four.
        torch.testing.assert_close(weights(8, 1), weights(2, 4), atol=1e-6, rtol=1e-5)


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

        resumed = run(store, tmp_path, resume=True, **CHOICES)

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
