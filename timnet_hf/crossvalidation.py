# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: one model a fold and seed, one JSON each, resumable, never mixed up.

A run lies in one folder::

    results/emodb/loso/default/
      run.json                  what was fixed before: recipe, data checksum, versions
      folds/seed-0/speaker-03.json   logits of that fold's recordings
      report.json …             see timnet_hf.reporting

A fold's JSON is written when its model is done, in one step. A run that was killed goes on where
it stopped; a run whose recipe or data changed is refused instead of being mixed with the old one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import keep_freed_memory
from .output_folder import sole_use, told_when_full
from .protocols import Fold
from .recipes import Recipe
from .workers import available_cores, end_with_parent

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .feature_store import FeatureStore

#: How the reported model of a fold is chosen. The second one leaks the test fold into the choice.
SELECTIONS = ("last-epoch", "best-on-test")
#: How many of a new speaker's recordings are enrolled to see what knowing the voice brings.
ENROLMENT_COUNTS = ("1", "3", "10", "all")


class CrossValidationError(ValueError):
    """A cross-validation cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first fold is trained.

    Attributes:
        corpus: Name of the corpus, or of the user's own data.
        protocol: See :mod:`timnet_hf.protocols`.
        recipe: See :mod:`timnet_hf.recipes`.
        data_sha256: Checksum of the recordings.
        seeds: Each fold is trained once with each.
        variant: Added to the recipe's name in reports, such as an ablation.
        config: Overrides of the recipe's network.
        arguments: Overrides of the recipe's training arguments.
        selection: One of ``SELECTIONS``.
        calibration: Inner folds that each fold's temperature is fitted on; 0 for no temperature.
        group_by: Column whose values the protocol ``group`` keeps together.
        shown_fold: The fold whose model draws the map of the fused vectors, for the first seed.
        command: How the run was asked for.
    """

    corpus: str
    protocol: str
    recipe: Recipe
    data_sha256: str
    seeds: tuple[int, ...] = (0,)
    variant: str = ""
    config: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    selection: str = "last-epoch"
    calibration: int = 0
    group_by: str | None = None
    shown_fold: str = ""
    command: str = ""

    @property
    def name(self) -> str:
        """What the run's folder and reports call the recipe."""
        leak = "best-on-test" if self.selection == "best-on-test" else ""
        return "-".join(part for part in (self.recipe.name, self.variant, leak) if part)

    def folder(self, results: str | Path) -> Path:
        """Where the run lies below the results folder."""
        return Path(results) / self.corpus / self.protocol / self.name

    def fixed(self) -> dict[str, Any]:
        """What a resumed run must share with the run it goes on from; seeds may be added."""
        return {
            "corpus": self.corpus,
            "protocol": self.protocol,
            "recipe": self.recipe.to_dict(),
            "config": self.config or {},
            "arguments": self.arguments or {},
            "selection": self.selection,
            **({"calibration": self.calibration} if self.calibration else {}),
            **({"group_by": self.group_by} if self.group_by else {}),
            "data_sha256": self.data_sha256,
        }

    def fingerprint(self) -> str:
        """Short checksum of :meth:`fixed`, kept in every fold's JSON."""
        text = json.dumps(self.fixed(), sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False, default=list)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cross_validate(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    make_folds: Callable[[int], list[Fold]],
    results: str | Path,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Train and score every fold that is not done yet.

    Args:
        plan: What to run.
        store: Features of all recordings, at all speeds of the recipe.
        extractor: The extractor they were made with.
        make_folds: Seed → folds.
        results: The results folder.
        jobs: Folds trained side by side, each with its share of the cores; no more than there are.
        progress: Called with (done, total, name) when a fold is done, and once at the start.

    Returns:
        The run's folder.

    Raises:
        CrossValidationError: The folder holds a run with another configuration or other folds,
            another process is at work in it, a training diverged, or a worker process was ended
            from outside.
        OSError: The folder cannot be written to, or the disk is full.
    """
    folder = plan.folder(results)
    remedy = "free some space and run the command again: finished folds are kept"
    with sole_use(folder, CrossValidationError), told_when_full(folder, remedy):
        _train_open_folds(plan, store, extractor, make_folds, folder, jobs, progress)
    return folder


def _train_open_folds(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    make_folds: Callable[[int], list[Fold]],
    folder: Path,
    jobs: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    _claim(folder, plan)
    tasks = [(seed, fold) for seed in plan.seeds for fold in make_folds(seed)]
    open_tasks = [task for task in tasks if _read_fold(folder, plan, *task) is None]
    done = len(tasks) - len(open_tasks)
    if progress is not None:
        progress(done, len(tasks), "")
    for name in _run(plan, store, extractor, open_tasks, folder, jobs):
        done += 1
        if progress is not None:
            progress(done, len(tasks), name)


def read_folds(
    folder: Path, plan: Plan, make_folds: Callable[[int], list[Fold]]
) -> list[dict[str, Any]]:
    """All folds' JSON of a finished run, by seed and fold.

    Raises:
        CrossValidationError: A fold is missing.
    """
    records = []
    for seed in plan.seeds:
        for fold in make_folds(seed):
            record = _read_fold(folder, plan, seed, fold)
            if record is None:
                path = _fold_path(folder, seed, fold)
                raise CrossValidationError(f"{path}: not done yet. Run the command again.")
            records.append(record)
    return records


def finished_seeds(
    folder: Path, plan: Plan, make_folds: Callable[[int], list[Fold]]
) -> tuple[int, ...]:
    """The plan's seeds, and those beside them that an earlier run of it has finished."""
    found = {int(path.name.removeprefix("seed-")) for path in folder.glob("folds/seed-[0-9]*")}
    more = sorted(found - set(plan.seeds))
    return plan.seeds + tuple(
        seed
        for seed in more
        if all(_read_fold(folder, plan, seed, fold) is not None for fold in make_folds(seed))
    )


def _fold_path(folder: Path, seed: int, fold: Fold) -> Path:
    return folder / "folds" / f"seed-{seed}" / f"{fold.name}.json"


def _claim(folder: Path, plan: Plan) -> None:
    """Note the configuration in the run's folder, or check that it is the one noted there."""
    path = folder / "run.json"
    fixed = json.loads(json.dumps(plan.fixed(), default=list))
    if path.exists():
        try:
            noted = dict(json.loads(path.read_text(encoding="utf-8"))["fixed"])
        except (ValueError, KeyError, TypeError) as error:
            raise CrossValidationError(
                f"{path}: is damaged. Move {folder} away, or choose another results folder."
            ) from error
        differing = sorted(
            key for key in {*fixed, *noted} if fixed.get(key, 0) != noted.get(key, 0)
        )
        if differing:
            raise CrossValidationError(
                f"{folder}: holds a run with another {', '.join(differing)}. "
                "Move it away, or choose another results folder."
            )
        return
    from .provenance import versions

    write_json(path, {"fixed": fixed, "command": plan.command, "versions": versions()})


def _read_fold(folder: Path, plan: Plan, seed: int, fold: Fold) -> dict[str, Any] | None:
    """A fold's JSON if that fold is done, else None; damaged files count as not done.

    Raises:
        CrossValidationError: A fold of that name was tested on other recordings.
    """
    path = _fold_path(folder, seed, fold)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fingerprint, rows, n_train = (record[key] for key in ("fingerprint", "rows", "n_train"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if fingerprint != plan.fingerprint():
        return None
    if rows != fold.test.tolist() or n_train != len(fold.train):
        raise CrossValidationError(
            f"{path}: holds a fold of other recordings, from another number of folds or another "
            f"column to group by. Move {folder} away, or choose another results folder."
        )
    return record


def _run(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    tasks: Sequence[tuple[int, Fold]],
    folder: Path,
    jobs: int,
) -> Iterator[str]:
    """Run the tasks here or in worker processes; yield each one's name when it is written."""
    cores = available_cores()
    if jobs > cores:
        logger.warning("%s jobs would share %s core(s): as many are run at a time", jobs, cores)
    jobs = max(1, min(jobs, cores, len(tasks)))
    if jobs == 1:
        for seed, fold in tasks:
            write_json(
                _fold_path(folder, seed, fold), _run_fold(plan, store, extractor, seed, fold)
            )
            yield f"seed {seed}, {fold.name}"
        return
    threads = cores // jobs
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), _start_worker, (plan, store, extractor, threads)
    ) as pool:
        futures = {pool.submit(_work, seed, fold): (seed, fold) for seed, fold in tasks}
        try:
            for future in as_completed(futures):
                seed, fold = futures[future]
                write_json(_fold_path(folder, seed, fold), future.result())
                yield f"seed {seed}, {fold.name}"
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenExecutor):
                raise CrossValidationError(
                    "A worker process was ended from outside, perhaps for want of memory. Run the "
                    "command again with fewer --jobs; finished folds are kept."
                ) from error
            raise


_worker: dict[str, Any] = {}


def _start_worker(
    plan: Plan, store: FeatureStore, extractor: TimNetFeatureExtractor, threads: int
) -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    keep_freed_memory()
    _worker.update(plan=plan, store=store, extractor=extractor)


def _work(seed: int, fold: Fold) -> dict[str, Any]:
    return _run_fold(_worker["plan"], _worker["store"], _worker["extractor"], seed, fold)


def _run_fold(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    seed: int,
    fold: Fold,
) -> dict[str, Any]:
    """Train on one fold's training side, score its test side."""
    from .calibration import inner_temperature
    from .evaluation import BestOnTest, LastEpochs, score, tsne, uar, war
    from .training import build_arguments, train

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="timnet-fold-") as scratch:
        arguments = build_arguments(
            plan.recipe,
            scratch,
            seed,
            {"disable_tqdm": True, "logging_strategy": "no", **(plan.arguments or {})},
        )
        watcher = BestOnTest(store, fold.test) if plan.selection == "best-on-test" else None
        steadiness = LastEpochs(store, fold.test)
        trained = train(
            store,
            fold.train,
            plan.recipe,
            extractor,
            arguments,
            plan.config,
            callbacks=[steadiness, *([watcher] if watcher else [])],
        )
    logits, _ = score(trained.model, trained.extractor, store, fold.test)
    if watcher is not None:
        logits = watcher.logits
    if not np.isfinite(logits).all():
        raise CrossValidationError(
            f"seed {seed}, {fold.name}: the training diverged, its logits are not finite. Lower "
            "the learning rate."
        )
    temperature = None
    if fold.inner:
        temperature = inner_temperature(
            store, fold.inner, plan.recipe, extractor, seed, plan.config, plan.arguments
        )
    references = store.labels[fold.test]
    record = {
        "fingerprint": plan.fingerprint(),
        "fold": fold.name,
        "seed": seed,
        "n_train": len(fold.train),
        "parameters": trained.model.num_parameters(only_trainable=True),
        "labels": store.label_names,
        "rows": fold.test.tolist(),
        "files": [Path(store.paths[row]).name for row in fold.test],
        "speakers": [store.speakers[row] for row in fold.test],
        "references": references.tolist(),
        "logits": np.round(logits.astype(float), 4).tolist(),
        **_enrolled(plan, trained, store, seed, fold),
        **({"temperature": temperature} if temperature is not None else {}),
        "last_epochs": steadiness.predictions,
        "fusion_weights": _fusion_weights(trained.model),
        "uar": uar(references, logits.argmax(1)),
        "war": war(references, logits.argmax(1)),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if seed == plan.seeds[0] and fold.name == plan.shown_fold:
        _, fused = score(trained.model, trained.extractor, store, range(len(store)))
        record["tsne"] = np.round(tsne(fused).astype(float), 2).tolist()
        record["tsne_labels"] = store.labels.tolist()
    return record


def _enrolled(
    plan: Plan, trained: Any, store: FeatureStore, seed: int, fold: Fold
) -> dict[str, dict[str, list[list[float]]]]:
    """The test side's logits once more, each voice known from 1, 3, 10 or all its recordings.

    Only for recipes whose features are standardised, for that is what adaptation puts right, and
    only where the test speakers are known by name and new to the model. The recordings are drawn at
    random and their labels are not looked at.
    """
    from .evaluation import score

    named = all(store.speakers[row] is not None for row in fold.test)
    speakers = np.array([str(name) for name in store.speakers])
    new = set(speakers[fold.test]).isdisjoint(speakers[fold.train])
    last = plan.selection != "best-on-test"  # else the model at hand is not the one that is judged
    if not (named and new and last and plan.recipe.standardize):
        return {}
    logits = {
        count: np.zeros((len(fold.test), len(store.label_names))) for count in ENROLMENT_COUNTS
    }
    for speaker in sorted(set(speakers[fold.test])):
        own = np.flatnonzero(speakers[fold.test] == speaker)
        drawn = enrolment_order(fold.test[own], seed)
        for count, scores in logits.items():
            enrolled = drawn if count == "all" else drawn[: int(count)]
            scores[own], _ = score(
                trained.model, trained.extractor, store, fold.test[own], enrolled=enrolled
            )
    return {"enrolled": {count: np.round(scores, 4).tolist() for count, scores in logits.items()}}


def enrolment_order(rows: np.ndarray, seed: int) -> np.ndarray:
    """In which order a voice's recordings are enrolled: at random, another one for each seed."""
    return np.random.default_rng(seed).permutation(rows)


def _fusion_weights(model: Any) -> list[float]:
    import torch

    fusion = model.timnet.fusion
    with torch.no_grad():
        _, weights = fusion(torch.zeros(1, fusion.num_scales, 1))
    return [round(weight, 4) for weight in weights.tolist()]


__all__ = [
    "ENROLMENT_COUNTS",
    "SELECTIONS",
    "CrossValidationError",
    "Plan",
    "cross_validate",
    "enrolment_order",
    "finished_seeds",
    "read_folds",
    "write_json",
]
