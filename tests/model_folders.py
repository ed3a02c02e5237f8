# SPDX-License-Identifier: Apache-2.0
"""A small random model as a folder, and fresh Python processes that load it.

No test here needs a trained model: what is looked at is whether the same weights give the same
answer by every way of loading them. The classifier is scaled up, so that scores differ visibly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LABELS = ["angry", "boredom", "happy", "sad"]

#: What every model folder holds at least.
MODEL_FILES = {
    "README.md",
    "config.json",
    "configuration_timnet.py",
    "feature_extraction_timnet.py",
    "model.safetensors",
    "fused_timnet.py",
    "layers_timnet.py",
    "modeling_timnet.py",
    "passes_timnet.py",
    "preprocessor_config.json",
    "reading_timnet.py",
    "training_record.json",
}

RECORD: dict[str, Any] = {
    "corpus": "emodb",
    "recipe": {"name": "default", "preset": "default", "arguments": {"num_train_epochs": 3}},
    "seed": 0,
    "labels": LABELS,
    "parameters": 1,
    "data": {"files": 535, "sha256": "0" * 64},
    "versions": {"python": "3.11.0", "torch": "2.14.1", "timnet-hf": "0.1.0"},
    "command": "timnet train --corpus emodb",
    "started": "2025-01-01T00:00:00+00:00",
    "wall_time_seconds": 61.5,
    "log": [],
}

#: What a cross-validation reports, as far as cards and tables read it.
FIGURES = {
    "pooled": 81.23,
    "fold_mean": 80.97,
    "fold_std": 4.2,
    "ci95": [78.05, 84.36],
    "per_seed": [81.0, 81.46],
}
LOSO: dict[str, Any] = {
    "corpus": "emodb",
    "protocol": "loso",
    "recipe": "default",
    "selection": "last-epoch",
    "leaks_test_fold": False,
    "seeds": [0, 1],
    "n_folds": 10,
    "n_files": 535,
    "parameters": 104_496,
    "uar": FIGURES,
    "war": {**FIGURES, "pooled": 82.34},
    "macro_f1": 80.56,
    "ece": 0.0712,
    "per_class_recall": dict(zip(LABELS, [91.3, 72.8, 63.4, 97.5], strict=True)),
    "per_speaker": {"03": 70.1, "08": 92.6},
    "baselines": {"svc": {"uar": 74.5, "war": 76.25}, "linear": {"uar": 73.5, "war": 75.25}},
    "wall_time_seconds": 5400,
    "command": "timnet cross-validate --corpus emodb --protocol loso",
}


def write_model_folder(path: Path, seed: int = 0, reports: tuple[dict[str, Any], ...] = ()) -> Path:
    """Write a random network of full depth and small width, as training would leave it."""
    import torch

    from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
    from timnet_hf.hub import save_model_folder

    torch.manual_seed(seed)
    model = TimNetForAudioClassification(
        TimNetConfig(
            hidden_size=8,
            pooling="statistics",
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
        )
    ).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    extractor = TimNetFeatureExtractor(mean=[-5.0] * 39, std=[30.0] * 39)
    return save_model_folder(path, model, extractor, RECORD, reports)


#: Runs before a script: `timnet_hf` cannot be imported, and nobody but this machine is reachable.
WITHOUT_PACKAGE = """
import importlib.abc, sys

class _Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "timnet_hf":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, _Blocker())
"""
ONLY_THIS_MACHINE = """
import socket

_connect = socket.socket.connect

def _guarded(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test wanted to reach {address}")
    return _connect(self, address)

socket.socket.connect = _guarded
"""


def run_python(
    script: str, *arguments: str, cwd: Path, package: bool, **environment: str
) -> dict[str, Any]:
    """Run a script in a fresh process and return the JSON object that it prints last.

    Args:
        script: Python source.
        *arguments: Its `sys.argv[1:]`.
        cwd: An empty folder, also the home of its caches.
        package: Whether `timnet_hf` can be imported there.
        **environment: Further environment variables.
    """
    import timnet_hf

    guard = ONLY_THIS_MACHINE + ("" if package else WITHOUT_PACKAGE)
    values = {**os.environ, "HF_HOME": str(cwd / "hf"), **environment}
    values.pop("PYTHONPATH", None)
    if package:
        values["PYTHONPATH"] = str(Path(timnet_hf.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", guard + script, *arguments],
        cwd=cwd,
        env=values,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
