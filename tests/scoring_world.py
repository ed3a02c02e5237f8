# SPDX-License-Identifier: Apache-2.0
"""Something to score: a folder of short sounds with bad files among them, and a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification

LABELS = ["angry", "happy", "sad"]


def save_model(folder: Path, seed: int = 0, **extractor: Any) -> Path:
    """Write a model folder: a narrow network with weights of its own."""
    torch.manual_seed(seed)
    config = TimNetConfig(
        hidden_size=8,
        num_hidden_layers=3,
        pooling="statistics",
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    model = TimNetForAudioClassification(config)
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    TimNetFeatureExtractor(**extractor).save_pretrained(folder)
    return folder


def write_sounds(folder: Path, count: int, sampling_rate: int = 16_000, seed: int = 0) -> Path:
    """Write clip0.wav … of 0.2 to 0.6 s, each of another pitch."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        time = np.arange(round(rng.uniform(0.2, 0.6) * sampling_rate)) / sampling_rate
        sound = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2_000) * time)
        sound += 0.05 * rng.standard_normal(time.size)
        soundfile.write(folder / f"clip{number}.wav", sound, sampling_rate)
    return folder


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return found


def assert_same_rows(one: Path, other: Path) -> None:
    """Equal bit for bit, in equal order."""
    assert pq.read_table(one).equals(pq.read_table(other))
