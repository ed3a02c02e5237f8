# SPDX-License-Identifier: Apache-2.0
"""What `research.py` can try: the default recipe of the time with something changed.

A name is never given to another recipe, for the results stand under it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from timnet_hf.recipes import RECIPES, Augmentation, Recipe

#: The speeds of all recipes since the first.
SPEEDS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.06, 1.12, 1.18, 1.25)

#: What the variants are variants of: the default recipe as it was before.
START = dataclasses.replace(
    RECIPES["default"],
    config={
        **RECIPES["default"].config,
        "hidden_size": 32,
        "num_members": 1,
        "num_centered_members": 0,
        "hidden_dropout_prob": 0.1,
        "classifier_dropout": 0.4,
    },
    arguments={
        **RECIPES["default"].arguments,
        "num_train_epochs": 100,
        "learning_rate": 4e-3,
    },
    augmentation=Augmentation(
        speeds=SPEEDS,
        offset_std=0.3,
        max_seconds=2.5,
        mixup=0.5,
    ),
)


def variant(
    config: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    augmentation: dict[str, Any] | None = None,
    **rest: Any,
) -> Recipe:
    """The recipe at the start with some values changed."""
    return dataclasses.replace(
        START,
        config={**START.config, **(config or {})},
        arguments={**START.arguments, **(arguments or {})},
        augmentation=dataclasses.replace(START.augmentation, **(augmentation or {})),
        **rest,
    )


def members(count: int, width: int, epochs: int = 60, **augmentation: Any) -> Recipe:
    """The recipe as first frozen, with several smaller networks in the place of one."""
    return variant(
        {
            "hidden_size": width,
            "num_members": count,
            "hidden_dropout_prob": 0.0,
            "classifier_dropout": 0.2,
        },
        {"num_train_epochs": epochs, "learning_rate": 8e-3},
        {"speaker_share": 0.5, **augmentation},
    )


#: Changes so small that a voice stays the same voice.
LIGHT: dict[str, Any] = {
    "speeds": (0.9, 0.95, 1.0, 1.06, 1.12),
    "offset_std": 0.1,
    "speaker_share": 0.0,
}

#: Nothing is done to hide whose voice it is.
SAME_VOICE: dict[str, Any] = {"offset_std": 0.0, "speaker_share": 0.0}

#: The recipe since bdff7ff: a recording is changed in its speed, and cropped, and that is all.
SPEEDS_ONLY: dict[str, Any] = {**SAME_VOICE, "mixup": 0.0}


def with_features(**features: Any) -> Recipe:
    """The recipe as it was in bdff7ff, with other features."""
    return dataclasses.replace(members(4, 24, 60, **SPEEDS_ONLY), features=features)


def with_config(augmentation: dict[str, Any] | None = None, **config: Any) -> Recipe:
    """That recipe with another network, and perhaps other changes of the recordings."""
    recipe = members(4, 24, 60, **SPEEDS_ONLY | (augmentation or {}))
    return dataclasses.replace(recipe, config={**recipe.config, **config})


def centered_features(count: int, **features: Any) -> Recipe:
    """The recipe as it is since 7012b9c, with other features, so many coefficients of them."""
    recipe = with_config(num_centered_members=2, input_size=count)
    return dataclasses.replace(recipe, features={"feature_size": count, **features})


VARIANTS: dict[str, Recipe] = {
    "start": variant(),
    "width-48": variant({"hidden_size": 48}),
    "coefficients-64": variant({"input_size": 64}, features={"feature_size": 64}),
    "hop-12.5ms": variant(features={"hop_length": 200}),
    "window-32ms": variant(features={"win_length": 512, "n_fft": 512}),
    "crop-4s": variant(augmentation={"max_seconds": 4.0}),
    "epochs-200": variant(arguments={"num_train_epochs": 200}),
    "offset-0.5": variant(augmentation={"offset_std": 0.5}),
    "no-mixup": variant(augmentation={"mixup": 0.0}),
    "masking": variant(augmentation={"mask_frames": 15, "mask_coefficients": 6}),
    "batch-16": variant(arguments={"per_device_train_batch_size": 16, "learning_rate": 3e-3}),
    "decay-0.1": variant(arguments={"weight_decay": 0.1}),
    "tempo-0.2": variant(augmentation={"tempo": 0.2}),
    "speaker-half": variant(augmentation={"speaker_share": 0.5}),
    "speaker-all": variant(augmentation={"speaker_share": 1.0}),
    "speaker-all-no-offset": variant(augmentation={"speaker_share": 1.0, "offset_std": 0.0}),
    "dropout-0.2": variant({"hidden_dropout_prob": 0.2}),
    "dropout-0": variant({"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}),
    "wide-dropout-0": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}
    ),
    "wide-dropout-0-epochs-60": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
    ),
    "wide-dropout-0-epochs-60-speaker-all": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {"speaker_share": 1.0},
    ),
    "wide-dropout-0-epochs-60-speaker-half": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {"speaker_share": 0.5},
    ),
    "wide-dropout-0-epochs-60-speaker-half-rate-2e-3": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60, "learning_rate": 2e-3},
        {"speaker_share": 0.5},
    ),
    "wide-dropout-0-epochs-60-speaker-half-speeds-fewer": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {"speaker_share": 0.5, "speeds": (0.9, 0.95, 1.0, 1.06, 1.12)},
    ),
    "wide-dropout-0-epochs-60-speaker-half-rate-8e-3": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60, "learning_rate": 8e-3},
        {"speaker_share": 0.5},
    ),
    "wide-dropout-0-epochs-60-speaker-half-speeds-wider": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {
            "speaker_share": 0.5,
            "speeds": (0.72, 0.78, 0.85, 0.92, 1.0, 1.08, 1.17, 1.27, 1.38),
        },
    ),
    "wide-dropout-0.05-epochs-60-speaker-half": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.05, "classifier_dropout": 0.4},
        {"num_train_epochs": 60},
        {"speaker_share": 0.5},
    ),
    "wide-dropout-0-epochs-60-speaker-half-no-mixup": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {"speaker_share": 0.5, "mixup": 0.0},
    ),
    "wide-dropout-0-epochs-60-light": variant(
        {"hidden_size": 48, "hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"num_train_epochs": 60},
        {"speeds": (0.9, 0.95, 1.0, 1.06, 1.12), "offset_std": 0.1},
    ),
    "dropout-0-no-mixup": variant(
        {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}, augmentation={"mixup": 0.0}
    ),
    "dropout-0-offset-0.5": variant(
        {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}, augmentation={"offset_std": 0.5}
    ),
    "dropout-0-masking": variant(
        {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2},
        augmentation={"mask_frames": 15, "mask_coefficients": 6},
    ),
    "dropout-0-speaker-half": variant(
        {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}, augmentation={"speaker_share": 0.5}
    ),
    "dropout-0-crop-4s": variant(
        {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.2}, augmentation={"max_seconds": 4.0}
    ),
    "frozen": members(1, 48),  # for the first time; since then members-4-of-24-epochs-100 is
    "one-of-32": members(1, 32),
    "members-2-of-32": members(2, 32),
    "members-3-of-28": members(3, 28),
    "members-4-of-24": members(4, 24),
    "members-2-of-32-epochs-100": members(2, 32, 100),
    "members-4-of-24-epochs-100": members(4, 24, 100),
    "members-2-of-24-epochs-100": members(2, 24, 100),
    "members-2-of-24-epochs-100-light": members(2, 24, 100, **LIGHT),
    "members-2-of-24-epochs-100-no-offset": members(2, 24, 100, offset_std=0.0, speaker_share=0.0),
    "members-4-of-24-epochs-100-no-offset": members(4, 24, 100, **SAME_VOICE),
    "members-2-of-24-epochs-100-no-offset-no-mixup": members(2, 24, 100, **SAME_VOICE, mixup=0.0),
    "members-2-of-24-epochs-60-no-offset-no-mixup": members(2, 24, 60, **SAME_VOICE, mixup=0.0),
    "members-2-of-24-epochs-40-no-offset-no-mixup": members(2, 24, 40, **SAME_VOICE, mixup=0.0),
    "members-4-of-24-epochs-60-no-offset-no-mixup": members(4, 24, 60, **SAME_VOICE, mixup=0.0),
    "speeds-only-crop-4s": members(4, 24, 60, **SPEEDS_ONLY, max_seconds=4.0),
    "speeds-only-tempo": members(4, 24, 60, **SPEEDS_ONLY, tempo=0.2),
    "speeds-only-five-speeds": members(4, 24, 60, **SPEEDS_ONLY, speeds=LIGHT["speeds"]),
    "speeds-only-small-offset": members(4, 24, 60, **SPEEDS_ONLY | {"offset_std": 0.1}),
    "speeds-only-masking": members(4, 24, 60, **SPEEDS_ONLY, mask_frames=15, mask_coefficients=6),
    "speeds-only-own-level": with_features(normalize_level=False),
    "speeds-only-up-to-10500-hz": with_features(
        sampling_rate=22_050,
        n_fft=2048,
        win_length=1102,
        hop_length=441,
        num_mel_bins=72,
        max_frequency=10_500.0,
    ),
    "speeds-only-dropout-0.1": with_config(hidden_dropout_prob=0.1),
    "speeds-only-last-scale": with_config(multi_scale=False, pool_input=False),
    "one-of-four-centered": with_config(num_centered_members=1),
    "two-of-four-centered": with_config(num_centered_members=2),
    "all-centered": with_config(num_centered_members=4),
    "two-of-four-centered-small-offset": with_config({"offset_std": 0.1}, num_centered_members=2),
    "two-of-four-centered-mixup": with_config({"mixup": 0.5}, num_centered_members=2),
    "two-of-four-centered-last-scale": with_config(
        num_centered_members=2, multi_scale=False, pool_input=False
    ),
    "two-of-four-centered-five-speeds": with_config(
        {"speeds": LIGHT["speeds"]}, num_centered_members=2
    ),
    "four-of-eight-centered-width-16": with_config(
        num_members=8, hidden_size=16, num_centered_members=4
    ),
    "centered-batch-16": dataclasses.replace(
        with_config(num_centered_members=2),
        arguments={**members(4, 24).arguments, "per_device_train_batch_size": 16},
    ),
    "centered-coefficients-64": centered_features(64),
    "centered-window-94ms-128-bands-64-coefficients": centered_features(
        64, n_fft=2048, win_length=1504, num_mel_bins=128
    ),
    "centered-window-94ms-128-bands": centered_features(
        39, n_fft=2048, win_length=1504, num_mel_bins=128
    ),
    "centered-window-32ms": centered_features(39, n_fft=512, win_length=512, hop_length=256),
    # Whole, silence and all, as loud as it was made, up to 11 kHz; by this training and network.
    "centered-published-features": dataclasses.replace(
        with_config(num_centered_members=2), preset="paper", features={"num_samples": None}
    ),
    # And the published training and network too.
    "published": dataclasses.replace(RECIPES["paper"], features={"num_samples": 110_000}),
    "speeds-only-window-94ms": with_features(n_fft=2048, win_length=1504),
    "speeds-only-window-94ms-128-bands": with_features(
        n_fft=2048, win_length=1504, num_mel_bins=128
    ),
    "speeds-only-window-64ms": with_features(win_length=1024),
    "members-4-of-24-epochs-40-no-offset-no-mixup": members(4, 24, 40, **SAME_VOICE, mixup=0.0),
    "speeds-fewer": variant(augmentation={"speeds": (0.9, 0.95, 1.0, 1.06, 1.12)}),
    "no-smoothing": variant(arguments={"label_smoothing_factor": 0.0}),
    "rate-2e-3": variant(arguments={"learning_rate": 2e-3}),
    "rate-8e-3": variant(arguments={"learning_rate": 8e-3}),
    "bf16": variant(arguments={"bf16": True}),
}

#: Networks that are trained apart, on batches and with changes of their own, and asked together.
APART: dict[str, list[Recipe]] = {
    "apart-2-and-2-of-24": [members(2, 24, 100), members(2, 24, 100)],
    "apart-2-and-2-of-24-light": [members(2, 24, 100), members(2, 24, 100, **LIGHT)],
    "apart-2-and-2-of-24-no-offset": [
        members(2, 24, 100),
        members(2, 24, 100, **SAME_VOICE),
    ],
}

#: Name → the recipes whose networks are asked together; nearly always one.
CHOICES: dict[str, list[Recipe]] = {**{name: [one] for name, one in VARIANTS.items()}, **APART}

__all__ = ["CHOICES", "SPEEDS"]
