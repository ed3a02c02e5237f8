# SPDX-License-Identifier: Apache-2.0
"""The report of a cross-validation as a text: Markdown, from the values of `report.json` alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .baseline import BASELINES

_METRICS = ("uar", "war")


def render_report(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts = (
        _heading(report),
        _warnings(report),
        _figures(report),
        _findings(report),
        _table(("label", "recall %"), _percentages(report["per_class_recall"])),
        _speakers(report),
        _enrolled(report),
        _making(report),
        [f"![{name}]({name}.png)" for name in _plots(report)],
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _heading(report: dict[str, Any]) -> list[str]:
    title = ", ".join(_text(report[name]) for name in ("corpus", "protocol", "recipe"))
    typed = "--data-dir" in report["command"]
    where = "; DATA is the folder with the recordings" if typed else ""
    return [
        f"# {title}",
        "",
        f"{report['n_files']} recordings, {_counted(report['n_folds'], 'fold')}, "
        f"{_counted(len(report['seeds']), 'seed')}, {report['parameters']:,} parameters. "
        f"Made by `{report['command']}`{where}.",
    ]


def _warnings(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["leaks_test_fold"]:
        lines.append("**Leaks: each fold's epoch was chosen on that fold. Not a result.**")
    if "last_epoch" in report:
        beside = " and ".join(
            f"{value:.2f} % {name.upper()} (the choice adds {report[name]['pooled'] - value:.2f})"
            for name, value in report["last_epoch"].items()
        )
        lines.append(f"The last epoch of the same trainings, which was not chosen: {beside}.")
    if report["transductive"]:
        lines.append(
            "Transductive: the statistics of all recordings of each test speaker are known, those "
            "that are tested among them, without labels. An upper bound."
        )
    return lines


def _figures(report: dict[str, Any]) -> list[str]:
    plain = report["baselines"]
    rows = []
    for name in _METRICS:
        value = report[name]
        low, high = value["ci95"]
        spread = f"{value['fold_std']:.2f}" if report["n_folds"] > 1 else "–"
        rows.append(
            (name.upper(), f"{value['pooled']:.2f}", f"{value['fold_mean']:.2f}", spread)
            + (f"{low:.2f}–{high:.2f}", *(f"{figures[name]:.2f}" for figures in plain.values()))
        )
    rows.append(
        ("macro F1", f"{report['macro_f1']:.2f}", "–", "–", "–")
        + tuple(f"{figures['macro_f1']:.2f}" for figures in plain.values())
    )
    heads = ("%", "pooled", "mean of folds", "SD over folds", "95 % interval")
    return _table((*heads, *(BASELINES[name] for name in plain)), rows)


def _findings(report: dict[str, Any]) -> list[str]:
    lines = []
    if "ci95_speakers" in report["uar"]:
        low, high = report["uar"]["ci95_speakers"]
        lines += [
            "The interval is a bootstrap over recordings. Over whole speakers, as they are unseen, "
            f"that of the UAR is {low:.2f}–{high:.2f}.",
            "",
        ]
    found = f"**{report['verdict']}**" if report["verdict"] else _lead(report)
    sentences = [f"TIM-Net {found}."]
    if "temperature" in report:
        sentences.append(
            f"Expected calibration error {report['ece']:.3f} at temperature "
            f"{report['temperature']:.2f} ({report['ece_uncalibrated']:.3f} at 1)."
        )
    else:
        sentences.append(f"Expected calibration error {report['ece']:.3f}.")
    sentences.append(
        f"Perfectly calibrated probabilities would show {report['ece_by_chance']:.3f} here, by "
        "sampling noise alone."
    )
    if "last_epochs_spread" in report:
        sentences.append(
            f"Over the last epochs the UAR varies by {report['last_epochs_spread']:.2f} points."
        )
    return [*lines, " ".join(sentences)]


def _lead(report: dict[str, Any]) -> str:
    """By how much a network beats every baseline, and where that may be chance."""
    parts = []
    for name in _METRICS:
        best = max(figures[name] for figures in report["baselines"].values())
        low = report[name]["ci95"][0]
        sure = "" if best < low else " (whose interval holds the baseline too)"
        parts.append(f"by {report[name]['pooled'] - best:.2f} points of {name.upper()}{sure}")
    return f"beats the better baseline {' and '.join(parts)}"


def _speakers(report: dict[str, Any]) -> list[str]:
    if not report["per_speaker"]:
        return []
    lines = _table(("speaker", "UAR %"), _percentages(report["per_speaker"]))
    if spread := report.get("per_speaker_spread"):
        lines += [
            "",
            f"From {spread['lowest']:.1f} to {spread['highest']:.1f} %, standard deviation over "
            f"speakers {spread['std']:.1f}.",
        ]
    for name, labels in report["labels_not_spoken"].items():
        missing = ", ".join(map(_text, labels))
        lines += [
            "",
            f"Speaker {_text(name)} has no recording of {missing}: the mean is over the other "
            "labels.",
        ]
    return lines


def _enrolled(report: dict[str, Any]) -> list[str]:
    if "enrolled" not in report:
        return []
    rows = [
        (count, str(value["n_files"]))
        + tuple(f"{value[name]:.2f}" for name in ("uar", "uar_without", "war", "war_without"))
        for count, value in report["enrolled"].items()
    ]
    heads = ("recordings of the speaker enrolled", "recordings tested")
    return [
        *_table((*heads, "UAR %", "without", "WAR %", "without"), rows),
        "",
        "Recordings that are enrolled are not tested; with all of them enrolled, all are.",
    ]


def _making(report: dict[str, Any]) -> list[str]:
    hours = report["wall_time_seconds"] / 3600
    lines = [f"Training and scoring took {hours:.2f} h, summed over folds and seeds."]
    if weights := report["fusion_weights"]:
        told = ", ".join(f"{weight:.3f} ({scale})" for scale, weight in weights.items())
        lines[0] += (
            " Fusion weights, finest time scale first, with the dilation of its last block: "
            f"{told}."
        )
    return [
        *lines,
        "",
        f"Trained: {'; '.join(map(_trained_by, report['made_by']))}. Other code and versions round "
        "differently, and training amplifies this: a model retrained with the same seed may differ "
        "from the one reported as much as one of another seed.",
    ]


def _trained_by(group: dict[str, Any]) -> str:
    known = {"code": "of unrecorded version", **group}
    models = _counted(known.pop("models"), "model")
    return f"{models} by {', '.join(f'{name} {value}' for name, value in known.items())}"


def _plots(report: dict[str, Any]) -> list[str]:
    names = ["confusion", "reliability"]
    names += ["fusion_weights"] * bool(report["fusion_weights"])
    return names + ["tsne"] * bool(report.get("has_map"))


def _percentages(values: dict[str, float]) -> list[tuple[str, str]]:
    return [(_text(name), f"{value:.1f}") for name, value in values.items()]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _text(value: str) -> str:
    """A name from the data as Markdown shows it: nothing in it is markup, and it ends no cell."""
    plain = " ".join(str(value).split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#&" else sign for sign in plain)


__all__ = ["render_report"]
