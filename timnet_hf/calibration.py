# SPDX-License-Identifier: Apache-2.0
"""Confidence that means something: a temperature, fitted on speakers held out of training.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017. The recipe
is trained once more with some of the *training* speakers left out, and the temperature is what
makes their labels most likely. Nothing of a test fold has a part in it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .protocols import Fold
from .recipes import Recipe

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .feature_store import FeatureStore

logger = logging.getLogger(__name__)

#: Into how many parts the training speakers are divided; each inner fold leaves one part out.
INNER_FOLDS = 4
_CANDIDATES = np.geomspace(0.05, 20, 1200)  # neighbours differ by half a percent


def fit_temperature(logits: np.ndarray, references: np.ndarray) -> float:
    """The temperature, 0.05 to 20, under which the references are most likely.

    Args:
        logits: (recordings, num_labels).
        references: (recordings,) class indices.
    """
    from .evaluation import softmax

    rows = np.arange(len(references))
    losses = [
        -np.log(np.maximum(softmax(logits, candidate)[rows, references], 1e-12)).mean()
        for candidate in _CANDIDATES
    ]
    best = int(np.argmin(losses))
    if best in (0, len(_CANDIDATES) - 1):
        logger.warning(
            "The temperature, %g, lies at the end of its range: the held-out recordings say little "
            "about how sure the model may be. Hold out more of them.",
            _CANDIDATES[best],
        )
    return round(float(_CANDIDATES[best]), 4)


def fitted_record(logits: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """The temperature that suits recordings held out, and what it does to their calibration.

    Returns:
        ``temperature``, the number of ``recordings``, and their expected calibration error without
        it (``ece_uncalibrated``) and with it (``ece``).
    """
    from .evaluation import softmax
    from .reporting import expected_calibration_error

    value = fit_temperature(logits, references)
    errors = {
        name: round(expected_calibration_error(softmax(logits, one), references), 4)
        for name, one in (("ece_uncalibrated", 1.0), ("ece", value))
    }
    return {"temperature": value, "recordings": len(references), **errors}


def inner_temperature(*arguments: Any, **options: Any) -> float:
    """Train the recipe on each inner fold and fit one temperature to what was left out.

    Takes what :func:`held_out_logits` does.

    Raises:
        TrainingError: A label has no recording in an inner fold, or a training diverged.
    """
    return fit_temperature(*held_out_logits(*arguments, **options))


def held_out_logits(
    store: FeatureStore,
    inner: Sequence[Fold],
    recipe: Recipe,
    extractor: TimNetFeatureExtractor,
    seed: int,
    config: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Train the recipe on each inner fold and ask it about what was left out.

    Returns:
        Logits (recordings, num_labels) and class indices (recordings,) of all that was left out.

    Raises:
        TrainingError: A label has no recording in an inner fold, or a training diverged.
    """
    from .evaluation import score
    from .training import TrainingError, build_arguments, train

    logits, references = [], []
    for fold in inner:
        with tempfile.TemporaryDirectory(prefix="timnet-inner-") as scratch:
            alone = {
                "disable_tqdm": True,
                "logging_strategy": "no",
                "save_strategy": "no",
                "report_to": [],
                "push_to_hub": False,
            }
            arguments = build_arguments(recipe, scratch, seed, {**(overrides or {}), **alone})
            trained = train(store, fold.train, recipe, extractor, arguments, config)
        logits.append(score(trained.model, trained.extractor, store, fold.test)[0])
        if not np.isfinite(logits[-1]).all():
            raise TrainingError(
                f"{fold.name}, of which the temperature is fitted: the training diverged, its "
                "logits are not finite. Lower the learning rate."
            )
        references.append(store.labels[fold.test])
    return np.concatenate(logits), np.concatenate(references)


__all__ = [
    "INNER_FOLDS",
    "fit_temperature",
    "fitted_record",
    "held_out_logits",
    "inner_temperature",
]
