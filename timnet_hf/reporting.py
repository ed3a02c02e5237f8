# SPDX-License-Identifier: Apache-2.0
"""The report of a cross-validation: figures and plots from the folds' JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .baseline import BASELINES, verdict
from .crossvalidation_plan import Plan
from .evaluation import softmax, uar, war
from .fold_training import ENROLMENT_COUNTS, enrolment_order
from .output_folder import in_one_step, write_json
from .report_text import render_report

BOOTSTRAP_ROUNDS = 1000
CALIBRATION_BINS = 15
#: What of a fold's record the report with enrolled speakers does not take over as it is.
_UNADAPTED = ("enrolled", "baselines", "adapted_baselines", "tsne", "tsne_labels", "last_epochs")


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equally wide bins of confidence, 0 to 1.

    Args:
        probabilities: (recordings, num_labels), each row summing to 1.
        references: (recordings,) class indices.
    """
    correct = probabilities.argmax(1) == references
    return _calibration_error(probabilities.max(1), correct)


def chance_calibration_error(probabilities: np.ndarray) -> float:
    """What the calibration error would be on average if every probability were exactly right.

    It is 0 only for certainty: among a finite number of recordings a bin's accuracy differs from
    its confidence by chance (Roelofs et al., "Mitigating Bias in Calibration Error Estimation",
    AISTATS 2022).
    """
    confidence = probabilities.max(1)
    drawn = np.random.default_rng(0).random((BOOTSTRAP_ROUNDS, len(confidence))) < confidence
    return float(np.mean([_calibration_error(confidence, correct) for correct in drawn]))


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def bootstrap_interval(
    metric: Any,
    references: np.ndarray,
    predictions: np.ndarray,
    speakers: Sequence[str] | None = None,
) -> list[float]:
    """95 % interval of a metric when recordings are drawn anew with replacement.

    With ``speakers``, one of each recording, whole speakers are drawn: recordings of one voice err
    together, so what other voices would have shown lies further apart.

    Args:
        metric: (references, predictions) → the metric's value.
        references: (recordings,) class indices.
        predictions: (recordings,) class indices.
        speakers: (recordings,) names.

    Returns:
        Lower and upper end, in the metric's unit.
    """
    generator = np.random.default_rng(0)
    names = np.arange(len(references)) if speakers is None else np.array(speakers)
    parts = [np.flatnonzero(names == name) for name in np.unique(names)]
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        drawn = np.concatenate([parts[n] for n in generator.integers(0, len(parts), len(parts))])
        values.append(metric(references[drawn], predictions[drawn]))
    return [float(value) for value in np.percentile(values, (2.5, 97.5))]


def build_report(plan: Plan, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything a table shows of a run, as plain values; percentages where the field uses them."""
    by_seed: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for fold in folds:
        by_seed[fold["seed"]].append(fold)
    pooled = {seed: _pool(records) for seed, records in by_seed.items()}
    names = folds[0]["labels"]
    per_speaker: dict[str, list[float]] = defaultdict(list)
    unspoken: dict[str, list[str]] = {}
    for references, predictions, _, speakers in pooled.values():
        for speaker in sorted({name for name in speakers if name is not None}):
            chosen = np.array([name == speaker for name in speakers])
            per_speaker[speaker].append(uar(references[chosen], predictions[chosen]))
            if missing := sorted(set(references) - set(references[chosen])):
                unspoken[speaker] = [names[index] for index in missing]
    scales = _learned_scales(plan)
    means = {speaker: _mean(values) for speaker, values in per_speaker.items()}
    report: dict[str, Any] = {
        "corpus": plan.corpus,
        "protocol": plan.protocol,
        "recipe": plan.name,
        "selection": plan.selection,
        "leaks_test_fold": plan.selection == "best-on-test",
        "transductive": any(fold.get("transductive") for fold in folds),
        **({"group_by": plan.group_by} if plan.group_by else {}),
        "seeds": list(plan.seeds),
        "n_folds": len(next(iter(by_seed.values()))),
        "n_files": len(next(iter(pooled.values()))[0]),
        "parameters": folds[0]["parameters"],
        "labels": names,
        "uar": _figures(uar, by_seed, pooled),
        "war": _figures(war, by_seed, pooled),
        "macro_f1": _mean([_macro_f1(values[0], values[1]) for values in pooled.values()]),
        "ece": _mean([expected_calibration_error(v[2], v[0]) for v in pooled.values()], 4),
        "ece_by_chance": _mean([chance_calibration_error(v[2]) for v in pooled.values()], 4),
        "per_class_recall": {
            name: _mean([_recall(v[0], v[1], index) for v in pooled.values()])
            for index, name in enumerate(names)
        },
        "per_speaker": means,
        **({"per_speaker_spread": _spread_over(means)} if len(means) > 1 else {}),
        "labels_not_spoken": unspoken,
        "confusion": _confusion(pooled, len(names)).tolist(),
        "baselines": _baselines(next(iter(by_seed.values()))),
        "fusion_weights": {
            name: _mean([fold["fusion_weights"][index] for fold in folds], 4)
            for index, name in enumerate(scales)
        },
        "wall_time_seconds": round(sum(fold["seconds"] for fold in folds)),
        "command": plan.command,
        "made_by": _made_by(folds),
        "has_map": any("tsne" in fold for fold in folds),
    }
    if all(fold.get("last_epochs") for fold in folds):
        report["last_epochs_spread"] = _mean([_spread(records) for records in by_seed.values()])
    if all("last_logits" in fold for fold in folds):
        honest = [
            _pool([{**record, "logits": record["last_logits"]} for record in records])
            for records in by_seed.values()
        ]
        report["last_epoch"] = {
            metric.__name__: _mean([metric(values[0], values[1]) for values in honest])
            for metric in (uar, war)
        }
    if all("temperature" in fold for fold in folds):
        raw = [
            _pool([{**record, "temperature": 1.0} for record in records])
            for records in by_seed.values()
        ]
        report["temperature"] = _mean([fold["temperature"] for fold in folds], 3)
        report["ece_uncalibrated"] = _mean(
            [expected_calibration_error(values[2], values[0]) for values in raw], 4
        )
    if all("enrolled" in fold for fold in folds):
        gains = {count: _gain(list(by_seed.values()), count) for count in ENROLMENT_COUNTS}
        report["enrolled"] = {count: gain for count, gain in gains.items() if gain}
    report["verdict"] = verdict(report)
    return report


def _gain(runs: list[list[dict[str, Any]]], count: str) -> dict[str, float]:
    """What enrolling so many recordings of a voice brings to its *other* recordings.

    With all of them enrolled there are no others: each is judged, itself among those that the voice
    is known from. Empty where no recording is left to judge.
    """
    without: list[list[float]] = []
    known: list[list[float]] = []
    files = 0
    for records in runs:
        judged = np.concatenate([_not_enrolled(record, count) for record in records])
        if not judged.any():
            return {}
        for found, pool in ((without, records), (known, _adapted(records, count))):
            references, predictions, *_ = _pool(pool)
            pair = references[judged], predictions[judged]
            found.append([metric(*pair) for metric in (uar, war)])
        files += int(judged.sum())
    (uar_without, war_without), (uar_known, war_known) = np.mean(without, 0), np.mean(known, 0)
    return {
        "n_files": round(files / len(runs)),
        "uar": _mean(uar_known),
        "war": _mean(war_known),
        "uar_without": _mean(uar_without),
        "war_without": _mean(war_without),
    }


def _not_enrolled(record: dict[str, Any], count: str) -> np.ndarray:
    """Which of a fold's recordings are judged when so many of each voice are enrolled."""
    rows, speakers = np.array(record["rows"]), np.array(record["speakers"])
    judged = np.ones(len(rows), dtype=bool)
    if count != "all":
        for speaker in np.unique(speakers):
            drawn = enrolment_order(rows[speakers == speaker], record["seed"])[: int(count)]
            judged &= ~np.isin(rows, drawn)
    return judged


def _baselines(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Pooled figures of each plain classifier on the same folds."""
    references = np.concatenate([record["references"] for record in records])
    figures = {}
    for name in BASELINES:
        predictions = np.concatenate([record["baselines"][name] for record in records])
        pair = references, predictions
        figures[name] = {
            "uar": _mean(uar(*pair)),
            "war": _mean(war(*pair)),
            "macro_f1": _mean(_macro_f1(*pair)),
        }
    return figures


def _learned_scales(plan: Plan) -> list[str]:
    """What each learned weight of a scale belongs to, the quickest first; empty if none is learned.

    Nor is any of the model that is reported where its epoch was chosen: its weights are not kept.
    """
    network = plan.network()
    if plan.selection == "best-on-test" or not network.dynamic_fusion or network.num_scales == 1:
        return []
    dilations = [f"{2**block}" for block in range(network.num_hidden_layers)]
    blocks = dilations if network.multi_scale else dilations[-1:]
    return ["input"] * network.pool_input + blocks


def _spread_over(speakers: dict[str, float]) -> dict[str, float]:
    values = list(speakers.values())
    return {"lowest": min(values), "highest": max(values), "std": _mean(np.std(values))}


def _made_by(folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which state of the code, and what else decides how sums are rounded, made how many models."""
    found: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for fold in folds:
        noted = {**fold.get("versions", {}), "threads": fold.get("threads")}
        names = ("code", "torch", "numba", "threads")
        found[tuple((name, noted[name]) for name in names if noted.get(name))] += 1
    return [{"models": count, **dict(known)} for known, count in sorted(found.items())]


def write_report(folder: Path, plan: Plan, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Write report.json, report.md and the plots beside the folds; return the report.

    Where the folds were scored with enrolled speakers too, a second report goes into the folder
    beside, whose name ends in ``-adapted``.
    """
    if all("enrolled" in fold for fold in folds):
        adapted = replace(plan, variant="-".join(filter(None, (plan.variant, "adapted"))))
        _write(folder.with_name(adapted.name), adapted, _adapted(folds, "all"))
    return _write(folder, plan, folds)


def _write(folder: Path, plan: Plan, folds: list[dict[str, Any]]) -> dict[str, Any]:
    report = build_report(plan, folds)
    folder.mkdir(parents=True, exist_ok=True)
    _plot_all(folder, report, folds)
    with in_one_step(folder / "report.md") as temporary:
        temporary.write_text(render_report(report), encoding="utf-8")
    write_json(folder / "report.json", report)
    return report


def _adapted(folds: list[dict[str, Any]], count: str) -> list[dict[str, Any]]:
    """The folds as they were scored with so many recordings of each voice enrolled."""
    adapted = []
    for fold in folds:
        logits = fold["enrolled"][count]
        references, predictions = np.array(fold["references"]), np.argmax(logits, 1)
        figures = {"uar": uar(references, predictions), "war": war(references, predictions)}
        kept = {key: value for key, value in fold.items() if key not in _UNADAPTED}
        known = {"baselines": fold["adapted_baselines"], "transductive": count == "all"}
        adapted.append({**kept, **known, "logits": logits, **figures})
    return adapted


def _pool(records: list[dict[str, Any]]) -> tuple[Any, ...]:
    """References, predictions, probabilities and speakers of one seed."""
    references = np.concatenate([record["references"] for record in records])
    logits = np.concatenate([record["logits"] for record in records])
    speakers = [name for record in records for name in record["speakers"]]
    # A fold without a temperature is left as it is.
    scaled = np.concatenate(
        [np.array(record["logits"]) / record.get("temperature", 1.0) for record in records]
    )
    return references, logits.argmax(1), softmax(scaled), speakers


def _spread(records: list[dict[str, Any]]) -> float:
    """Between the best and the worst of the last epochs' UAR, all folds pooled."""
    references = np.concatenate([record["references"] for record in records])
    epochs = zip(*(record["last_epochs"] for record in records), strict=True)
    values = [uar(references, np.concatenate(predictions)) for predictions in epochs]
    return max(values) - min(values)


def _figures(metric: Any, by_seed: dict[int, Any], pooled: dict[int, Any]) -> dict[str, Any]:
    """Pooled, per-fold and bootstrap figures of one metric, averaged over the seeds."""
    name = metric.__name__
    per_seed = [metric(values[0], values[1]) for values in pooled.values()]
    folds = [[record[name] for record in records] for records in by_seed.values()]
    intervals = {"ci95": [bootstrap_interval(metric, *values[:2]) for values in pooled.values()]}
    if all(map(_judges_new_voices, by_seed.values())):
        intervals["ci95_speakers"] = [
            bootstrap_interval(metric, values[0], values[1], values[3])
            for values in pooled.values()
        ]
    return {
        "pooled": _mean(per_seed),
        "fold_mean": _mean([np.mean(values) for values in folds]),
        "fold_std": _mean([np.std(values) for values in folds]),
        **{
            name: [_mean([interval[side] for interval in found]) for side in (0, 1)]
            for name, found in intervals.items()
        },
        "per_seed": [round(value, 2) for value in per_seed],
    }


def _judges_new_voices(records: list[dict[str, Any]]) -> bool:
    """Whether all speakers are known by name, several, and each of them tested in one fold only."""
    found = [name for record in records for name in set(record["speakers"])]
    return None not in found and 1 < len(found) == len(set(found))


def _mean(values: Any, digits: int = 2) -> float:
    return round(float(np.mean(values)), digits)


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return 100 * float(
        f1_score(
            references, predictions, average="macro", labels=np.unique(references), zero_division=0
        )
    )


def _recall(references: np.ndarray, predictions: np.ndarray, label: int) -> float:
    chosen = references == label
    return 100 * float(np.mean(predictions[chosen] == label))


def _confusion(pooled: dict[int, Any], size: int) -> np.ndarray:
    """Recordings of label i taken for label j, summed over the seeds."""
    counts = np.zeros((size, size), dtype=int)
    for references, predictions, *_ in pooled.values():
        np.add.at(counts, (references, predictions), 1)
    return counts


def _plot_all(folder: Path, report: dict[str, Any], folds: list[dict[str, Any]]) -> None:
    from . import plots

    names = report["labels"]
    pooled = _pool(folds)
    plots.confusion(np.array(report["confusion"]), names, folder / "confusion.png")
    plots.reliability(pooled[2], pooled[0], CALIBRATION_BINS, folder / "reliability.png")
    learned = folder / "fusion_weights.png"
    learned.unlink(missing_ok=True)
    if scales := list(report["fusion_weights"]):
        plots.fusion_weights([fold["fusion_weights"] for fold in folds], scales, learned)
    for fold in folds:
        if "tsne" in fold:
            # The first records lacked the labels of what no fold tests on.
            labels = np.array(fold.get("tsne_labels", _labels_of_rows(folds)))
            tested = np.isin(np.arange(len(labels)), fold["rows"])
            plots.scatter(np.array(fold["tsne"]), labels, tested, names, folder / "tsne.png")
            break


def _labels_of_rows(folds: list[dict[str, Any]]) -> np.ndarray:
    """The label of every recording, in the dataset's order; -1 where no fold tests on it."""
    size = max(len(fold.get("tsne", ())) for fold in folds)
    labels = np.full(size, -1)
    for fold in folds:
        labels[fold["rows"]] = fold["references"]
    return labels


__all__ = [
    "bootstrap_interval",
    "build_report",
    "chance_calibration_error",
    "expected_calibration_error",
    "render_report",
    "write_report",
]
