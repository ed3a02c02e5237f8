# SPDX-License-Identifier: Apache-2.0
"""Several corpora as one: to learn from all of them, or to learn from one and be judged on another.

Labels are matched by name. Corpora name them alike only as far as they mean the same: RAVDESS'
"calm" and EMO-DB's "boredom" have no counterpart, and stay or go as the caller asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .corpora import identical_recordings
from .crossvalidation import CrossValidationError
from .experiment import Data
from .protocols import Fold

if TYPE_CHECKING:
    from datasets import Dataset


def join_corpora(parts: Sequence[Data], shared_labels: bool = False) -> Data:
    """Put corpora one after another, under one set of labels.

    Args:
        parts: What to join, in this order.
        shared_labels: Keep only the labels that all of them have, and their recordings; otherwise
            the union of all labels.

    Returns:
        All recordings kept; speakers and sentences bear their corpus' name, as in ``emodb:03``.

    Raises:
        CrossValidationError: A corpus is given twice, or fewer than two labels are shared.
    """
    from datasets import ClassLabel, concatenate_datasets

    names = [part.name for part in parts]
    if len(set(names)) < len(names) or len({part.sha256 for part in parts}) < len(parts):
        raise CrossValidationError(f"{', '.join(names)}: the same corpus twice. Name two corpora.")
    label_sets = [set(part.dataset.features["label"].names) for part in parts]
    labels = sorted(set.intersection(*label_sets) if shared_labels else set.union(*label_sets))
    if len(labels) < 2:
        raise CrossValidationError(
            f"{', '.join(names)}: fewer than two labels in common. Choose corpora that share some."
        )
    joined = concatenate_datasets([_relabelled(part, labels) for part in parts])
    return Data(
        name="-".join(names),
        corpora=tuple(name for part in parts for name in part.corpora),
        dataset=joined.cast_column("label", ClassLabel(names=labels)),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )


def _relabelled(part: Data, labels: list[str]) -> Dataset:
    """The recordings that have one of the labels, numbered in the labels' order."""
    from datasets import Value

    dataset, own = part.dataset, part.dataset.features["label"].names
    chosen = [row for row, label in enumerate(dataset["label"]) if own[label] in labels]
    dataset = dataset.select(chosen)
    columns: dict[str, list[int] | list[str | None]] = {
        "label": [labels.index(own[label]) for label in dataset["label"]]
    }
    for name in ("speaker", "sentence"):
        values = list(dataset[name])
        columns[name] = [None if value is None else f"{part.name}:{value}" for value in values]
    for name, values in columns.items():
        kind = Value("int64" if name == "label" else "string")
        dataset = dataset.remove_columns(name).add_column(name, values, feature=kind)
    return dataset.select_columns(["path", "audio", "label", "speaker", "sentence"])


def cross_corpus_fold(train: Data, test: Data) -> tuple[Data, Fold]:
    """One fold: learn from all of one corpus, be judged on all of another, over shared labels.

    A recording that both hold is only judged on, not learned from.

    Raises:
        CrossValidationError: They are the same corpus, share fewer than two labels, or one of the
            shared labels has no recording.
    """
    joined = join_corpora([train, test], shared_labels=True)
    names = joined.dataset.features["label"].names
    kept = sum(
        train.dataset.features["label"].names[label] in names for label in train.dataset["label"]
    )
    twins = [
        row for same in identical_recordings(joined.dataset) if same[-1] >= kept for row in same
    ]
    learned = np.setdiff1d(np.arange(kept), twins)
    fold = Fold(f"to-{test.name}", learned, np.arange(kept, len(joined.dataset)))
    labels = np.asarray(joined.dataset["label"])
    for part, rows in ((train, fold.train), (test, fold.test)):
        if missing := set(range(len(names))) - set(labels[rows].tolist()):
            absent = ", ".join(names[label] for label in sorted(missing))
            raise CrossValidationError(f"{part.name}: no recording of {absent}. Add some.")
    return joined, fold


__all__ = ["cross_corpus_fold", "join_corpora"]
