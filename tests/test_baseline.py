# SPDX-License-Identifier: Apache-2.0
"""The plain classifier beside every result: simple, deterministic, blind to the test fold."""

from __future__ import annotations

import numpy as np

from timnet_hf.baseline import baseline_predictions, recording_statistics

from .tiny_training import poisoned, tiny_store

TRAIN = [0, 1, 2, 4, 5, 6, 8, 9, 10]
TEST = [3, 7, 11]


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

        assert baseline_predictions(store, TRAIN, TEST).tolist() == [0, 1, 2]

    def test_are_the_same_every_time(self) -> None:
        store = tiny_store(gap=0.1)

        one, other = (baseline_predictions(store, TRAIN, TEST) for _ in range(2))

        np.testing.assert_array_equal(one, other)

    def test_learn_nothing_from_the_test_fold(self) -> None:
        store = tiny_store(gap=0.1)

        clean = baseline_predictions(store, TRAIN, [3])
        beside_garbage = baseline_predictions(poisoned(store, [7, 11], 1e6), TRAIN, TEST)

        assert beside_garbage[0] == clean[0]
