# SPDX-License-Identifier: Apache-2.0
"""The sanity rows: plain classifiers on plain statistics of the same features.

A support-vector classifier and logistic regression. A network that loses to either has not earned
its place, and the tables say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .feature_store import FeatureStore
    from .protocols import Fold
    from .training_steps import Rows

#: Name in reports → what tables call it.
BASELINES = {"svc": "SVC", "linear": "logistic regression"}


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


def all_statistics(store: FeatureStore) -> np.ndarray:
    """`recording_statistics` of every recording: (recordings, 5 · feature_size)."""
    return np.stack([recording_statistics(features) for features in store.original])


def baseline_predictions(
    statistics: np.ndarray, store: FeatureStore, train: Rows, test: Rows, per_speaker: bool = False
) -> dict[str, np.ndarray]:
    """What each of ``BASELINES``, trained on ``train``, says of the recordings of ``test``.

    Args:
        statistics: See `all_statistics`.
        store: Labels and speakers of the corpus.
        train: Rows to learn from.
        test: Rows to judge.
        per_speaker: Standardise the statistics over each speaker's own recordings, apart on either
            side: what a plain classifier makes of speakers that are known. Rows without a speaker
            count as one speaker's.

    Returns:
        Name → class indices (recordings of ``test``,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    sides = []
    for rows in (np.asarray(train), np.asarray(test)):
        table = statistics[rows]
        if per_speaker:
            speakers = np.array([str(store.speakers[row]) for row in rows])
            for speaker in np.unique(speakers):
                own = speakers == speaker
                table[own] = StandardScaler().fit_transform(table[own])
        sides.append(table)
    classifiers = {
        "svc": SVC(C=10.0, class_weight="balanced"),
        "linear": LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000),
    }
    predictions = {}
    for name, classifier in classifiers.items():
        model = make_pipeline(StandardScaler(), classifier)
        model.fit(sides[0], store.labels[np.asarray(train)])
        predictions[name] = model.predict(sides[1])
    return predictions


def with_baselines(
    records: Sequence[dict[str, Any]], store: FeatureStore, folds: Sequence[Fold]
) -> list[dict[str, Any]]:
    """The folds' records of all seeds, each with what the plain classifiers say of its recordings.

    They take seconds and depend on no seed, so they are made for a report and not kept with a fold.
    Records that were scored with enrolled speakers get those that know each speaker too.
    """
    statistics = all_statistics(store)
    known = any("enrolled" in record for record in records)
    plain, adapted = (
        {
            fold.name: {
                name: predictions.tolist()
                for name, predictions in baseline_predictions(
                    statistics, store, fold.train, fold.test, per_speaker
                ).items()
            }
            for fold in folds
        }
        if needed
        else {}
        for per_speaker, needed in ((False, True), (True, known))
    )
    return [
        {
            **record,
            "baselines": plain[record["fold"]],
            **({"adapted_baselines": adapted[record["fold"]]} if "enrolled" in record else {}),
        }
        for record in records
    ]


def verdict(report: dict[str, Any]) -> str:
    """Where a report's network does not beat a plain classifier, in words; empty if nowhere."""
    lost: dict[str, list[str]] = {}
    level: dict[str, list[str]] = {}
    for name, figures in report.get("baselines", {}).items():
        gaps = {metric: report[metric]["pooled"] - figures[metric] for metric in ("uar", "war")}
        for found, metrics in (
            (lost, [metric.upper() for metric, gap in gaps.items() if gap < 0]),
            (level, [metric.upper() for metric, gap in gaps.items() if gap == 0]),
        ):
            if metrics:
                found.setdefault(" and ".join(metrics), []).append(f"the {BASELINES[name]}")
    parts = [
        f"{words} {f', and {words.split()[-1]} '.join(_in_words(found))}"
        for words, found in (("loses to", lost), ("is level with", level))
        if found
    ]
    return "; ".join(parts)


def _in_words(found: dict[str, list[str]]) -> list[str]:
    return [f"{' and '.join(names)} in {metrics}" for metrics, names in found.items()]


__all__ = [
    "BASELINES",
    "all_statistics",
    "baseline_predictions",
    "recording_statistics",
    "verdict",
    "with_baselines",
]
