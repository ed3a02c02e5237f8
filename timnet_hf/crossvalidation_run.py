# SPDX-License-Identifier: Apache-2.0
"""Cross-validate a recipe as a whole: recordings → folds → features → trainings → report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .crossvalidation import (
    CrossValidationError,
    Plan,
    cross_validate,
    finished_seeds,
    read_folds,
    refuse_another_run,
)
from .experiment import Data, Progress, named_progress
from .output_folder import sole_use, told_when_full
from .ranks import world_size
from .recipes import Recipe

if TYPE_CHECKING:
    from .protocols import Fold


def run_cross_validation(
    data: Data,
    recipe: Recipe,
    protocol: str | None,
    results: str | Path,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    variant: str = "",
    config: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    selection: str = "last-epoch",
    group_by: str | None = None,
    n_folds: int | None = None,
    test_data: Data | None = None,
    calibration: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train and test one model a fold and seed, then write the report.

    The folds of ``kfold`` are the authors' for every seed: seeds change weights and augmentation.
    The report is of all seeds that lie finished in the run's folder, those asked for among them.

    Args:
        data: The recordings.
        recipe: See :mod:`timnet_hf.recipes`.
        protocol: See :mod:`timnet_hf.protocols`; None for ``loso``.
        results: The results folder; the run's is ``<corpus>/<protocol>/<recipe>`` in it.
        seeds: Each fold is trained once with each.
        jobs: Folds trained side by side.
        variant: Added to the recipe's name, such as an ablation.
        config: Overrides of the recipe's network.
        overrides: Overrides of the recipe's training arguments.
        selection: ``last-epoch``, or ``best-on-test``, which leaks.
        group_by: Column of the protocol ``group``.
        n_folds: Folds of ``kfold`` and ``group``; None for 10.
        test_data: Test on all of these, trained on all of ``data``: the one fold, which takes the
            place of the protocol; its folder is ``<corpus>/to-<test corpus>/<recipe>``.
        calibration: Inner folds that each fold's temperature is fitted on, 0 to 4; as many as
            there are training speakers, where these are fewer.
        command: How the run was asked for, for the record.
        progress: See :data:`timnet_hf.experiment.Progress`.

    Returns:
        The run's folder and its report.

    Raises:
        ProtocolError: The folds cannot be made from these recordings.
        CrossValidationError: An option has no meaning for the protocol, the folder holds a run
            with another configuration, another process is at work in it, or a training diverged.
        TrainingError: A label has no recording to train on, or a training on an inner fold
            diverged.
        AudioError: A recording cannot be read.
        OSError: The folder cannot be written to, or the disk is full.
    """
    from .baseline import with_baselines
    from .feature_store import compute_features
    from .joined_corpora import cross_corpus_fold
    from .protocols import make_folds
    from .reporting import write_report
    from .training import build_extractor

    if not seeds:
        raise CrossValidationError("No seed. Ask for at least one.")
    if world_size() > 1:
        raise CrossValidationError("Folds are trained side by side with --jobs, not by a launcher.")
    protocol = _checked_protocol(protocol, group_by, n_folds, test_data is not None)
    corpus = data.name
    recipe = recipe.for_corpus(data.corpus)
    if test_data is not None:
        data, fold = cross_corpus_fold(data, test_data)
        protocol, folds = fold.name, [fold]
    else:
        folds = make_folds(
            data.dataset, protocol, corpus=data.corpus, n_folds=n_folds or 10, group_by=group_by
        )

    if calibration:
        folds = [_with_inner_folds(fold, data, calibration) for fold in folds]

    plan = Plan(
        corpus=corpus,
        protocol=protocol,
        recipe=recipe,
        data_sha256=data.sha256,
        seeds=tuple(seeds),
        variant=variant,
        config=config,
        arguments=overrides,
        selection=selection,
        calibration=calibration,
        group_by=group_by,
        shown_fold=folds[0].name,
        command=command,
    )
    extractor = build_extractor(recipe, *data.corpora)
    refuse_another_run(plan.folder(results), plan, extractor, folds)
    store = compute_features(
        data.dataset, extractor, recipe.augmentation.speeds, named_progress(progress, "features")
    )
    folder = cross_validate(
        plan,
        store,
        extractor,
        folds,
        results,
        jobs=jobs,
        progress=named_progress(progress, "folds"),
    )
    remedy = "free some space and run the command again: all folds are kept"
    with sole_use(folder, CrossValidationError), told_when_full(folder, remedy):
        if (done := finished_seeds(folder, plan, folds)) != plan.seeds:
            plan = replace(plan, seeds=done, command=_with_seeds(command, len(done)))
        records = with_baselines(read_folds(folder, plan, folds), store, folds)
        return folder, write_report(folder, plan, records)


def _with_inner_folds(fold: Fold, data: Data, count: int) -> Fold:
    """The fold with so many inner folds of its training side, to fit its temperature on."""
    from .calibration import INNER_FOLDS
    from .protocols import ProtocolError, inner_folds

    try:
        inner = inner_folds(data.dataset, fold.train, INNER_FOLDS)
    except ProtocolError as error:
        raise ProtocolError(
            f"{fold.name}: its training side has no folds to fit a temperature on ({error}). Leave "
            "out the calibration, or add recordings."
        ) from error
    return replace(fold, inner=tuple(inner[:count]))


def _with_seeds(command: str, count: int) -> str:
    """The command that makes a report of so many seeds, some of which lay there already."""
    return command and f"{re.sub(r' --seeds[= ][0-9]+', '', command)} --seeds {count}"


def _checked_protocol(
    protocol: str | None, group_by: str | None, n_folds: int | None, cross_corpus: bool
) -> str:
    """The protocol, by default ``loso``; an option that would go unheard is refused."""
    if cross_corpus and (protocol or group_by or n_folds):
        raise CrossValidationError(
            "Judged on another corpus, all of one is learned from: leave out the protocol, the "
            "number of folds and the column to group by."
        )
    protocol = protocol or "loso"
    if group_by and protocol != "group":
        raise CrossValidationError(
            f"{protocol} does not group by {group_by!r}. Ask for the protocol group."
        )
    if n_folds and protocol not in ("kfold", "group"):
        raise CrossValidationError(
            f"The number of folds of {protocol} is given by the recordings. Leave it out, or ask "
            "for kfold or group."
        )
    return protocol


def with_ablation(name: str | None) -> tuple[str, dict[str, Any]]:
    """An ablation's name → the variant's name and its overrides of the network.

    Raises:
        CrossValidationError: There is no such ablation.
    """
    from .configuration_timnet import ABLATIONS

    if name is None:
        return "", {}
    if name not in ABLATIONS:
        raise CrossValidationError(
            f"Unknown ablation {name!r}. Choose one of {', '.join(ABLATIONS)}."
        )
    return name, dict(ABLATIONS[name])


__all__ = ["run_cross_validation", "with_ablation"]
