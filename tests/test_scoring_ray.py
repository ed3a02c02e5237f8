# SPDX-License-Identifier: Apache-2.0
"""Scoring on Ray: the same rows, whatever happens to the machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from timnet_hf import scoring_ray
from timnet_hf.scoring import Job, ScoringError, score

from .scoring_world import assert_same_rows, rows, save_model, write_sounds

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 10**8}


@pytest.fixture
def cluster(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A node that coordinates, and this process connected by way of it; more may be added."""
    monkeypatch.setenv("PYTHONPATH", str(repository))  # what the nodes' workers import from
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default whoever else is busy goes first
    # Every address is 127.0.0.1, as Ray has it by default where firewalls ask questions.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    started = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
    )
    try:
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def test_no_row_is_lost_or_doubled_when_a_node_dies(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = write_sounds(tmp_path / "in", 80)
    (sounds / "clip7b.wav").write_bytes(b"")
    model = save_model(tmp_path / "model")
    output = tmp_path / "out.parquet"
    score_batch = scoring_ray.score_batch

    def slowly(batch: dict[str, Any], job: Job) -> dict[str, list[Any]]:
        """Score a shard, and note on which node; not so fast that all is over at once."""
        node = ray.get_runtime_context().get_node_id()
        Path(job.folder, f"on-{node}-{batch['item'][0]}").touch()
        time.sleep(0.5)
        return score_batch(batch, job)

    told: list[int] = []
    seen: set[str] = set()
    doomed = cluster.add_node(**NODE)

    def watch(done: int, total: int, seconds: float) -> None:
        """As soon as both nodes have work, take one away without a word."""
        told.append(done)
        folder = output.with_name("out.parquet.shards")
        seen.update(mark.name.split("-")[1] for mark in folder.glob("on-*"))
        if len(seen) == 2 and doomed in cluster.worker_nodes:
            cluster.remove_node(doomed, allow_graceful=False)

    monkeypatch.setattr(scoring_ray, "score_batch", slowly)
    summary = score(sounds, output, model, engine="ray", shard_size=2, progress=watch)

    assert doomed not in cluster.worker_nodes, "the second node was never given work"
    assert told == sorted(set(told))
    assert told[-1] == 81
    assert (summary.rows, summary.errors) == (81, 1)
    assert [row["index"] for row in rows(output)] == list(range(81))
    score(sounds, tmp_path / "here.parquet", model, shard_size=2, workers=1)
    assert_same_rows(output, tmp_path / "here.parquet")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, address: str) -> None:
    sounds, model = write_sounds(tmp_path / "in", 2), save_model(tmp_path / "model")

    with pytest.raises(ScoringError, match=f"{address}: no Ray cluster answers there"):
        score(sounds, tmp_path / "out.parquet", model, engine="ray", address=address)
