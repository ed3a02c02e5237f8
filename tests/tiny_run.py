# SPDX-License-Identifier: Apache-2.0
"""A cross-validation of twelve recordings in three folds, with the tiny recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.crossvalidation import Plan, cross_validate, read_folds
from timnet_hf.feature_store import FeatureStore
from timnet_hf.protocols import Fold

from .tiny_training import tiny_recipe, tiny_store

EXTRACTOR = TimNetFeatureExtractor()
PLAN = Plan(
    corpus="toy",
    protocol="kfold",
    recipe=tiny_recipe(),
    data_sha256="0" * 64,
    shown_fold="fold-1",
    command="timnet cross-validate",
)


def three_folds(of: int = 3) -> list[Fold]:
    rows = np.arange(12)
    return [Fold(f"fold-{k + 1}", rows[rows % of != k], rows[rows % of == k]) for k in range(of)]


def run(results: Path, plan: Plan = PLAN, store: FeatureStore | None = None, **more: Any) -> Path:
    folds = more.pop("folds", three_folds())
    return cross_validate(plan, store or tiny_store(), EXTRACTOR, folds, results, **more)


def records(folder: Path, plan: Plan = PLAN) -> list[dict[str, Any]]:
    """The folds' JSON without what a clock says."""
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in read_folds(folder, plan, three_folds())
    ]
