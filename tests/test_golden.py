# SPDX-License-Identifier: Apache-2.0
"""The shipped checkpoints' features and answers, pinned: whatever moves them must be meant.

`golden.json` was written by `python scripts/make_golden.py`. The tolerance of 0.002 is what other
processors and versions of libraries may differ by; normalised features are about ±3, logits ±5, and
the paper's features reach ±600, where 0.02 is allowed.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timnet_hf.prediction import CHECKPOINTS

GOLDEN = Path(__file__).with_name("golden.json")
RENEW = "run: python scripts/make_golden.py, if it was meant to change"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "scripts" / "make_golden.py"))["compute"]()


def check_features(found: dict[str, Any], pinned: dict[str, Any], tolerance: float) -> None:
    assert found["shape"] == pinned["shape"], RENEW
    assert found["frames"].keys() == pinned["frames"].keys()
    for one, other in [
        (found["mean"], pinned["mean"]),
        *((found["frames"][index], pinned["frames"][index]) for index in found["frames"]),
    ]:
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=RENEW)


def test_every_shipped_checkpoint_is_pinned(golden: dict[str, Any]) -> None:
    shipped = {path.name for path in CHECKPOINTS.iterdir() if path.is_dir()}
    assert golden["checkpoints"].keys() == shipped
    for name, pinned in golden["checkpoints"].items():
        record = json.loads((CHECKPOINTS / name / "training_record.json").read_text())
        assert pinned["model_sha256"] == record["model_sha256"], RENEW


def test_the_papers_features(golden: dict[str, Any], computed: dict[str, Any]) -> None:
    for clip, pinned in golden["paper preset"].items():
        check_features(computed["paper preset"][clip], pinned, 0.02)


def test_features_and_logits_of_the_checkpoints(
    golden: dict[str, Any], computed: dict[str, Any]
) -> None:
    for name, pinned in golden["checkpoints"].items():
        for clip, wanted in pinned["clips"].items():
            found = computed["checkpoints"][name]["clips"][clip]
            check_features(found["features"], wanted["features"], 0.002)
            np.testing.assert_allclose(
                found["logits"], wanted["logits"], rtol=0, atol=0.002, err_msg=f"{name}: {RENEW}"
            )


def test_the_values_tell_clips_apart(golden: dict[str, Any]) -> None:
    for pinned in golden["checkpoints"].values():
        logits = [answer["logits"] for answer in pinned["clips"].values()]
        assert np.std(logits, axis=0).min() > 0.05
