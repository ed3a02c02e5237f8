# SPDX-License-Identifier: Apache-2.0
"""From recordings to probabilities, many at a time, with as little memory as they allow.

Each recording is decoded and featurised alone. Its features wait, up to a limit, then those of
about equal length go through the network together: little is filled up, and a batch fits into the
processor's cache. What a long recording is cut into, and how its parts are averaged, is what
`timnet_hf.prediction.predict_files` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .audio import mono_blocks
from .decoding import AudioError, open_recording
from .folded_network import FoldedTimNet
from .prediction import clips_of
from .scoring_inputs import Item

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification

#: Frames that wait at a time, 20 MiB of them; more make batches of more equal lengths.
WAITING_FRAMES = 2**17

#: Frames of a batch, for each recording that it may hold: about as many as fit into the cache.
FRAMES_PER_CLIP = 256


@dataclass
class Scored:
    """One row of the output, see :mod:`timnet_hf.scoring`."""

    index: int
    path: str
    scores: dict[str, float] = field(default_factory=dict)
    label: str | None = None
    score: float | None = None
    duration: float | None = None
    sampling_rate: int | None = None
    silent: bool | None = None
    error: str | None = None


class _Tally:
    """The parts of one recording: parts in silence count only where there are no others."""

    def __init__(self, labels: int):
        self.totals = {loud: np.zeros(labels) for loud in (False, True)}
        self.weights = {False: 0, True: 0}

    def add(self, loud: bool, probabilities: np.ndarray, frames: int) -> None:
        self.totals[loud] += frames * probabilities
        self.weights[loud] += frames

    @property
    def heard(self) -> bool:
        return self.weights[True] > 0

    def mean(self) -> np.ndarray:
        return self.totals[self.heard] / self.weights[self.heard]


class Scorer:
    """A model that scores recordings in bulk; it can be pickled.

    Args:
        model: The network; its weights are copied.
        extractor: Its feature extractor.
        batch_size: Recordings that go through the network together, at most.

    Attributes:
        labels: In the order of the network's outputs.
        sha256: Checksum of all that the answers depend on.
    """

    def __init__(
        self,
        model: TimNetForAudioClassification,
        extractor: TimNetFeatureExtractor,
        batch_size: int = 16,
    ):
        names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
        self.labels = [names[index] for index in range(len(names))]
        self.extractor = extractor
        self.network = FoldedTimNet(model)
        self.batch_size = batch_size
        self.multi_label = model.config.problem_type == "multi_label_classification"
        self.sha256 = _checksum(model, extractor)

    def __call__(self, items: Iterable[Item]) -> list[Scored]:
        """Score recordings; one that cannot be read becomes a row with its error.

        Returns:
            One row a recording, in order.
        """
        rows: list[tuple[Scored, _Tally]] = []
        waiting: list[tuple[torch.Tensor, bool, _Tally]] = []
        frames = 0
        for item in items:
            row, tally = Scored(item.index, item.path), _Tally(len(self.labels))
            rows.append((row, tally))
            try:
                for features, loud in self._parts(item, row):
                    waiting.append((features, loud, tally))
                    frames += len(features)
                    if frames > WAITING_FRAMES:
                        self._flush(waiting)
                        frames = 0
            except (ValueError, OSError) as error:
                text = str(error)
                row.error = text if item.path in text else f"{item.path}: {text}"
        self._flush(waiting)
        return [self._closed(row, tally) for row, tally in rows]

    def _parts(self, item: Item, row: Scored) -> Iterator[tuple[torch.Tensor, bool]]:
        """Normalised features (frames, feature_size) of each part, and whether it is loud."""
        if item.source is None:
            raise AudioError(f"{item.path}: {item.problem}")
        rate = self.extractor.sampling_rate
        name = item.path if isinstance(item.source, bytes) else None
        samples, heard = 0, False
        with open_recording(item.source, name) as recording:
            row.sampling_rate = recording.sampling_rate
            for part in clips_of(mono_blocks(recording, rate), rate, self.extractor.num_samples):
                samples += part.size
                loud = bool(max(part.max(), -part.min()) > 1e-4)
                if heard and not loud:
                    continue
                heard = heard or loud
                yield self.extractor.normalize(self.extractor.extract(part)), loud
        row.duration = samples / rate
        row.silent = not heard

    def _flush(self, waiting: list[tuple[torch.Tensor, bool, _Tally]]) -> None:
        """Score what waits, about equally long parts together."""
        waiting.sort(key=lambda part: len(part[0]))
        while waiting:
            longest = len(waiting[-1][0])
            room = max(1, min(self.batch_size, FRAMES_PER_CLIP * self.batch_size // longest))
            batch = waiting[-room:]
            del waiting[-room:]
            logits = self.network([features for features, _, _ in batch])
            probabilities = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            for (features, loud, tally), one in zip(
                batch, probabilities.double().numpy(), strict=True
            ):
                tally.add(loud, one, len(features))

    def _closed(self, row: Scored, tally: _Tally) -> Scored:
        if row.error is None:
            mean = tally.mean()
            if not np.isfinite(mean).all():
                row.error = f"{row.path}: the model's answer is not a number"
        if row.error is not None:
            return Scored(row.index, row.path, error=row.error)
        row.scores = dict(zip(self.labels, mean.tolist(), strict=True))
        best = int(mean.argmax())
        row.label, row.score = self.labels[best], float(mean[best])
        return row


def _checksum(model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor) -> str:
    total = hashlib.sha256(extractor.to_json_string().encode())
    total.update(repr(sorted((model.config.id2label or {}).items())).encode())
    settings: dict[str, Any] = model.config.to_diff_dict()
    settings.pop("transformers_version", None)  # who reads the model, not what it is
    total.update(repr(sorted((key, str(settings[key])) for key in settings)).encode())
    for name, values in sorted(model.state_dict().items()):
        total.update(name.encode() + values.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


__all__ = ["FRAMES_PER_CLIP", "WAITING_FRAMES", "Scored", "Scorer"]
