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

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from itertools import count, islice, takewhile
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .crossvalidation_plan import SELECTIONS, CrossValidationError, Plan
from .fold_training import CODE, run_fold
from .memory import keep_freed_memory
from .output_folder import sole_use, told_when_full, write_json
from .protocols import Fold
from .workers import available_cores, follow_parent

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .feature_store import FeatureStore


def cross_validate(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    folds: Sequence[Fold],
    results: str | Path,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Train and score every fold that is not done yet.

    Args:
        plan: What to run.
        store: Features of all recordings, at all speeds of the recipe.
        extractor: The extractor they were made with.
        folds: What every seed is trained and tested on.
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
        _train_open_folds(plan, store, extractor, folds, folder, jobs, progress)
    return folder


def _train_open_folds(
    plan: Plan,
    store: FeatureStore,
    extractor: TimNetFeatureExtractor,
    folds: Sequence[Fold],
    folder: Path,
    jobs: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    _claim(folder, plan, extractor)
    tasks = [(seed, fold) for seed in plan.seeds for fold in folds]
    kept = [_read_fold(folder, plan, *task) for task in tasks]
    open_tasks = [task for task, record in zip(tasks, kept, strict=True) if record is None]
    done = len(tasks) - len(open_tasks)
    earlier = [record for record in kept if record and _code_of(record) != CODE]
    if open_tasks and earlier:
        logger.warning(
            "%s: %s of %s finished folds were trained by another state of the code. They are kept; "
            "the report tells which code made how many",
            *(folder, len(earlier), done),
        )
    if progress is not None:
        progress(done, len(tasks), "")
    for name in _run(plan, store, extractor, open_tasks, folder, jobs):
        done += 1
        if progress is not None:
            progress(done, len(tasks), name)


def read_folds(folder: Path, plan: Plan, folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """All folds' JSON of a finished run, by seed and fold.

    Raises:
        CrossValidationError: A fold is missing, or was tested on other recordings.
    """
    records = []
    for seed in plan.seeds:
        for fold in folds:
            record = _read_fold(folder, plan, seed, fold)
            if record is None:
                path = _fold_path(folder, seed, fold)
                raise CrossValidationError(f"{path}: not done yet. Run the command again.")
            records.append(record)
    return records


def finished_seeds(folder: Path, plan: Plan, folds: Sequence[Fold]) -> tuple[int, ...]:
    """The plan's seeds, and those next to them that an earlier run of it has finished."""

    def is_finished(seed: int) -> bool:
        return all(_read_fold(folder, plan, seed, fold) is not None for fold in folds)

    return (*plan.seeds, *takewhile(is_finished, count(max(plan.seeds) + 1)))


def _code_of(record: dict[str, Any]) -> Any:
    return record.get("versions", {}).get("code")


def _fold_path(folder: Path, seed: int, fold: Fold) -> Path:
    return folder / "folds" / f"seed-{seed}" / f"{fold.name}.json"


def refuse_another_run(
    folder: Path,
    plan: Plan,
    extractor: TimNetFeatureExtractor,
    folds: Sequence[Fold],
) -> None:
    """Look whether a folder is free, or holds the run that is planned; nothing is written.

    Raises:
        CrossValidationError: It holds a run with another configuration or other folds.
    """
    _note_of(folder, plan, extractor)
    for seed in plan.seeds:
        for fold in folds:
            _read_fold(folder, plan, seed, fold)


def _claim(folder: Path, plan: Plan, extractor: TimNetFeatureExtractor) -> None:
    """Note the configuration in the run's folder, or check that it is the one noted there."""
    from .provenance import versions

    noted = _note_of(folder, plan, extractor)
    fixed, meant = _as_json(plan.fixed()), _as_json(plan.meant(extractor))
    note = noted or {"command": plan.command, "versions": versions()}
    # A run from before a setting was noted, or was there, is held to what it means from now on.
    note = {**note, "fixed": fixed, "meant": {**meant, **note.get("meant", {})}}
    if note != noted:
        write_json(folder / "run.json", note)


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file: lists, where tuples went in."""
    return dict(json.loads(json.dumps(value, default=list)))


def _note_of(folder: Path, plan: Plan, extractor: TimNetFeatureExtractor) -> dict[str, Any] | None:
    """What was noted when the run in a folder began; None where there is none.

    Raises:
        CrossValidationError: The run has another configuration, or the note is damaged or gone.
    """
    path = folder / "run.json"
    if not path.exists():
        if any(folder.glob("folds/*/*.json")):
            raise CrossValidationError(
                f"{folder}: holds folds, and no run.json that tells what they are of. Put it back, "
                "move the folder away, or choose another results folder."
            )
        return None
    try:
        note = dict(json.loads(path.read_text(encoding="utf-8")))
        noted, noted_meant = dict(note["fixed"]), dict(note.get("meant", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise CrossValidationError(
            f"{path}: is damaged. Move {folder} away, or choose another results folder."
        ) from error
    fixed, meant = _as_json(plan.fixed()), _as_json(plan.meant(extractor))
    differing = sorted(
        {"data_sha256": "set of recordings"}.get(key, key)
        for key in {*fixed, *noted}
        if fixed.get(key, 0) != noted.get(key, 0)
    )
    # A setting that there was not yet has a default that changes nothing.
    differing += sorted(key for key in {*meant} & {*noted_meant} if meant[key] != noted_meant[key])
    if differing:
        raise CrossValidationError(
            f"{folder}: holds a run with another {', '.join(differing)}. "
            "Move it away, or choose another results folder."
        )
    return note


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
            write_json(_fold_path(folder, seed, fold), run_fold(plan, store, extractor, seed, fold))
            yield f"seed {seed}, {fold.name}"
        return
    threads = cores // jobs
    others = set(active_children())
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), _start_worker, (plan, store, extractor, threads)
    ) as pool:
        waiting = iter(tasks)
        running: dict[Future[dict[str, Any]], tuple[int, Fold]] = {}
        try:
            while True:
                # One each: what has been handed out cannot be called back.
                for seed, fold in islice(waiting, jobs - len(running)):
                    running[pool.submit(_work, seed, fold)] = seed, fold
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                # What succeeded is kept before what failed ends the run.
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    seed, fold = running.pop(future)
                    write_json(_fold_path(folder, seed, fold), future.result())
                    yield f"seed {seed}, {fold.name}"
        except BaseException as error:
            # A fold takes minutes, and nobody waits for it any more.
            for process in set(active_children()) - others:
                process.terminate()
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

    follow_parent()
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    keep_freed_memory()
    _worker.update(plan=plan, store=store, extractor=extractor)


def _work(seed: int, fold: Fold) -> dict[str, Any]:
    return run_fold(_worker["plan"], _worker["store"], _worker["extractor"], seed, fold)


__all__ = [
    "SELECTIONS",
    "CrossValidationError",
    "Plan",
    "cross_validate",
    "finished_seeds",
    "read_folds",
    "refuse_another_run",
]
