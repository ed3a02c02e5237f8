# SPDX-License-Identifier: Apache-2.0
"""Training recipes: everything that is fixed before a run begins.

A recipe names a feature preset, the shape of the network, the augmentation and the optimiser's
settings. ``paper`` is the published one and stays as it is. ``default`` is ours; its values were
judged on RAVDESS actors 1-12. Figures of other folds said twice where to search, and decided one
thing: that it starts from nothing. See results/research.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


class RecipeError(ValueError):
    """A recipe that does not exist."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes to the training recordings, drawn anew each time one is used.

    Attributes:
        speeds: Playing speeds, one drawn a recording (pitch moves with them, as on a tape).
        offset_std: Deviation of a random constant added to each coefficient of a recording, in
            units of that coefficient's deviation over the training frames.
        max_seconds: Longer recordings are cropped to this length at a random place.
        mixup: Share of recordings that are mixed with another of the batch, frame by frame.
        mixup_alpha: Parameter of the Beta distribution the mixing weight is drawn from.
        mask_frames: Longest run of frames set to the training mean, once a recording.
        mask_coefficients: Most neighbouring coefficients set to the training mean.
        tempo: Largest relative change of a recording's pace at unchanged pitch, 0 to below 1.
        speaker_share: Share of recordings standardised over their own speaker's frames, not over
            all speakers'.
    """

    speeds: tuple[float, ...] = (1.0,)
    offset_std: float = 0.0
    max_seconds: float | None = None
    mixup: float = 0.0
    mixup_alpha: float = 0.4
    mask_frames: int = 0
    mask_coefficients: int = 0
    tempo: float = 0.0
    speaker_share: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One complete way to train a TIM-Net.

    Attributes:
        name: What reports and training records call it.
        preset: Feature preset, see :mod:`timnet_hf.feature_extraction_timnet`.
        features: Keyword arguments of :class:`timnet_hf.TimNetFeatureExtractor` beside the preset.
        config: Keyword arguments of :class:`timnet_hf.TimNetConfig`.
        arguments: Keyword arguments of :class:`transformers.TrainingArguments`.
        augmentation: Random changes to the training recordings.
        class_weights: Weigh each label in the loss by the inverse of its share.
        standardize: Standardise each coefficient over the training frames.
    """

    name: str
    preset: str
    features: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    augmentation: Augmentation = Augmentation()
    class_weights: bool = False
    standardize: bool = True

    def for_corpus(self, corpus: str | None) -> Recipe:
        """The recipe as it is for a known corpus; ``config`` of its own where it has any."""
        own = _OF_CORPUS.get((self.name, corpus or ""))
        return replace(self, config={**self.config, **own}) if own else self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for records and configuration checks."""
        return asdict(self)


#: Recipe and corpus → what of the network differs there from the recipe's.
_OF_CORPUS: dict[tuple[str, str], dict[str, Any]] = {
    ("paper", "iemocap"): {"num_hidden_layers": 10},
}

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        name="paper",
        preset="paper",
        arguments={
            "num_train_epochs": 500,
            "per_device_train_batch_size": 64,
            "learning_rate": 1e-3,
            "adam_beta1": 0.93,
            "adam_beta2": 0.98,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "label_smoothing_factor": 0.1,
        },
        standardize=False,
    ),
    "default": Recipe(
        name="default",
        preset="default",
        config={
            "hidden_size": 24,
            "num_members": 4,
            "num_centered_members": 2,
            "num_hidden_layers": 6,
            "pooling": "statistics",
            "pool_input": True,
            "normalize_scales": True,
            "batch_norm_momentum": 0.1,
            "fusion_init": "mean",
            "hidden_dropout_prob": 0.0,
            "classifier_dropout": 0.2,
        },
        arguments={
            "num_train_epochs": 60,
            "per_device_train_batch_size": 32,
            "learning_rate": 8e-3,
            "adam_beta1": 0.9,
            "adam_beta2": 0.99,
            "weight_decay": 1e-2,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.2,
            "label_smoothing_factor": 0.1,
        },
        augmentation=Augmentation(
            speeds=(0.8, 0.85, 0.9, 0.95, 1.0, 1.06, 1.12, 1.18, 1.25),
            max_seconds=2.5,
        ),
        class_weights=True,
    ),
}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        RecipeError: There is no such recipe.
    """
    if name not in RECIPES:
        raise RecipeError(f"Unknown recipe {name!r}. Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


__all__ = ["RECIPES", "Augmentation", "Recipe", "RecipeError", "get_recipe"]
