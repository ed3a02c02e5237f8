# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, each written as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .output_folder import in_one_step


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure that belongs to no global state, so that nothing needs a display or closing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    with in_one_step(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def confusion(counts: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Row-wise shares: of each true label's recordings, how many were taken for what."""
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(6, 5.4)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 55 else "black"
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_title("recall, %")
    _save(figure, path)


def reliability(probabilities: np.ndarray, references: np.ndarray, bins: int, path: Path) -> None:
    """Accuracy against confidence; on the diagonal, the model means what it says."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == references
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    figure, axes = _figure(5, 4.6)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for index in np.unique(place):
        chosen = place == index
        axes.bar(
            (index + 0.5) / bins,
            correct[chosen].mean(),
            width=0.9 / bins,
            color="tab:blue",
            alpha=0.7,
        )
        axes.plot(confidence[chosen].mean(), correct[chosen].mean(), "o", color="tab:orange")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    _save(figure, path)


def fusion_weights(weights: Sequence[Sequence[float]], scales: Sequence[str], path: Path) -> None:
    """Learned weight of each scale, mean and spread over the models; `scales` names them."""
    values = np.array(weights)
    figure, axes = _figure(5, 3.4)
    axes.bar(
        range(values.shape[1]), values.mean(0), yerr=values.std(0), color="tab:blue", alpha=0.7
    )
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(range(len(scales)), scales)
    axes.set(xlabel="time scale: dilation of its last block", ylabel="fusion weight")
    _save(figure, path)


def scatter(
    points: np.ndarray, labels: np.ndarray, tested: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Map of the fused vectors: dots were trained on, crosses were not."""
    figure, axes = _figure(7, 5.4)
    for index, name in enumerate(names):
        learned = (labels == index) & ~tested
        for rows, marker, size in ((learned, ".", 18), ((labels == index) & tested, "x", 34)):
            shown = name if marker == "." or not learned.any() else None
            axes.scatter(*points[rows].T, s=size, marker=marker, color=f"C{index}", label=shown)
    axes.set(xticks=[], yticks=[], title="fused vectors (t-SNE); crosses: held-out fold")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


__all__ = ["confusion", "fusion_weights", "reliability", "scatter"]
