# SPDX-License-Identifier: Apache-2.0
"""Training in several processes gives what one process gives, and speaks with one voice."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from timnet_hf import ranks
from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.crossvalidation_run import run_cross_validation
from timnet_hf.experiment import Data
from timnet_hf.prediction import load_model, predict_files
from timnet_hf.training import OwnChance

from .tiny_training import tiny_recipe, write_recordings
from .train_by_ranks import run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(repository: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a module of `torch.distributed` or `accelerate` that starts two processes here."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=repository,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )


class TestRank:
    def test_of_a_lone_process_is_the_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("WORLD_SIZE", raising=False)

        assert ranks.is_first()
        assert (ranks.rank(), ranks.world_size(), ranks.share(32)) == (0, 1, 32)

    def test_is_what_the_launcher_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "3")

        assert not ranks.is_first()
        assert (ranks.rank(), ranks.share(32), ranks.share(2)) == (2, 11, 1)

    def test_decides_which_random_numbers_are_drawn(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        arguments = TrainingArguments(output_dir=str(tmp_path), seed=5)
        drawn = set()
        for number in ("0", "1", "0"):
            monkeypatch.setenv("RANK", number)
            OwnChance().on_train_begin(arguments, TrainerState(), TrainerControl())
            drawn.add(float(torch.rand(())))

        assert len(drawn) == 2

    def test_is_no_way_to_share_out_folds(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        data = Data("own", (), None, "")  # type: ignore[arg-type]  # refused before it is read

        with pytest.raises(CrossValidationError, match="--jobs"):
            run_cross_validation(data, tiny_recipe(), "kfold", tmp_path)


@pytest.mark.slow
def test_two_processes_learn_and_judge_as_one_does(repository: Path, tmp_path: Path) -> None:
    ended = launch(
        repository,
        *("torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1"),
        *("--master_port", free_port(), "-m", "tests.train_by_ranks", tmp_path),
    )
    assert ended.returncode == 0, ended.stderr
    shared = json.loads((tmp_path / "result.json").read_text())

    alone = run(tmp_path / "alone")

    assert (shared["batch"], alone["batch"]) == (4, 8)
    np.testing.assert_allclose(shared["losses"], alone["losses"], atol=1e-5)
    for name, values in alone["weights"].items():
        np.testing.assert_allclose(shared["weights"][name], values, atol=1e-5, err_msg=name)
    assert shared["figures"]["judged"] == alone["figures"]["judged"] == 21
    assert shared["figures"]["uar"] == alone["figures"]["uar"]
    assert shared["figures"]["logits"] == pytest.approx(alone["figures"]["logits"], abs=1e-2)


@pytest.mark.slow
def test_two_processes_write_one_model_and_speak_once(repository: Path, tmp_path: Path) -> None:
    own = write_recordings(tmp_path / "own")

    ended = launch(
        repository,
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *(
            "--main_process_ip",
            "127.0.0.1",
            "--main_process_port",
            free_port(),
            "-m",
            "timnet_hf",
            "train",
        ),
        *("--data-dir", own, "--output-dir", tmp_path / "model", "--num-train-epochs", 2),
        "--use-cpu",
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("model in ") == 1
    assert ended.stderr.count("own: 8 recordings") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "own"]
    assert not (tmp_path / "model" / "trainer").exists()
    (answer,) = predict_files([own / "angry" / "0.wav"], *load_model(tmp_path / "model"))
    assert answer.error is None
