# SPDX-License-Identifier: Apache-2.0
"""A training that comes out the same however it is shared out; run by torchrun or in a test.

All recordings sound alike, and only their labels differ. So batch statistics do not depend on
which process sees which recording, and what is left is the arithmetic: how losses, class weights
and gradients of the processes add up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from timnet_hf.evaluation import uar
from timnet_hf.feature_store import FeatureStore
from timnet_hf.ranks import is_first
from timnet_hf.recipes import Augmentation, Recipe
from timnet_hf.training import build_arguments, build_extractor, train
from timnet_hf.training_steps import RecordingSet, collate

LABELS = ["angry", "happy", "sad"]


def recordings(count: int, alike: bool) -> FeatureStore:
    rng = np.random.default_rng(0)
    same = rng.standard_normal((20, 39)).astype(np.float32)
    other = [rng.standard_normal((20, 39)).astype(np.float32) for _ in range(count)]
    labels = np.array([0] * (count - 5) + [1] * 3 + [2] * 2)
    return FeatureStore(
        features={1.0: [same] * count if alike else other},
        labels=rng.permutation(labels),
        label_names=LABELS,
        paths=[f"{number}.wav" for number in range(count)],
        speakers=["a"] * count,
    )


def run(folder: Path) -> dict[str, Any]:
    """Train, then judge recordings that do not fill the last batch."""
    recipe = Recipe(
        name="shared",
        preset="default",
        config={
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "hidden_dropout_prob": 0.0,
            "classifier_dropout": 0.0,
        },
        arguments={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "max_grad_norm": 0.5,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        augmentation=Augmentation(),
        class_weights=True,
        standardize=False,
    )
    arguments = build_arguments(
        recipe, folder, seed=3, overrides={"logging_strategy": "steps", "logging_steps": 1}
    )
    extractor = build_extractor(recipe)
    trained = train(recordings(24, alike=True), range(24), recipe, extractor, arguments)
    judge = Trainer(
        model=trained.model,
        args=arguments,
        eval_dataset=RecordingSet(recordings(21, alike=False), range(21), extractor),
        data_collator=collate,
        compute_loss_func=lambda outputs, labels, **_: outputs["logits"].sum() * 0,
        compute_metrics=lambda found: {
            "uar": uar(found.label_ids.argmax(-1), found.predictions.argmax(-1)),
            "judged": len(found.label_ids),
            "logits": float(np.abs(found.predictions).sum()),
        },
    )
    figures = judge.evaluate()
    return {
        "losses": [entry["loss"] for entry in trained.log if "loss" in entry],
        "batch": arguments.per_device_train_batch_size,
        "weights": {
            name: values.flatten().tolist() for name, values in trained.model.named_parameters()
        },
        "figures": {name: figures[f"eval_{name}"] for name in ("uar", "judged", "logits")},
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    result = run(target / "trainer")
    if is_first():
        (target / "result.json").write_text(json.dumps(result), encoding="utf-8")
