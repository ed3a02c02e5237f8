# SPDX-License-Identifier: Apache-2.0
"""Weights to start from: a network that has learned other corpora learns a new one better.

The package brings the weights of the default recipe, trained from scratch on EMO-DB, on RAVDESS and
on both, without their classifiers (``scripts/train_starts.py`` makes them). A training starts from
those that have learned the most, *and nothing of the corpora it learns or is judged on*: otherwise
a test speaker would have been heard.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipes import OTHER_CORPORA, Recipe, RecipeError

if TYPE_CHECKING:
    from .modeling_timnet import TimNetForAudioClassification

#: One safetensors file each: the weights of a `TimNetModel`; its metadata says where from.
STARTS = Path(__file__).parent / "starts"

#: Start → the corpora it has learned, those with the most recordings first.
LEARNED: dict[str, frozenset[str]] = {
    "emodb-ravdess": frozenset({"emodb", "ravdess"}),
    "ravdess": frozenset({"ravdess"}),
    "emodb": frozenset({"emodb"}),
}


def with_start(
    recipe: Recipe, corpora: Collection[str], config: dict[str, Any] | None = None
) -> Recipe:
    """The recipe with the start that a training on these corpora may have.

    Args:
        recipe: Returned as it is unless it starts from :data:`~timnet_hf.recipes.OTHER_CORPORA`.
        corpora: Names of the known corpora that are learned or judged; none for own recordings.
        config: Overrides of the recipe's network. No start fits another network than the recipe's:
            with any, such as an ablation, the training starts from scratch.
    """
    if recipe.start != OTHER_CORPORA:
        return recipe
    fitting = [name for name, learned in LEARNED.items() if learned.isdisjoint(corpora)]
    return replace(recipe, start=fitting[0] if fitting and not config else None)


def load_start(model: TimNetForAudioClassification, start: str) -> None:
    """Copy a start's weights into a model; its classifier stays as it is.

    Raises:
        RecipeError: There is no such start, or it is of another network.
    """
    from safetensors.torch import load_file

    if start not in LEARNED:
        raise RecipeError(
            f"{start!r} is no start: choose one of {', '.join(LEARNED)}, or let `with_start`."
        )
    path = STARTS / f"{start}.safetensors"
    try:
        model.timnet.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise RecipeError(
            f"{path}: the weights of another network than the recipe's. Train with the recipe "
            "`from-scratch`."
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: is missing or unreadable. Reinstall timnet-hf.") from error


def save_start(
    model: TimNetForAudioClassification, start: str, record: dict[str, Any], folder: Path = STARTS
) -> Path:
    """Write a trained model's weights, without its classifier, as a start.

    Args:
        model: The trained network.
        start: Name of the start, a key of :data:`LEARNED`.
        record: How it was trained; kept in the file's metadata.
        folder: Where the file goes.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{start}.safetensors"
    metadata = {"format": "pt", "training_record": json.dumps(record, sort_keys=True)}
    save_file(model.timnet.state_dict(), path, metadata)
    path.chmod(0o644)  # the library leaves it to its owner alone
    return path


__all__ = ["LEARNED", "STARTS", "load_start", "save_start", "with_start"]
