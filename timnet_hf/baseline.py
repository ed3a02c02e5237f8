# SPDX-License-Identifier: Apache-2.0
"""The sanity row: a support-vector classifier on plain statistics of the same features.

A network that loses to it has not earned its place, and the tables say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .feature_store import FeatureStore
    from .training import Rows


def recording_statistics(features: np.ndarray) -> np.ndarray:
    """Mean, deviation, mean absolute change and 10th and 90th percentile of each coefficient.

    Args:
        features: (frames, feature_size).

    Returns:
        (5 · feature_size,) float64.
    """
    frames = np.asarray(features, dtype=np.float64)
    change = (
        np.abs(np.diff(frames, axis=0)).mean(0) if len(frames) > 1 else np.zeros(frames.shape[1])
    )
    return np.concatenate(
        [frames.mean(0), frames.std(0), change, *np.percentile(frames, (10, 90), axis=0)]
    )


def baseline_predictions(store: FeatureStore, train: Rows, test: Rows) -> np.ndarray:
    """Class indices that the baseline, trained on ``train``, gives the recordings of ``test``."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    classifier = make_pipeline(StandardScaler(), SVC(C=10.0, class_weight="balanced"))
    table = {row: recording_statistics(store.original[row]) for row in {*train, *test}}
    classifier.fit(np.stack([table[row] for row in train]), store.labels[np.asarray(train)])
    return classifier.predict(np.stack([table[row] for row in test]))


__all__ = ["baseline_predictions", "recording_statistics"]
