# SPDX-License-Identifier: Apache-2.0
"""Tables of speed and of robustness, for the README.

Their figures come from ``results/benchmark.json`` and ``results/channels*.json``, and from nowhere
else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .corpus_table import CORPORA
from .tables import NOTHING_MEASURED

__all__ = ["fill_benchmark", "fill_channels", "render_benchmark", "render_channels"]

_BENCHMARK_MARKERS = re.compile(
    r"(<!-- benchmark:begin -->\n).*?(<!-- benchmark:end -->)", re.DOTALL
)
_CHANNEL_MARKERS = re.compile(r"(<!-- channels:begin -->\n).*?(<!-- channels:end -->)", re.DOTALL)


def render_benchmark(rows: list[dict[str, Any]]) -> str:
    """Rows of measurements as a Markdown table."""
    if not rows:
        return NOTHING_MEASURED
    lines = [
        "| what | timnet_hf | other | the other is | times better | aimed at | machine's limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        aim = f"{row['aim']}{'' if row['reached'] else ', **missed**'}" if row.get("aim") else "–"
        spread = f"{_figure(row['ratio_min'])} to {_figure(row['ratio_max'])}"
        limit = "–" if row["limit"] is None else _with_unit(row["limit"], row["unit"])
        lines.append(
            f"| {row['name']} | {_with_unit(row['ours'], row['unit'])} | "
            f"{_with_unit(row['other'], row['unit'])} | {row['against']} | "
            f"**{_figure(row['ratio_median'])}** ({spread}) | {aim} | {limit} |"
        )
    commits = sorted({(row["date"], row["commit"]) for row in rows if "commit" in row})
    if commits:
        said = ", ".join(f"{commit} ({date})" for date, commit in commits)
        lines += ["", f"Measured at {said}; versions stand in `results/benchmark.json`."]
    return "\n".join(lines)


def fill_benchmark(text: str, results_dir: str | os.PathLike[str]) -> str:
    """Put the table of speed between ``<!-- benchmark:begin -->`` and ``<!-- benchmark:end -->``.

    It is made from ``benchmark.json`` in the results folder and from nothing else.
    """
    path = Path(results_dir) / "benchmark.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return _BENCHMARK_MARKERS.sub(
        lambda match: f"{match[1]}\n{render_benchmark(rows)}\n\n{match[2]}", text
    )


def render_channels(measured: Sequence[dict[str, Any]]) -> str:
    """What a recording's way does to its answer, as a Markdown table."""
    if not measured:
        return NOTHING_MEASURED
    heads = ["the recording as it was, and"]
    rows = {name: [name] for name in measured[0]["versions"]}
    for one in measured:
        heads += [
            f"{CORPORA[one['corpus']].title}: same top label %",
            "mean difference of probabilities",
        ]
        for name, told in one["versions"].items():
            rows[name] += [f"{told['same_label_percent']:.2f}", f"{told['mean_difference']:.4f}"]
    about = [
        f"{one['n_files']} recordings of {CORPORA[one['corpus']].title}, "
        f"{'which it was trained on' if one['learned'] else 'none of which it was trained on'}"
        for one in measured
    ]
    return "\n".join(
        [
            f"`{measured[0]['model']}` asked about {', and about '.join(about)}:",
            "",
            *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows.values())),
            "",
            *map(_against_the_aim, measured),
        ]
    ).rstrip()


def _against_the_aim(measured: dict[str, Any]) -> str:
    """Which ways fall short of what was aimed at; some are only reported."""
    aim = measured["must"]
    short = measured["falls_short"]
    return (
        f"- {CORPORA[measured['corpus']].title}: aimed at {aim['same_label_percent']:g} % and "
        f"{aim['mean_difference']:g}, 8 kHz left out; "
        f"{'**missed** by ' + ' and '.join(short) if short else 'reached by all'}."
    )


def fill_channels(text: str, results_dir: str | os.PathLike[str]) -> str:
    """Put that table between its markers, from ``channels*.json`` and from nothing else."""
    paths = sorted(Path(results_dir).glob("channels*.json"), key=lambda path: path.stem)
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return _CHANNEL_MARKERS.sub(
        lambda match: f"{match[1]}\n{render_channels(measured)}\n\n{match[2]}", text
    )


def _figure(value: float) -> str:
    """Three digits, and thousands told apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _with_unit(value: float, unit: str) -> str:
    return f"{_figure(value)} {unit}"
