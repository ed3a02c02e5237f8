# SPDX-License-Identifier: Apache-2.0
"""Two sides measured in turn, and the row of figures that comes of it.

A machine is slower at one minute than at the next. So the two sides alternate within one process,
each pair of measurements gives a ratio, and the median of the ratios is the result. What runs in
this process, on one thread, is timed in seconds of the processor: on an idle machine they are those
of the clock on the wall, and on a busy one the waiting for others is left out.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a row should reach: a ratio, or so many of its unit, and that as it is said.
AIMS: dict[str, tuple[str, float, str]] = {
    "file → features, default preset": ("ratio_median", 3, "3 ×"),
    "file → label, one clip": ("ratio_median", 3, "3 ×"),
    "file → label, one clip, exported to ONNX": ("ratio_median", 3, "3 ×"),
    "file → label, one clip, beside wav2vec 2.0": ("ratio_median", 60, "60 ×"),
    "waveform → label, exported to ONNX": ("ratio_median", 1, "1 ×"),
    "folder of wav files → scores": ("ours", 1000, "1,000 × real time"),
    "training step, 64 × 188 frames": ("ratio_median", 2.5, "2.5 ×"),
    "training step, 64 × 188 frames, ours in bfloat16": ("ratio_median", 2.5, "2.5 ×"),
    "import timnet_hf": ("ours", 0.3, "at most 0.3 s"),
    "timnet --help": ("ours", 0.5, "at most 0.5 s"),
}

#: Carries out one side once, and returns what it cost.
Measure = Callable[[], float]


def milliseconds(
    action: Callable[[], Any], clock: Callable[[], float] = time.process_time
) -> Measure:
    """The processor's time for an action as a measure, in ms."""

    def measure() -> float:
        start = clock()
        action()
        return 1000 * (clock() - start)

    return measure


def alternate(
    ours: Measure, other: Measure, rounds: int, warm_up: int = 2
) -> tuple[list[float], list[float]]:
    """Measure both sides turn by turn; the first turns, with what happens only once, are dropped.

    Raises:
        ValueError: There is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least one is needed")
    pairs = [(ours(), other()) for _ in range(warm_up + rounds)][warm_up:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def make_row(
    name: str,
    against: str,
    ours: list[float],
    other: list[float],
    unit: str,
    limit: float | None = None,
    more_is_better: bool = False,
) -> dict[str, Any]:
    """Figures of one comparison.

    Args:
        name: What was measured.
        against: What the other side is.
        ours: A measurement a round.
        other: Those of the other side, in the same rounds.
        unit: Of the measurements.
        limit: What the machine could do at best, in the same unit.
        more_is_better: The measurements are rates, not costs.

    Returns:
        ``ratio_…`` above 1 where ours is better; ``ours`` and ``other`` are medians.
    """
    pairs = zip(ours, other, strict=True)
    ratios = [a / b if more_is_better else b / a for a, b in pairs]
    return {
        "name": name,
        "against": against,
        "ratio_median": _rounded(statistics.median(ratios)),
        "ratio_min": _rounded(min(ratios)),
        "ratio_max": _rounded(max(ratios)),
        "ours": _rounded(statistics.median(ours)),
        "other": _rounded(statistics.median(other)),
        "limit": None if limit is None else _rounded(limit),
        "unit": unit,
        "rounds": len(ours),
    }


def _rounded(value: float) -> float:
    """Four digits are more than a shared machine can repeat."""
    return float(f"{value:.4g}")


def with_aim(row: dict[str, Any]) -> dict[str, Any]:
    """Add what a row should reach, and whether it does; None where nothing was set."""
    if row["name"] not in AIMS:
        return {**row, "aim": None, "reached": None}
    figure, wanted, said = AIMS[row["name"]]
    reached = row[figure] <= wanted if said.startswith("at most") else row[figure] >= wanted
    return {**row, "aim": said, "reached": reached}


def merge_rows(path: Path, rows: list[dict[str, Any]], order: list[str]) -> list[dict[str, Any]]:
    """Put new rows in place of those of the same name, and write all in the given order.

    Rows whose name is no longer in ``order`` are dropped: nothing measures them any more.
    """
    known = {}
    if path.exists():
        known = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    known |= {row["name"]: row for row in rows}
    merged = [known[name] for name in order if name in known]
    text = json.dumps(merged, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    return merged


__all__ = ["AIMS", "Measure", "alternate", "make_row", "merge_rows", "milliseconds", "with_aim"]
