# SPDX-License-Identifier: Apache-2.0
"""docs/scaling.md says what was measured, and calculates with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .scoring_world import write_sounds


@pytest.fixture(scope="module")
def scaling(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", repository / "scripts" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(scaling: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scaling.REPORT.read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_the_measurement_makes_of_it(
    scaling: ModuleType, report: dict[str, Any]
) -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")

    assert page == scaling.render(report), "run scripts/scaling.py"
    assert "{{" not in page


def test_the_arithmetic_of_a_million_hours(scaling: ModuleType, report: dict[str, Any]) -> None:
    made_up = json.loads(json.dumps(report))
    made_up["workers"]["1"]["cpu_seconds_per_audio_hour"] = 1.8
    made_up["mean_seconds"] = 3.6
    made_up["bytes_per_row"] = 50

    page = scaling.render(made_up)

    assert "**500 core-hours**" in page  # 1e6 h × 1.8 s ÷ 3600 s
    assert "5.0 hours on a hundred" in page
    assert "1,000 million rows" in page
    assert "115 TB" in page  # 1e6 × 3600 s × 32 kB
    assert "64 MB/s" in page  # 2,000 × real time
    assert "50 GB in all" in page


def test_a_measurement_is_consistent(
    scaling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "LONG", 3)
    monkeypatch.setattr(scaling, "_gemm_gflops", lambda: 1.0)
    monkeypatch.setattr(
        scaling,
        "_marginal",
        lambda files, seconds, workers: {
            "cpu_seconds_per_audio_hour": 2.0 * workers,
            "wall_seconds_per_audio_hour": 3.0 / workers,
            "start_up_cpu_seconds": 1.0,
            "bytes_per_row": 60.0,
        },
    )

    report = scaling.measure(write_sounds(tmp_path / "in", 3), rounds=2)

    assert report["recordings"] == 3
    assert report["cpu_ratio_two_to_one"] == 2.0
    assert report["wall_ratio_one_to_two"] == 2.0
    for name, cost in report["cpu_seconds_per_audio_hour"].items():
        assert report["times_real_time_per_core"][name] == pytest.approx(3600 / cost)
    assert scaling.render(report)


def test_bulk_scoring_is_a_thousand_times_real_time(report: dict[str, Any]) -> None:
    """What is on record, not what this machine does just now."""
    for run in report["workers"].values():
        assert 3600 / run["cpu_seconds_per_audio_hour"] > 1_000
