# SPDX-License-Identifier: Apache-2.0
"""Scoring on this machine: in this process, or in several, one thread each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from .memory import keep_freed_memory
from .scoring import Job, ScoringError, ShardReport, score_shard
from .workers import available_cores, follow_parent

if TYPE_CHECKING:
    from .scoring_batches import Scorer

#: What a worker process holds: its job and the model.
_mine: tuple[Job, Scorer] | None = None


def run_here(job: Job, todo: list[int], workers: int | None = None) -> Iterator[ShardReport]:
    """Score shards on this machine.

    Args:
        job: See `Job`.
        todo: Numbers of the shards.
        workers: Processes; by default one a core. One, or one shard, needs no other process.

    Yields:
        A report a shard, as they are done.

    Raises:
        ScoringError: A worker died.
    """
    workers = min(workers or available_cores(), len(todo))
    if workers == 1:
        scorer = job.load()
        with _one_thread():
            for number in todo:
                yield score_shard(job, number, scorer)
        return
    # Spawned, not forked: a fork of a process with torch's threads may wait for ever.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(job,)
    ) as pool:
        waiting = iter(todo)
        running: set[Future[ShardReport]] = set()
        try:
            while True:
                # One more than workers, so that none waits. What has been handed out cannot be
                # called back, and Ctrl-C waits for it.
                for number in itertools.islice(waiting, workers + 1 - len(running)):
                    running.add(pool.submit(_score, number))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenExecutor:
            raise ScoringError(
                "a worker process died, for want of memory maybe; run the same command again to go "
                "on, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One recording is too little work to share: threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(job: Job) -> None:
    """Load the model, once a process; end when the process that gives out the work ends."""
    global _mine
    import torch

    follow_parent()
    keep_freed_memory()
    torch.set_num_threads(1)
    _mine = job, job.load()


def _score(number: int) -> ShardReport:
    assert _mine is not None
    job, scorer = _mine
    return score_shard(job, number, scorer)


__all__ = ["run_here"]
