# SPDX-License-Identifier: Apache-2.0
"""One fold of a cross-validation: train on one side, judge the other, note all a report needs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .crossvalidation_plan import CrossValidationError, Plan
from .provenance import code_checksum, versions

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .feature_store import FeatureStore
    from .protocols import Fold

#: How many of a new speaker's recordings are enrolled to see what knowing the voice brings.
ENROLMENT_COUNTS = ("1", "3", "10", "all")


#: The state of the code when it was loaded: the files may change while folds are trained.
CODE = code_checksum()


def run_fold(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    seed: int,
    fold: Fold,
) -> dict[str, Any]:
    """Train on one fold's training side, score its test side.

    Args:
        plan: The run.
        store: Features of all recordings.
        extractor: The extractor they were made with.
        seed: Of weights, order and augmentation.
        fold: Rows to train on and to test on.

    Returns:
        What the fold's JSON holds: logits of its test side, and all else that a report needs.

    Raises:
        CrossValidationError: The training diverged.
        TrainingError: A label has no recording to train on, or a training on an inner fold
            diverged.
    """
    import torch

    from .calibration import inner_temperature
    from .evaluation import BestOnTest, LastEpochs, score, tsne, uar, war
    from .training import build_arguments, train

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="timnet-fold-") as scratch:
        arguments = build_arguments(
            plan.recipe,
            scratch,
            seed,
            {"disable_tqdm": True, "logging_strategy": "no", **(plan.arguments or {})},
        )
        watcher = BestOnTest(store, fold.test) if plan.selection == "best-on-test" else None
        steadiness = LastEpochs(store, fold.test)
        trained = train(
            store,
            fold.train,
            plan.recipe,
            extractor,
            arguments,
            plan.config,
            callbacks=[steadiness, *([watcher] if watcher else [])],
        )
    last_logits, _ = score(trained.model, trained.extractor, store, fold.test)
    logits = last_logits if watcher is None else watcher.logits
    if not (np.isfinite(logits).all() and np.isfinite(last_logits).all()):
        raise CrossValidationError(
            f"seed {seed}, {fold.name}: the training diverged, its logits are not finite. Lower "
            "the learning rate."
        )
    temperature = None
    if fold.inner:
        temperature = inner_temperature(
            store, fold.inner, plan.recipe, extractor, seed, plan.config, plan.arguments
        )
    references = store.labels[fold.test]
    record = {
        "fingerprint": plan.fingerprint(),
        "fold": fold.name,
        "seed": seed,
        "n_train": len(fold.train),
        "parameters": trained.model.num_parameters(only_trainable=True),
        "labels": store.label_names,
        "rows": fold.test.tolist(),
        "files": [Path(store.paths[row]).name for row in fold.test],
        "speakers": [store.speakers[row] for row in fold.test],
        "references": references.tolist(),
        "logits": np.round(logits.astype(float), 4).tolist(),
        **({"last_logits": np.round(last_logits.astype(float), 4).tolist()} if watcher else {}),
        **_enrolled(plan, trained, store, seed, fold),
        **({"temperature": temperature} if temperature is not None else {}),
        "last_epochs": steadiness.predictions,
        "fusion_weights": _fusion_weights(trained.model),
        "uar": uar(references, logits.argmax(1)),
        "war": war(references, logits.argmax(1)),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"code": CODE, **versions()},
        "threads": torch.get_num_threads(),
    }
    # The model at hand is that of the last epoch; a map is drawn of the one that is reported.
    if seed == plan.seeds[0] and fold.name == plan.shown_fold and watcher is None:
        _, fused = score(trained.model, trained.extractor, store, range(len(store)))
        record["tsne"] = np.round(tsne(fused).astype(float), 2).tolist()
        record["tsne_labels"] = store.labels.tolist()
    return record


def _enrolled(
    plan: Plan, trained: Any, store: FeatureStore, seed: int, fold: Fold
) -> dict[str, dict[str, list[list[float]]]]:
    """The test side's logits once more, each voice known from 1, 3, 10 or all its recordings.

    Only for recipes whose features are standardised, for that is what adaptation puts right, and
    only where the test speakers are known by name and new to the model. The recordings are drawn at
    random and their labels are not looked at.
    """
    from .evaluation import score

    named = all(store.speakers[row] is not None for row in fold.test)
    speakers = np.array([str(name) for name in store.speakers])
    new = set(speakers[fold.test]).isdisjoint(speakers[fold.train])
    last = plan.selection != "best-on-test"  # else the model at hand is not the one that is judged
    if not (named and new and last and plan.recipe.standardize):
        return {}
    logits = {
        count: np.zeros((len(fold.test), len(store.label_names))) for count in ENROLMENT_COUNTS
    }
    for speaker in sorted(set(speakers[fold.test])):
        own = np.flatnonzero(speakers[fold.test] == speaker)
        drawn = enrolment_order(fold.test[own], seed)
        for count, scores in logits.items():
            enrolled = drawn if count == "all" else drawn[: int(count)]
            scores[own], _ = score(
                trained.model, trained.extractor, store, fold.test[own], enrolled=enrolled
            )
    return {"enrolled": {count: np.round(scores, 4).tolist() for count, scores in logits.items()}}


def enrolment_order(rows: np.ndarray, seed: int) -> np.ndarray:
    """In which order a voice's recordings are enrolled: at random, another one for each seed."""
    return np.random.default_rng(seed).permutation(rows)


def _fusion_weights(model: Any) -> list[float]:
    import torch

    fusion = model.timnet.fusion
    with torch.no_grad():
        _, weights = fusion(torch.zeros(1, fusion.num_scales, 1))
    return [round(weight, 4) for weight in weights.tolist()]


__all__ = ["CODE", "ENROLMENT_COUNTS", "enrolment_order", "run_fold"]
