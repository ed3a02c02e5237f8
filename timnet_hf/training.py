# SPDX-License-Identifier: Apache-2.0
"""Training a TIM-Net with the Hugging Face Trainer.

The Trainer, its arguments, checkpoints and resumption are the library's own. What is ours is what a
step sees, see `training_steps`.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from .configuration_timnet import TimNetConfig
from .feature_extraction_timnet import PAPER_NUM_SAMPLES, TimNetFeatureExtractor
from .feature_store import FeatureStore
from .modeling_timnet import TimNetForAudioClassification
from .ranks import rank, share, world_size
from .recipes import Recipe
from .training_steps import AugmentedSet, Rows, SoftTargetLoss, collate

logger = logging.getLogger(__name__)


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why and what to do."""


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
    "OwnChance",
    "ProgressReport",
    "SaveReport",
    "Trained",
    "TrainingError",
    "build_arguments",
    "build_extractor",
    "build_model",
    "complete_checkpoints",
    "newest_checkpoint",
    "train",
]
