# SPDX-License-Identifier: Apache-2.0
"""Training a TIM-Net with the Hugging Face Trainer.

The Trainer, its arguments, checkpoints and resumption are the library's own. What is ours is the
training set, which hands out augmented recordings with soft targets, and the loss on them.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from .configuration_timnet import TimNetConfig
from .feature_extraction_timnet import PAPER_NUM_SAMPLES, TimNetFeatureExtractor
from .feature_store import FeatureStore
from .modeling_timnet import TimNetForAudioClassification
from .ranks import rank, share, world_size
from .recipes import Augmentation, Recipe
from .speaker_timnet import blend, make_profile

logger = logging.getLogger(__name__)


#: Row numbers of a dataset.
Rows: TypeAlias = Sequence[int] | npt.NDArray[np.int64]


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why and what to do."""


class RecordingSet(Dataset[dict[str, torch.Tensor]]):
    """Normalised features of chosen recordings with one-hot targets, as they are."""

    def __init__(self, store: FeatureStore, indices: Rows, extractor: TimNetFeatureExtractor):
        self.indices = [int(index) for index in indices]
        self.extractor = extractor
        self.speakers = [store.speakers[index] for index in self.indices]
        self.features = {
            speed: [extractor.normalize(torch.from_numpy(values[index])) for index in self.indices]
            for speed, values in store.features.items()
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
        super().__init__(store, indices, extractor)
        self.augmentation = augmentation
        self.speeds = [speed for speed in sorted(self.features) if speed in augmentation.speeds]
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


@dataclass
class Trained:
    """What a training run leaves: the model, its feature extractor and the Trainer's log."""

    model: TimNetForAudioClassification
    extractor: TimNetFeatureExtractor
    log: list[dict[str, Any]]
    epochs: float


def build_extractor(recipe: Recipe, *corpora: str) -> TimNetFeatureExtractor:
    """The recipe's feature extractor, without normalisation statistics.

    The paper's preset has a length of clip for each known corpus; for several of them it is the
    longest, which cuts nothing off.
    """
    longest = max(corpora, key=lambda name: PAPER_NUM_SAMPLES.get(name, 0), default=None)
    return TimNetFeatureExtractor.from_preset(recipe.preset, corpus=longest, **recipe.features)


def build_model(
    recipe: Recipe, label_names: Sequence[str], config: dict[str, Any] | None = None
) -> TimNetForAudioClassification:
    """An untrained network of the recipe's shape; ``config`` overrides single values."""
    names = list(label_names)
    return TimNetForAudioClassification(
        TimNetConfig(
            **{**recipe.config, **(config or {})},
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )


class TokenlessArguments(TrainingArguments):
    """TrainingArguments that forget the access token when they are stored.

    The Trainer writes its arguments beside every checkpoint, and pushes them with the model.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "hub_token": None}


def build_arguments(
    recipe: Recipe, output_dir: str | Path, seed: int, overrides: dict[str, Any] | None = None
) -> TrainingArguments:
    """The recipe's TrainingArguments; ``overrides`` win.

    The recipe's batch is that of all processes that train together.
    """
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "seed": seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "epoch",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        **recipe.arguments,
    }
    if "per_device_train_batch_size" in values:
        values["per_device_train_batch_size"] = share(values["per_device_train_batch_size"])
    return TokenlessArguments(**{**values, **(overrides or {})})


def train(
    store: FeatureStore,
    indices: Rows,
    recipe: Recipe,
    extractor: TimNetFeatureExtractor,
    arguments: TrainingArguments,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train a network on the given recordings and nothing else.

    The normalisation statistics and class weights are taken from these recordings too.

    Args:
        store: Features of the corpus, made with ``extractor``.
        indices: The training recordings.
        recipe: Everything fixed beforehand.
        extractor: Feature extractor of the store; a copy with statistics is returned.
        arguments: See :func:`build_arguments`.
        config: Overrides of the recipe's network, such as an ablation.
        resume: Go on from the newest checkpoint in ``arguments.output_dir``.
        callbacks: Trainer callbacks.

    Raises:
        TrainingError: A label has no training recording, or there is nothing to resume.
    """
    rows = np.asarray(indices, dtype=np.int64)
    counts = np.bincount(store.labels[rows], minlength=len(store.label_names))
    if (empty := np.flatnonzero(counts == 0)).size:
        names = ", ".join(store.label_names[index] for index in empty)
        raise TrainingError(f"No training recording for: {names}. Add some or drop the label.")
    extractor = copy.deepcopy(extractor)
    if recipe.standardize:
        mean, std = store.statistics(rows)
        extractor.mean, extractor.std = mean.tolist(), std.tolist()
    set_seed(arguments.seed)
    model = build_model(recipe, store.label_names, config)
    weights = torch.ones(len(counts))
    if recipe.class_weights:
        weights = torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
    dataset = AugmentedSet(
        store, rows, extractor, recipe.augmentation, arguments.label_smoothing_factor
    )
    logger.info(
        "training %s recordings, %s labels, %s parameters, %s epochs",
        len(dataset),
        len(counts),
        model.num_parameters(),
        arguments.num_train_epochs,
    )
    if arguments.push_to_hub:  # what is pushed has to load where this package is not installed
        from .model_folder import make_portable

        make_portable(model, extractor)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        compute_loss_func=SoftTargetLoss(weights),
        callbacks=[*callbacks, *([OwnChance()] if world_size() > 1 else [])],
        processing_class=extractor if arguments.push_to_hub else None,
    )
    if arguments.disable_tqdm:  # then the Trainer prints instead, among our own output
        trainer.remove_callback(PrinterCallback)
    newest = newest_checkpoint(str(arguments.output_dir)) if resume else None
    trainer.train(resume_from_checkpoint=newest)
    if arguments.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # each process writes its part of a checkpoint
    return Trained(model.eval(), extractor, trainer.state.log_history, trainer.state.epoch or 0.0)


class OwnChance(TrainerCallback):
    """Gives each process that trains along its own random numbers.

    All start from the same seed, for equal weights and an equal order of recordings. With the same
    numbers behind that, they would change different recordings in the same way.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on to numbers that no other process has."""
        torch.manual_seed(args.seed + 1_000_003 * rank())


class ProgressReport(TrainerCallback):
    """Tells how many optimiser steps are done, of how many, and the last loss that was logged."""

    def __init__(self, progress: Callable[[int, int, str], None]):
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report one more step."""
        losses = [entry["loss"] for entry in state.log_history[-1:] if "loss" in entry]
        detail = f"loss {float(losses[0]):.3f}" if losses else ""
        self.progress(state.global_step, state.max_steps, detail)


class SaveReport(TrainerCallback):
    """Tells that a checkpoint has been written."""

    def __init__(self, saved: Callable[[], None]):
        self.saved = saved

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report one more checkpoint."""
        self.saved()


def complete_checkpoints(folder: str | Path) -> dict[int, str]:
    """The checkpoints in a folder that were written to their end: step → path."""
    found = {}
    for path in Path(folder).glob("checkpoint-*"):
        try:  # the Trainer writes this file last
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found[int(path.name.partition("-")[2])] = str(path)
        except (OSError, ValueError):
            continue
    return found


def newest_checkpoint(folder: str | Path) -> str:
    """The newest complete checkpoint in a folder; one that was being written does not count.

    Raises:
        TrainingError: There is none.
    """
    found = complete_checkpoints(folder)
    if not found:
        raise TrainingError(f"{folder}: no checkpoint to resume from. Train without --resume.")
    return found[max(found)]


__all__ = [
    "AugmentedSet",
    "OwnChance",
    "ProgressReport",
    "SaveReport",
    "RecordingSet",
    "Rows",
    "SoftTargetLoss",
    "Trained",
    "TrainingError",
    "build_arguments",
    "build_extractor",
    "build_model",
    "collate",
    "complete_checkpoints",
    "newest_checkpoint",
    "train",
]
