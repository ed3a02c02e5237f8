# SPDX-License-Identifier: Apache-2.0
"""UAR and WAR, the two figures of speech emotion recognition, as `evaluate` modules on disk.

Each sub-folder holds one metric the way a metric Space on the Hub does: `evaluate` loads it from
its path with no network, and the same files, published, load by repository name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate import EvaluationModule

__all__ = ["METRICS", "load_metric", "metric_path", "space_files"]

METRICS = ("uar", "war")
"""Names of the metrics: unweighted and weighted average recall, both fractions from 0 to 1."""

_HERE = Path(__file__).parent


def metric_path(name: str) -> Path:
    """Return the folder of a metric, as `evaluate.load` takes it.

    Args:
        name: One of `METRICS`.

    Raises:
        ValueError: There is no metric of that name.

    Example:
        >>> metric_path("uar").name
        'uar'
    """
    if name not in METRICS:
        raise ValueError(f"{name!r} is not a metric; choose one of {', '.join(METRICS)}.")
    return _HERE / name


def load_metric(name: str, **kwargs: Any) -> EvaluationModule:
    """Load a metric from disk, without the network.

    Args:
        name: One of `METRICS`.
        **kwargs: Passed on to `evaluate.load`, such as `num_process`, `process_id` and
            `experiment_id` for a distributed run.

    Raises:
        ValueError: There is no metric of that name.

    Example:
        >>> load_metric("war").compute(predictions=[0, 1, 1], references=[0, 1, 0])
        {'war': 0.6666666666666666}
    """
    path = metric_path(name)

    import evaluate  # takes seconds, so only once a metric is wanted

    return evaluate.load(str(path), **kwargs)


def space_files(name: str) -> dict[str, Path]:
    """Return what a metric Space on the Hub consists of: file name there → file here.

    The app and its requirements are the same for every metric and are kept once.

    Args:
        name: One of `METRICS`.

    Raises:
        ValueError: There is no metric of that name.

    Example:
        >>> sorted(space_files("uar"))
        ['README.md', 'app.py', 'requirements.txt', 'uar.py']
    """
    folder = metric_path(name)
    return {
        "README.md": folder / "README.md",
        f"{name}.py": folder / f"{name}.py",
        "app.py": _HERE / "app.py",
        "requirements.txt": _HERE / "requirements.txt",
    }
