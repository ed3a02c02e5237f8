# SPDX-License-Identifier: Apache-2.0
"""What one step of training sees: recordings with soft targets, a padded batch, the loss on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .feature_extraction_timnet import TimNetFeatureExtractor
from .feature_store import FeatureStore
from .recipes import Augmentation
from .speaker_timnet import blend, make_profile

logger = logging.getLogger(__name__)

#: Row numbers of a dataset.
Rows: TypeAlias = Sequence[int] | npt.NDArray[np.int64]


class RecordingSet(Dataset[dict[str, torch.Tensor]]):
    """Normalised features of chosen recordings with one-hot targets, as they are.

    Args:
        store: Features of the corpus.
        indices: The recordings.
        extractor: With the statistics to normalise by.
        speeds: Of the store's, those to make ready; 1.0 among them.
    """

    def __init__(
        self,
        store: FeatureStore,
        indices: Rows,
        extractor: TimNetFeatureExtractor,
        speeds: Sequence[float] = (1.0,),
    ):
        self.indices = [int(index) for index in indices]
        self.extractor = extractor
        self.speakers = [store.speakers[index] for index in self.indices]
        self.features = {
            speed: [
                extractor.normalize(torch.from_numpy(store.features[speed][index]))
                for index in self.indices
            ]
            for speed in speeds
        }
        self.targets = F.one_hot(
            torch.from_numpy(store.labels[self.indices]), len(store.label_names)
        ).float()

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """Features (frames, feature_size) and target (num_labels,) of one recording."""
        return {"input_values": self.features[1.0][item], "labels": self.targets[item]}


class AugmentedSet(RecordingSet):
    """The same, changed at random each time a batch is drawn.

    All chance comes from torch's global generator, which the Trainer saves with its checkpoints:
    from the end of an epoch, a resumed run sees what the uninterrupted one would have seen. (In the
    middle of one, the loader has already drawn the batch that follows the checkpoint.)
    """

    def __init__(
        self,
        store: FeatureStore,
        indices: Rows,
        extractor: TimNetFeatureExtractor,
        augmentation: Augmentation,
        label_smoothing: float = 0.0,
    ):
        self.speeds = [speed for speed in sorted(store.features) if speed in augmentation.speeds]
        super().__init__(store, indices, extractor, sorted({1.0, *self.speeds}))
        self.augmentation = augmentation
        classes = self.targets.shape[1]
        self.targets = self.targets * (1 - label_smoothing) + label_smoothing / classes
        self.adaptations = self._adaptations(store) if augmentation.speaker_share else {}

    def __getitems__(self, items: list[int]) -> list[dict[str, torch.Tensor]]:
        """One augmented batch; torch's loader calls this with all of its indices at once."""
        clips = [self._perturb(self._adapt(item, self._choose(item))) for item in items]
        targets = self.targets[items]
        if self.augmentation.mixup and len(items) > 1:
            clips, targets = self._mix(clips, targets)
        return [
            {"input_values": clip, "labels": target}
            for clip, target in zip(clips, targets, strict=True)
        ]

    def _choose(self, item: int) -> torch.Tensor:
        """The recording at a random speed, cropped at a random place if it is long."""
        clip = self.features[self.speeds[_randint(len(self.speeds))]][item]
        if self.augmentation.max_seconds is not None:
            longest = round(self.augmentation.max_seconds * self.extractor.frames_per_second)
            if clip.shape[0] > longest:
                start = _randint(clip.shape[0] - longest + 1)
                clip = clip[start : start + longest]
        return clip

    def _adaptations(self, store: FeatureStore) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """For each speaker: how to get from the common standardisation to the speaker's own."""
        rows: dict[str, list[int]] = {}
        for speaker, index in zip(self.speakers, self.indices, strict=True):
            if speaker is not None:
                rows.setdefault(str(speaker), []).append(index)
        unknown = sum(speaker is None for speaker in self.speakers)
        if unknown:
            logger.info(
                "%s of %s recordings name no speaker: they are standardised with all others",
                unknown,
                len(self.speakers),
            )
        common, spread = np.asarray(self.extractor.mean), np.asarray(self.extractor.std)
        adaptations = {}
        for speaker, chosen in rows.items():
            profile = make_profile(speaker, [store.original[row] for row in chosen], {})
            mean, std = blend(profile, common, spread)
            pair = (torch.from_numpy(spread / std), torch.from_numpy((common - mean) / std))
            adaptations[speaker] = (pair[0].float(), pair[1].float())
        return adaptations

    def _adapt(self, item: int, clip: torch.Tensor) -> torch.Tensor:
        """Standardise a share of the recordings over their own speaker's frames."""
        chance = self.augmentation.speaker_share
        if not chance or _rand() >= chance or self.speakers[item] is None:
            return clip
        scale, shift = self.adaptations[str(self.speakers[item])]
        return clip * scale + shift

    def _perturb(self, clip: torch.Tensor) -> torch.Tensor:
        """Change the pace, add an offset to each coefficient, blank out frames and coefficients."""
        choice = self.augmentation
        if choice.tempo:
            frames = max(1, round(clip.shape[0] * (1 + choice.tempo * (2 * _rand() - 1))))
            clip = F.interpolate(clip.T[None], size=frames, mode="linear").squeeze(0).T
        frames, size = clip.shape
        if choice.offset_std:
            clip = clip + choice.offset_std * torch.randn(size)
        if choice.mask_frames or choice.mask_coefficients:
            clip = clip.clone()
        if choice.mask_frames:
            width = min(_randint(choice.mask_frames + 1), frames // 3)
            start = _randint(frames - width + 1)
            clip[start : start + width] = 0
        if choice.mask_coefficients:
            width = _randint(choice.mask_coefficients + 1)
            start = _randint(size - width + 1)
            clip[:, start : start + width] = 0
        return clip

    def _mix(
        self, clips: list[torch.Tensor], targets: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Mix a share of the recordings with a partner, repeated or cut to the same length."""
        beta = torch.distributions.Beta(
            self.augmentation.mixup_alpha, self.augmentation.mixup_alpha
        )
        weights = beta.sample((len(clips),))
        weights = torch.where(torch.rand(len(clips)) < self.augmentation.mixup, weights, 1.0)
        partners = torch.randperm(len(clips)).tolist()
        mixed = []
        for clip, partner, weight in zip(clips, partners, weights, strict=True):
            other = clips[partner]
            frames = torch.arange(clip.shape[0]) % other.shape[0]
            mixed.append(weight * clip + (1 - weight) * other[frames])
        weights = weights.unsqueeze(1)
        return mixed, weights * targets + (1 - weights) * targets[partners]


def _randint(high: int) -> int:
    return int(torch.randint(high, ()))


def _rand() -> float:
    return float(torch.rand(()))


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest recording; a mask only where something was padded."""
    clips = [example["input_values"] for example in examples]
    lengths = torch.tensor([clip.shape[0] for clip in clips])
    batch = {
        "input_values": pad_sequence(clips, batch_first=True),
        "labels": torch.stack([example["labels"] for example in examples]),
    }
    if int(lengths.min()) != int(lengths.max()):
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()
    return batch


@dataclass
class SoftTargetLoss:
    """Cross-entropy against soft targets (batch, num_labels), with one weight a label."""

    weights: torch.Tensor

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean of the weighted cross-entropy over all recordings of one optimiser step.

        Members of an ensemble each answer for themselves, and the mean goes over them too.

        The Trainer counts the elements of ``labels`` over accumulated batches and processes in
        ``num_items_in_batch``: ``num_labels`` of them to a recording.
        """
        recordings = (
            len(labels) if num_items_in_batch is None else num_items_in_batch / labels[0].numel()
        )
        logits = outputs.get("member_logits")
        if logits is None:
            logits = outputs["logits"].unsqueeze(1)
        log_probabilities = F.log_softmax(logits.float(), dim=-1).mean(1)
        return -(labels * self.weights.to(labels) * log_probabilities).sum() / recordings


__all__ = ["AugmentedSet", "RecordingSet", "Rows", "SoftTargetLoss", "collate"]
