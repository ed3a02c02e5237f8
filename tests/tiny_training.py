# SPDX-License-Identifier: Apache-2.0
"""Trainings that take a fraction of a second: few recordings, a narrow network, two epochs."""

from __future__ import annotations

import csv
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import transformers.trainer  # noqa: F401  (so that it is frozen below)

from timnet_hf.feature_store import FeatureStore
from timnet_hf.recipes import RECIPES, Augmentation, Recipe

# Every Trainer collects garbage, which takes ten times as long as a tiny training as long as it
# looks through all that the libraries made at import.
gc.freeze()

LABELS = ["angry", "happy", "sad"]

#: Every kind of augmentation that asks nothing of the recipe.
FULL = Augmentation(
    speeds=(0.9, 1.0, 1.1),
    offset_std=0.3,
    max_seconds=0.4,
    mixup=0.5,
    mask_frames=4,
    mask_coefficients=5,
)


def tiny_recipe(
    augmentation: Augmentation = FULL,
    config: dict[str, Any] | None = None,
    **arguments: Any,
) -> Recipe:
    """The default recipe, small; keyword arguments are those of TrainingArguments."""
    return replace(
        RECIPES["default"],
        name="tiny",
        config={
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "pooling": "statistics",
            "classifier_dropout": 0.2,
            **(config or {}),
        },
        arguments={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "label_smoothing_factor": 0.1,
            "disable_tqdm": True,
            **arguments,
        },
        augmentation=augmentation,
    )


def tiny_store(
    per_class: int = 4, labels: list[str] = LABELS, seed: int = 0, gap: float = 2.0
) -> FeatureStore:
    """Random features of recordings by two speakers in turn; `gap` sets the classes apart."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(labels)), per_class)
    centres = gap * rng.standard_normal((len(labels), 39))
    features: dict[float, list[np.ndarray]] = {0.9: [], 1.0: [], 1.1: []}
    for label in classes:
        length = int(rng.integers(12, 30))
        for speed, values in features.items():
            frames = centres[label] + rng.standard_normal((round(length / speed), 39))
            values.append(frames.astype(np.float32))
    count = len(classes)
    return FeatureStore(
        features=features,
        labels=classes,
        label_names=list(labels),
        paths=[f"corpus/{index}.wav" for index in range(count)],
        speakers=["ab"[index % 2] for index in range(count)],
    )


def poisoned(store: FeatureStore, rows: Any, value: float = np.nan) -> FeatureStore:
    """A copy whose features and labels at `rows` are garbage."""
    rows = {int(row) for row in rows}
    features = {
        speed: [
            np.full_like(frames, value) if row in rows else frames
            for row, frames in enumerate(values)
        ]
        for speed, values in store.features.items()
    }
    labels = store.labels.copy()
    for row in rows:
        labels[row] = (labels[row] + 1) % len(store.label_names)
    return replace(store, features=features, labels=labels)


def write_recordings(
    folder: Path,
    labels: list[str] = LABELS[:2],
    per_class: int = 4,
    seconds: float = 0.3,
    metadata: bool = False,
) -> Path:
    """Own data: one sub-folder a class, or one heap with a metadata.csv that names two speakers."""
    rng = np.random.default_rng(1)
    rows = []
    for label_index, label in enumerate(labels):
        for number in range(per_class):
            name = f"{label}{number}.wav" if metadata else f"{label}/{number}.wav"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            time = np.arange(round(seconds * 16_000)) / 16_000
            tone = np.sin(2 * np.pi * (150 + 250 * label_index + 9 * number) * time)
            sound = 0.3 * tone + 0.05 * rng.standard_normal(time.size)
            soundfile.write(path, sound, 16_000)
            rows.append((name, label, "ab"[number % 2], "uv"[number // 2 % 2]))
    if metadata:
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "label", "speaker", "room"))
            writer.writerows(rows)
    return folder


def same_weights(one: Any, other: Any) -> bool:
    """Whether two networks are equal bit for bit, running statistics included."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        bool((first[name] == second[name]).all()) for name in first
    )
