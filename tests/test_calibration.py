# SPDX-License-Identifier: Apache-2.0
"""A temperature makes confidence honest, and is found without looking at the test side."""

from __future__ import annotations

import numpy as np
import pytest

from timnet_hf.calibration import fit_temperature, fitted_record, inner_temperature
from timnet_hf.evaluation import softmax
from timnet_hf.feature_store import FeatureStore
from timnet_hf.protocols import Fold
from timnet_hf.recipes import Augmentation, Recipe
from timnet_hf.reporting import expected_calibration_error
from timnet_hf.training import build_extractor

TINY = Recipe(
    name="tiny",
    preset="default",
    config={"hidden_size": 4, "num_hidden_layers": 2},
    arguments={"num_train_epochs": 1, "per_device_train_batch_size": 8},
    augmentation=Augmentation(),
)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(true_temperature):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (4000, 5))
    chances = softmax(logits, true_temperature)
    labels = (chances.cumsum(1) > generator.random((4000, 1))).argmax(1)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(true_temperature, rel=0.1)
    assert expected_calibration_error(softmax(logits, fitted), labels) < 0.03


def test_what_it_did_to_the_calibration_is_noted():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (4000, 5))
    labels = (softmax(logits, 3.0).cumsum(1) > generator.random((4000, 1))).argmax(1)
    record = fitted_record(logits, labels)
    assert record["temperature"] == fit_temperature(logits, labels) and record["recordings"] == 4000
    before = expected_calibration_error(softmax(logits), labels)
    assert record["ece_uncalibrated"] == pytest.approx(before, abs=1e-4) and before > 0.2
    assert record["ece"] < 0.03


def test_a_temperature_at_the_end_of_its_range_is_told(caplog: pytest.LogCaptureFixture) -> None:
    logits = np.eye(4) * 3
    assert fit_temperature(logits, np.arange(4)) == 0.05  # never wrong: no confidence is too high
    assert "lies at the end of its range" in caplog.text
    caplog.clear()
    fit_temperature(np.vstack([logits, logits]), np.array([0, 1, 2, 3, 0, 1, 3, 2]))
    assert not caplog.text


def store(seed: int = 0) -> FeatureStore:
    generator = np.random.default_rng(seed)
    labels = np.arange(24) % 2
    features = [
        generator.normal(label, 1, (20 + row, 39)).astype("float32")
        for row, label in enumerate(labels)
    ]
    names = [f"{row}.wav" for row in range(24)]
    return FeatureStore(
        {1.0: features}, labels, ["a", "b"], names, [str(r // 6) for r in range(24)]
    )


def test_poisoned_test_recordings_do_not_move_the_temperature():
    """The fold's test side (rows 18 to 23) is in no inner fold, whatever it holds."""
    inner = [Fold("inner-01", np.arange(6, 18), np.arange(6))]
    clean, poisoned = store(), store()
    for row in range(18, 24):
        poisoned.features[1.0][row] = np.full_like(poisoned.features[1.0][row], 1e6)
        poisoned.labels[row] = 1 - poisoned.labels[row]
    fitted = [
        inner_temperature(data, inner, TINY, build_extractor(TINY), seed=0)
        for data in (clean, poisoned)
    ]
    assert fitted[0] == fitted[1]


def test_inner_recordings_do_move_the_temperature():
    inner = [Fold("inner-01", np.arange(6, 18), np.arange(6))]
    turned = store()
    turned.labels[:6] = 1 - turned.labels[:6]
    fitted = [
        inner_temperature(data, inner, TINY, build_extractor(TINY), seed=0)
        for data in (store(), turned)
    ]
    assert fitted[0] != fitted[1]
