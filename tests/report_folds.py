# SPDX-License-Identifier: Apache-2.0
"""A cross-validation of eight recordings, small enough to reckon its figures by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from timnet_hf.crossvalidation import Plan
from timnet_hf.evaluation import uar, war

from .tiny_training import tiny_recipe

NAMES = ["angry", "happy", "sad"]
PLAN = Plan(
    corpus="toy",
    protocol="loso",
    recipe=tiny_recipe(),
    data_sha256="0" * 64,
    seeds=(0, 1),
    shown_fold="speaker-a",
    command="timnet cross-validate --corpus toy",
)

#: Reference → prediction of two speakers' recordings, for two seeds, and the baselines'.
REFERENCES = {"a": [0, 0, 1, 2], "b": [0, 1, 1, 2]}
PREDICTIONS = {
    0: {"a": [0, 1, 1, 2], "b": [0, 1, 1, 0]},
    1: {"a": [0, 0, 1, 2], "b": [2, 1, 0, 0]},
}
BASELINE = {"a": [0, 0, 1, 1], "b": [0, 0, 1, 0]}


def fold(seed: int, speaker: str, first_row: int) -> dict[str, Any]:
    references, predictions = REFERENCES[speaker], PREDICTIONS[seed][speaker]
    return {
        "fingerprint": PLAN.fingerprint(),
        "fold": f"speaker-{speaker}",
        "seed": seed,
        "n_train": 4,
        "parameters": 1234,
        "labels": NAMES,
        "rows": list(range(first_row, first_row + 4)),
        "files": ["x.wav"] * 4,
        "speakers": [speaker] * 4,
        "references": references,
        "logits": (np.eye(3)[predictions] * 2).tolist(),
        "fusion_weights": [0.5, 0.1 + seed],
        "baselines": {"svc": BASELINE[speaker], "linear": BASELINE[speaker]},
        "adapted_baselines": {"svc": references, "linear": BASELINE[speaker]},
        "uar": uar(np.array(references), np.array(predictions)),
        "war": war(np.array(references), np.array(predictions)),
        "seconds": 1.4,
        "versions": {"code": "abc", "torch": "2.14.1", "numpy": "2"},
        "threads": 2,
    }


def make_folds() -> list[dict[str, Any]]:
    """Of two seeds and two speakers; the first draws a map."""
    made = [fold(seed, name, row) for seed in (0, 1) for name, row in (("a", 0), ("b", 4))]
    made[0]["tsne"] = np.random.default_rng(0).standard_normal((8, 2)).tolist()
    return made


def pooled(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array(REFERENCES["a"] + REFERENCES["b"]),
        np.array(PREDICTIONS[seed]["a"] + PREDICTIONS[seed]["b"]),
    )
