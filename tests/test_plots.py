# SPDX-License-Identifier: Apache-2.0
"""Plots: every one a PNG, with no display, whatever the data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from timnet_hf import plots

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet([1, 1, 1], 40)
REFERENCES = RNG.integers(0, 3, 40)
POINTS = RNG.standard_normal((40, 2))
NAMES = ["angry", "happy", "sad"]

DRAWINGS: dict[str, Callable[[Path], None]] = {
    "confusion": lambda path: plots.confusion(np.array([[5, 1], [0, 4]]), NAMES[:2], path),
    "confusion, a label untested": lambda path: plots.confusion(
        np.array([[5, 1], [0, 0]]), NAMES[:2], path
    ),
    "reliability": lambda path: plots.reliability(PROBABILITIES, REFERENCES, 15, path),
    "reliability, all certain": lambda path: plots.reliability(
        np.eye(3)[REFERENCES], REFERENCES, 15, path
    ),
    "fusion weights": lambda path: plots.fusion_weights(
        [[0.1, -0.2], [0.3, 0.0]], ["input", "1"], path
    ),
    "fusion weights, one scale": lambda path: plots.fusion_weights([[1.0]], ["1"], path),
    "scatter": lambda path: plots.scatter(POINTS, REFERENCES, np.arange(40) < 9, NAMES, path),
    "scatter, rows that no fold tests": lambda path: plots.scatter(
        POINTS, np.where(np.arange(40) < 20, -1, REFERENCES), np.arange(40) < 9, NAMES, path
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_draws_a_picture_of_its_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"

    DRAWINGS[name](path)

    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()  # nothing left open


def test_no_two_pictures_are_alike(tmp_path: Path) -> None:
    for name, draw in DRAWINGS.items():
        draw(tmp_path / f"{name}.png")

    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == len(DRAWINGS)


def test_the_same_data_make_the_same_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"

    DRAWINGS["reliability"](one)
    DRAWINGS["reliability"](other)

    assert one.read_bytes() == other.read_bytes()
