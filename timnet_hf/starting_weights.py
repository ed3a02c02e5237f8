# SPDX-License-Identifier: Apache-2.0
"""Weights to start from: a network that has learned other corpora learns a new one better.

The package brings the weights of the default recipe, trained from scratch on EMO-DB, on RAVDESS and
on both, without their classifiers (``scripts/train_starts.py`` makes them). A training starts from
those that have learned the most, *and nothing of the corpora it learns or is judged on*: otherwise
a test speaker would have been heard. Recordings of these corpora are known by their sound, too,
whatever folder they lie in.

Weights that have learned RAVDESS are under its terms, CC BY-NC-SA, and so is what starts from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .corpus_table import CORPORA
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
#: SHA-256 of each start's file: another file is refused.
CHECKSUMS = {
    "emodb-ravdess": "7d1d22f652dd71a0c16cddae4a544ac7f3e87e910d65b216a4a19b95614e4360",
    "ravdess": "7722499fc1b155ed79f06e6cb8b7405cb9acb4f3e80bceec62245aefadb14cce",
    "emodb": "57d772a44a32b81ffc462c312300a6c4919ff270e5ef5547ebe4ab1d4dc5b9cd",
}
#: Corpus → the first sixteen digits of each recording's digest, see `recordings.content_of`.
RECORDINGS = STARTS / "recordings.json"
DIGITS = 16


def start_checksum(recipe: Recipe) -> dict[str, str]:
    """What else is fixed before a training that has a start: which weights these are."""
    return {"start_sha256": CHECKSUMS[recipe.start]} if recipe.start in CHECKSUMS else {}


def describe_start(recipe: Recipe) -> str:
    """What a training starts from, and on whose terms, in a sentence for its user."""
    if recipe.start is None:
        return "It starts from scratch."
    learned = [CORPORA[name] for name in sorted(LEARNED.get(recipe.start, ()))]
    terms = "; ".join(f"{corpus.title}: {corpus.licence}" for corpus in learned)
    return f"It starts from weights that have learned other recordings ({terms})."


def known_corpora(digests: Iterable[str]) -> tuple[str, ...]:
    """The corpora that a start has learned and some of these recordings are of, by name."""
    heard: dict[str, list[str]] = json.loads(RECORDINGS.read_text(encoding="utf-8"))
    given = {digest[:DIGITS] for digest in digests}
    return tuple(sorted(name for name, learned in heard.items() if not given.isdisjoint(learned)))


def with_start(
    recipe: Recipe, corpora: Collection[str], config: dict[str, Any] | None = None
) -> Recipe:
    """The recipe with the start that a training on these corpora may have.

    Args:
        recipe: Returned as it is unless it starts from :data:`~timnet_hf.recipes.OTHER_CORPORA`.
        corpora: Names of the known corpora that are learned or judged; none for own recordings.
        config: Overrides of the recipe's network. No start fits another network than the recipe's:
            with any, such as an ablation, the training starts from scratch.

    Raises:
        RecipeError: A corpus is not known by this name, or the recipe's own start has learned it.
    """
    if unknown := set(corpora) - set(CORPORA):
        raise RecipeError(f"{min(unknown)!r} is no corpus: name some of {', '.join(CORPORA)}.")
    if recipe.start != OTHER_CORPORA:
        if heard := LEARNED.get(str(recipe.start), frozenset()) & set(corpora):
            raise RecipeError(
                f"The recipe starts from weights that have learned {', '.join(sorted(heard))}: "
                "what is judged on it would be no result. Use `default` or `from-scratch`."
            )
        return recipe
    fitting = [name for name, learned in LEARNED.items() if learned.isdisjoint(corpora)]
    return replace(recipe, start=fitting[0] if fitting and not config else None)


def load_start(model: TimNetForAudioClassification, start: str) -> None:
    """Copy a start's weights into a model; its classifier stays as it is.

    Raises:
        RecipeError: There is no such start, its file is not the one that came with the package, or
            it is of another network.
    """
    from safetensors.torch import load

    if start not in LEARNED:
        raise RecipeError(
            f"{start!r} is no start: choose one of {', '.join(LEARNED)}, or have `with_start` "
            "choose."
        )
    path = STARTS / f"{start}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: is missing or unreadable. Reinstall timnet-hf.") from error
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[start]:
        raise RecipeError(f"{path}: is not the file that came with timnet-hf. Reinstall it.")
    try:
        model.timnet.load_state_dict(load(content))
    except RuntimeError as error:
        raise RecipeError(
            f"{path}: the weights of another network than the recipe's. Train with the recipe "
            "`from-scratch`."
        ) from error


def save_start(
    model: TimNetForAudioClassification, start: str, record: dict[str, Any], folder: Path = STARTS
) -> Path:
    """Write a trained model's weights, without its classifier, as a start.

    Args:
        model: The trained network.
        start: Name of the start, a key of :data:`LEARNED`.
        record: How it was trained, see ``training_record.json``; kept in the file's metadata.
        folder: Where the file goes. Its checksum belongs into :data:`CHECKSUMS`.

    Raises:
        RecipeError: It was not trained from scratch on just the corpora of this start.
    """
    from safetensors.torch import save_file

    if (record.get("recipe") or {}).get("start"):
        raise RecipeError(f"{start}: was not trained from scratch, so it has heard more.")
    changed = record.get("overrides") or record.get("config")
    if changed or set(str(record.get("corpus")).split("-")) != set(LEARNED[start]):
        raise RecipeError(f"{start}: was trained on {record.get('corpus')}, or not by the recipe.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{start}.safetensors"
    metadata = {"format": "pt", "training_record": json.dumps(record, sort_keys=True)}
    save_file(model.timnet.state_dict(), path, metadata)
    path.chmod(0o644)  # the library leaves it to its owner alone
    return path


__all__ = [
    "LEARNED",
    "STARTS",
    "describe_start",
    "known_corpora",
    "load_start",
    "save_start",
    "start_checksum",
    "with_start",
]
