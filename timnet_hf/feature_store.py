# SPDX-License-Identifier: Apache-2.0
"""The features of a whole corpus: computed once, at every speed a recipe asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .audio import AudioError, load_audio, resample

if TYPE_CHECKING:
    from datasets import Dataset

    from .feature_extraction_timnet import TimNetFeatureExtractor


@dataclass
class FeatureStore:
    """Unnormalised features and labels of every recording of a dataset.

    Attributes:
        features: For each speed, one array (frames, feature_size) a recording, float32.
        labels: (recordings,) class indices.
        label_names: What the indices mean.
        paths: The recordings' files.
        speakers: Who speaks in each, or None where that is not known.
    """

    features: dict[float, list[np.ndarray]]
    labels: np.ndarray
    label_names: list[str]
    paths: list[str]
    speakers: list[str | None]

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.labels)

    @property
    def original(self) -> list[np.ndarray]:
        """The features at the recordings' own speed."""
        return self.features[1.0]

    def statistics(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each coefficient over the given recordings' frames."""
        frames = np.concatenate([self.original[index] for index in indices]).astype(np.float64)
        return frames.mean(0), np.maximum(frames.std(0), 1e-6)


def compute_features(
    dataset: Dataset,
    extractor: TimNetFeatureExtractor,
    speeds: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> FeatureStore:
    """Decode every recording of a dataset and extract its features.

    Args:
        dataset: Columns ``path``, ``label`` (ClassLabel) and ``speaker``.
        extractor: Its ``mean`` and ``std`` are not applied: they belong to a training split.
        speeds: Playing speeds to extract features at; 1.0 is always among them.
        progress: Called with (done, total) after each recording.

    Raises:
        AudioError: Recordings cannot be read; all of them are named.
    """
    speeds = sorted({1.0, *speeds})
    features: dict[float, list[np.ndarray]] = {speed: [] for speed in speeds}
    errors = []
    paths = list(dataset["path"])
    for done, path in enumerate(paths, start=1):
        try:
            waveform = load_audio(path, extractor.sampling_rate)
            for speed in speeds:
                played = waveform
                if speed != 1.0:
                    fast = round(extractor.sampling_rate * speed)
                    played = resample(waveform, fast, extractor.sampling_rate)
                features[speed].append(extractor.extract(played).numpy())
        except ValueError as error:
            text = str(error)
            name = os.path.basename(path)
            errors.append(text if name in text else f"{path}: {text}")
        if progress is not None:
            progress(done, len(paths))
    if errors:
        raise AudioError(
            f"{len(errors)} of {len(paths)} recordings cannot be used; repair or remove them:\n"
            + "\n".join(errors)
        )
    return FeatureStore(
        features=features,
        labels=np.asarray(dataset["label"], dtype=np.int64),
        label_names=list(dataset.features["label"].names),
        paths=paths,
        speakers=list(dataset["speaker"]),
    )


__all__ = ["FeatureStore", "compute_features"]
