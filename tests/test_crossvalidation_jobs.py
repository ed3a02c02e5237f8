# SPDX-License-Identifier: Apache-2.0
"""Folds trained side by side: the same as one by one, and none goes on when the run has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from timnet_hf import crossvalidation as module
from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.protocols import Fold

from .tiny_run import PLAN, records, run
from .tiny_training import tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_side_by_side_give_what_one_after_the_other_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = records(run(tmp_path / "alone"))
    monkeypatch.setattr(module, "available_cores", lambda: 2)  # one thread each, as here
    monkeypatch.setattr(module, "run_fold", None)  # they are trained in other processes
    seen: list[tuple[int, int, str]] = []

    folder = run(tmp_path / "jobs", jobs=2, progress=lambda *now: seen.append(now))

    assert records(folder) == alone
    assert [done for done, *_ in seen] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cores", "jobs", "processes", "threads"),
    [(8, 2, 2, 4), (2, 2, 2, 1), (2, 9, 2, 1), (16, 9, 3, 5)],
)
def test_share_the_cores(
    cores: int,
    jobs: int,
    processes: int,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    class Refusing(ProcessPoolExecutor):
        def __init__(self, workers: int, context: Any, start: Any, values: Any) -> None:
            asked.append((workers, values[-1]))
            raise RuntimeError("enough seen")

    monkeypatch.setattr(module, "available_cores", lambda: cores)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Refusing)

    with pytest.raises(RuntimeError, match="enough seen"):
        run(tmp_path, jobs=jobs)

    assert asked == [(processes, threads)]


def test_a_worker_that_was_killed_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ProcessPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Broken)

    with pytest.raises(CrossValidationError, match="fewer --jobs; finished folds are kept"):
        run(tmp_path, jobs=2)


def test_one_that_fails_ends_the_run_and_what_its_neighbours_finished_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Failing(ProcessPoolExecutor):
        def submit(self, _work: Any, seed: int, fold: Fold) -> Future[Any]:
            asked.append(fold.name)
            future: Future[Any] = Future()
            if len(asked) == 1:
                future.set_exception(CrossValidationError("fold-1 diverged"))
            else:
                future.set_result({"fold": fold.name})
            return future

    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Failing)

    with pytest.raises(CrossValidationError, match="fold-1 diverged"):
        run(tmp_path, replace(PLAN, seeds=(0, 1, 2)), jobs=2)

    assert asked == ["fold-1", "fold-2"]  # of nine: no more than work at a time
    assert [path.name for path in PLAN.folder(tmp_path).glob("folds/*/*")] == ["fold-2.json"]


def test_ctrl_c_leaves_no_fold_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = replace(PLAN, recipe=tiny_recipe(num_train_epochs=1_000_000))
    monkeypatch.setattr(module, "available_cores", lambda: 2)

    def interrupt() -> None:
        while len(active_children()) < 2:
            time.sleep(0.1)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, endless, jobs=2)

    assert active_children() == []
