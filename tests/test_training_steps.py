# SPDX-License-Identifier: Apache-2.0
"""What one step of training sees: recordings, their augmentation, a padded batch, its loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import Trainer, TrainingArguments

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.feature_store import FeatureStore
from timnet_hf.recipes import Augmentation
from timnet_hf.training_steps import AugmentedSet, RecordingSet, SoftTargetLoss, collate

from .tiny_training import tiny_recipe, tiny_store

PLAIN = TimNetFeatureExtractor()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def store() -> FeatureStore:
    return tiny_store()


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
        assert list(recordings.features) == [1.0], "no speed is made ready that nobody asks for"
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
