# SPDX-License-Identifier: Apache-2.0
"""The plain classifiers beside every result: simple, deterministic, blind to the test fold."""

from __future__ import annotations

from typing import Any

import numpy as np

from timnet_hf.baseline import (
    BASELINES,
    all_statistics,
    baseline_predictions,
    recording_statistics,
    with_baselines,
)
from timnet_hf.feature_store import FeatureStore
from timnet_hf.protocols import Fold

from .tiny_training import poisoned, tiny_store

TRAIN = [0, 1, 2, 4, 5, 6, 8, 9, 10]
TEST = [3, 7, 11]


def predictions_of(store: FeatureStore, *sides: Any) -> dict[str, np.ndarray]:
    return baseline_predictions(all_statistics(store), store, *sides)


class TestStatistics:
    def test_by_hand(self) -> None:
        frames = np.array([[0.0, 5.0], [2.0, 5.0], [1.0, 5.0]])

        mean, deviation, change, low, high = recording_statistics(frames).reshape(5, 2)

        np.testing.assert_allclose(mean, [1, 5])
        np.testing.assert_allclose(deviation, [np.sqrt(2 / 3), 0])
        np.testing.assert_allclose(change, [1.5, 0])
        np.testing.assert_allclose(low, [0.2, 5])
        np.testing.assert_allclose(high, [1.8, 5])

    def test_one_frame_has_no_change(self) -> None:
        np.testing.assert_array_equal(
            recording_statistics(np.array([[3.0]])), [3.0, 0.0, 0.0, 3.0, 3.0]
        )


class TestPredictions:
    def test_tells_clear_classes_apart(self) -> None:
        store = tiny_store(gap=5.0)

        for predictions in predictions_of(store, TRAIN, TEST).values():
            assert predictions.tolist() == [0, 1, 2]

    def test_are_the_same_every_time(self) -> None:
        store = tiny_store(gap=0.1)

        one, other = (predictions_of(store, TRAIN, TEST) for _ in range(2))

        assert list(one) == list(other) == list(BASELINES)
        for name, predictions in one.items():
            np.testing.assert_array_equal(predictions, other[name])

    def test_a_voice_that_is_known_may_lie_anywhere(self) -> None:
        store = tiny_store(per_class=8, gap=5.0)
        own = [row for row, name in enumerate(store.speakers) if name == "a"]
        other = [row for row, name in enumerate(store.speakers) if name == "b"]
        for row in other:
            store.features[1.0][row] = 3 * store.features[1.0][row] + 1000

        plain, known = (predictions_of(store, own, other, known) for known in (False, True))

        for name in BASELINES:
            assert known[name].tolist() == store.labels[other].tolist() != plain[name].tolist()

    def test_learn_nothing_from_the_test_fold(self) -> None:
        store = tiny_store(per_class=16, gap=0.1)
        test = np.arange(0, 48, 2)
        train, judged, garbage = test + 1, test[::2], test[1::2]

        clean = predictions_of(store, train, judged)
        spoiled = poisoned(store, garbage, 1e3)
        beside_garbage = predictions_of(spoiled, train, test)
        learned = predictions_of(spoiled, np.concatenate([train, garbage]), judged)

        for name in BASELINES:
            assert beside_garbage[name][::2].tolist() == clean[name].tolist()
            assert learned[name].tolist() != clean[name].tolist(), "else this could not fail"

    def test_stand_in_the_records_of_every_seed(self) -> None:
        store, fold = tiny_store(gap=0.1), Fold("one", np.array(TRAIN), np.array(TEST))
        records = [{"fold": "one", "seed": 0}, {"fold": "one", "seed": 1, "enrolled": {}}]

        plain, known = with_baselines(records, store, [fold])

        expected = predictions_of(store, TRAIN, TEST)
        assert plain["baselines"] == known["baselines"]
        assert plain["baselines"] == {name: one.tolist() for name, one in expected.items()}
        adapted = predictions_of(store, TRAIN, TEST, True)
        assert known["adapted_baselines"] == {name: one.tolist() for name, one in adapted.items()}
        assert known["adapted_baselines"] != known["baselines"], "else this could not fail"
        assert "adapted_baselines" not in plain
