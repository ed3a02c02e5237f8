# SPDX-License-Identifier: Apache-2.0
"""Scoring on Ray: the same function on every node of a cluster, or on this machine.

A row of the Ray dataset is the number of a shard. A task scores it and writes it in one step, so
that a shard that is scored twice, because a node was lost before it could tell, is the same file
twice. All nodes see the input and the output's folder under the same names: on a shared file
system, where there is more than one machine.

These are tasks, not actors that hold the model: unpacking the model takes a millisecond, a worker
process does it once, and a lost task is run again wherever there is room. A lost actor's tasks
would wait for that actor, which a cluster that has shrunk has no room for, and the job for ever.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .memory import keep_freed_memory
from .scoring import Job, ScoringError, ShardReport, score_shard

if TYPE_CHECKING:
    from .scoring_batches import Scorer

#: Tasks that Ray is given, at most: each is one to a few shards.
MOST_TASKS = 10_000

#: Passes in a row that may fail without a single shard done.
MOST_FAILURES = 3


def run_on_ray(
    job: Job, todo: list[int], workers: int | None = None, address: str | None = None
) -> Iterator[ShardReport]:
    """Score shards on Ray.

    Args:
        job: See `Job`.
        todo: Numbers of the shards.
        workers: Tasks at a time, one core each; by default one a core of the cluster.
        address: Of a running cluster; without it Ray is started here, and stopped again, unless
            this process is connected already.

    Yields:
        A report a shard, as they are done.

    Raises:
        ImportError: Ray is not installed.
        ScoringError: There is no cluster at the address, or it failed for good.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    try:
        import ray.data
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ImportError(
            "--engine ray needs Ray: pip install 'timnet-hf[ray]', or use --engine local."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    left = dict.fromkeys(todo)
    failures = 0
    with _connected(address, workers):
        while left:
            try:
                for report in _one_pass(job, list(left), workers):
                    failures = 0
                    del left[report.number]
                    yield report
            except RayError as error:  # Ray has given up what it tried a few times
                failures += 1
                if failures == MOST_FAILURES or isinstance(error, RayTaskError):
                    reason = str(error).strip().splitlines()[-1]
                    raise ScoringError(
                        f"Ray failed ({reason}); run the same command again to go on"
                    ) from error
                time.sleep(1)  # until the cluster has noticed what is gone


def _one_pass(job: Job, todo: list[int], workers: int | None) -> Iterator[ShardReport]:
    import ray.data

    score_some: Any = score_batch  # Ray's own type of such a function names more than we take
    reports = ray.data.from_items(todo, override_num_blocks=min(len(todo), MOST_TASKS)).map_batches(
        score_some,
        fn_args=(job,),
        batch_size=1,
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(workers),
    )
    for row in reports.iter_rows():
        yield ShardReport(**row)


def score_batch(batch: dict[str, Any], job: Job) -> dict[str, list[Any]]:
    """Score the shards numbered ``batch["item"]``; return a report a row."""
    scorer = _unpacked(job.scorer)
    reports = [score_shard(job, int(number), scorer) for number in batch["item"]]
    return {name: [getattr(one, name) for one in reports] for name in vars(reports[0])}


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Scorer:
    """The model, once a worker process."""
    import pickle

    import torch

    keep_freed_memory()
    torch.set_num_threads(1)
    scorer: Scorer = pickle.loads(packed)
    return scorer


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # On this machine, for this machine: nothing listens on any other address.
        options |= {"num_cpus": workers, "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1"}
    elif found := re.fullmatch(r"([\w.-]+):(\d+)", address):
        # Ray itself goes on trying for a quarter of an hour.
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ScoringError(f"{address}: no Ray cluster answers there ({error})") from None
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError) as error:
        raise ScoringError(f"{address}: no Ray cluster answers there ({error})") from None
    try:
        yield
    finally:
        ray.shutdown()


__all__ = ["MOST_FAILURES", "MOST_TASKS", "run_on_ray", "score_batch"]
