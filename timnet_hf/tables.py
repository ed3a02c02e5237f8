# SPDX-License-Identifier: Apache-2.0
"""Tables of measured and published results, for the README and the model cards.

Measured figures come from ``results/<corpus>/<protocol>/<recipe>/report.json`` and from nowhere
else; published ones from `published`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .baseline import BASELINES, verdict
from .corpus_table import CORPORA
from .published import CORRECTED, PUBLISHED, Published

__all__ = [
    "ADAPTED",
    "CROSS_CORPUS",
    "PROTOCOL_TITLES",
    "ResultsError",
    "fill_benchmark",
    "fill_channels",
    "fill_markers",
    "is_adapted",
    "load_reports",
    "protocol_title",
    "render_benchmark",
    "render_channels",
    "render_reports",
    "render_results_table",
    "report_title",
]

#: Protocols in the order of tables: first the one whose test speakers are unknown to the model.
PROTOCOL_TITLES = {
    "loso": "leave one speaker out",
    "emobox": "EmoBox folds",
    "loto": "leave one text out",
    "group": "leave one group out",
    "kfold": "random 10-fold",
}
#: What a reader must know of a protocol before comparing its figures.
PROTOCOL_NOTES = {
    "loso": "no test speaker is in training: the figure to expect on people the model never heard",
    "loto": "no test sentence is in training; speakers are",
    "kfold": "recordings are dealt out at random, so test speakers and sentences are in training",
}
#: What each ablation's network lacks, see timnet_hf.configuration_timnet.ABLATIONS.
ABLATION_NOTES = {
    "no-backward": "no stream that reads from the end",
    "no-multi-scale": "the last and slowest time scale alone",
    "no-dynamic-fusion": "the time scales' mean, in place of a learned weighting",
    "plain-tcn": "one direction and its last time scale alone, a plain convolutional network",
}
#: Protocols of this prefix name the corpus that a model trained on all of this one was judged on.
CROSS_CORPUS = "to-"
#: End of the recipe's name where each test voice was enrolled, see timnet_hf.speaker_timnet.
ADAPTED = "-adapted"
#: The speakers whose recordings the default recipe was chosen on, see results/research.md.
CHOSEN_ON = {"ravdess": [f"{actor:02d}" for actor in range(1, 13)]}
_FROZEN_AGAIN = (
    "`default` was frozen more than once, and its figures on these folds were seen each time. They "
    "said twice where to search next: known voices, and voices of another corpus."
)
#: What of the default recipe was not decided blind to a corpus' reported folds.
SEEN_BEFORE = {
    "emodb": f"{_FROZEN_AGAIN} One choice was made on them: a start from weights of RAVDESS, "
    "better on RAVDESS, was taken back when it did no good here (results/research.md). The "
    "recipe's values were judged elsewhere.",
    "ravdess": f"{_FROZEN_AGAIN} Its values were judged on speakers 01 to 12 alone.",
}
#: Results of a recipe that has been changed since, kept under its name and the commit's.
_EARLIER = re.compile(r"(\w+)-([0-9a-f]{7,40})(?:-(?P<ablation>[a-z-]+))?")
NOTHING_MEASURED = "Nothing has been measured yet."

_MARKERS = re.compile(
    r"(<!-- results:begin(?: (?P<corpus>\w+))? -->\n).*?(<!-- results:end -->)", re.DOTALL
)
_BENCHMARK_MARKERS = re.compile(
    r"(<!-- benchmark:begin -->\n).*?(<!-- benchmark:end -->)", re.DOTALL
)
_CHANNEL_MARKERS = re.compile(r"(<!-- channels:begin -->\n).*?(<!-- channels:end -->)", re.DOTALL)


def protocol_title(protocol: str) -> str:
    """What tables call a protocol."""
    if protocol.startswith(CROSS_CORPUS):
        name = protocol.removeprefix(CROSS_CORPUS)
        return f"judged on {CORPORA[name].title if name in CORPORA else name}"
    return PROTOCOL_TITLES.get(protocol, protocol)


def report_title(report: dict[str, Any]) -> str:
    """What tables call the protocol of a report, with what only the report says of it."""
    protocol = report["protocol"]
    if protocol == "kfold" and report.get("n_folds", 10) != 10:
        return f"random {report['n_folds']}-fold"
    if protocol == "group" and "group_by" in report:
        return f"{report['n_folds']} folds by {report['group_by']}"
    return protocol_title(protocol)


class ResultsError(ValueError):
    """A report cannot be read; the message names the file."""


def load_reports(
    results_dir: str | os.PathLike[str], corpus: str | None = None, recipe: str | None = None
) -> list[dict[str, Any]]:
    """Read the reports of cross-validations, in the order of tables.

    Args:
        results_dir: The results folder; it need not exist.
        corpus: Only this corpus.
        recipe: Only this recipe, with its variant.

    Raises:
        ResultsError: A report is not readable, or lies in a folder of another name.
    """
    reports = []
    for path in sorted(Path(results_dir).glob(f"{corpus or '*'}/*/{recipe or '*'}/report.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            place = (report["corpus"], report["protocol"], report["recipe"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ResultsError(f"{path}: not a report ({error!r}). Make it again.") from error
        if place != path.parts[-4:-1]:
            raise ResultsError(
                f"{path}: says it is of {'/'.join(map(str, place))}. Put it back where it belongs."
            )
        reports.append(report)
    return sorted(reports, key=_table_order)


def _table_order(report: dict[str, Any]) -> tuple[Any, ...]:
    order = list(PROTOCOL_TITLES)
    protocol, recipe = report["protocol"], report["recipe"]
    place = order.index(protocol) if protocol in order else len(order)
    return report["corpus"], place, protocol, bool(report.get("leaks_test_fold")), recipe


def render_results_table(results_dir: str | os.PathLike[str], corpus: str) -> str:
    """Table of one corpus: what was measured here beside what is published, as Markdown.

    Args:
        results_dir: The results folder; without a report of the corpus, the text says so.
        corpus: Short name of the corpus.
    """
    return render_reports(corpus, load_reports(results_dir, corpus))


def render_reports(corpus: str, reports: Iterable[dict[str, Any]]) -> str:
    """The same from reports that are already read."""
    reports = sorted(reports, key=_table_order)
    protocols = list(dict.fromkeys(report["protocol"] for report in reports))
    published = [row for row in PUBLISHED if row.corpus == corpus]
    more = [name for name in PROTOCOL_TITLES if any(row.protocol == name for row in published)]
    protocols += [name for name in more if name not in protocols]
    order = list(PROTOCOL_TITLES)
    protocols.sort(key=lambda name: order.index(name) if name in order else len(order))

    lines = [] if reports else [NOTHING_MEASURED, ""]
    if not protocols:
        return NOTHING_MEASURED
    lines += [
        "| test recordings | model | UAR % | WAR % | macro F1 % | from |",
        "|---|---|---|---|---|---|",
    ]
    for protocol in protocols:
        title = protocol_title(protocol)
        measured = [report for report in reports if report["protocol"] == protocol]
        for report in measured:
            # Of several corpora: those that a joined model learned from, one of them left out.
            learned = report["corpus"]
            whose = report_title(report)
            if learned != corpus and learned in CORPORA:
                whose = f"learned from {CORPORA[learned].title}, {whose}"
            # Ablations have the same folds, so the same baseline: once is enough. Made on another
            # machine, it may differ by a recording.
            known = {tuple(line.split(" | ")[:2]) for line in lines}
            rows = _measured(whose, report)
            lines += [row for row in rows if tuple(row.split(" | ")[:2]) not in known]
        lines += [_published(title, row) for row in published if row.protocol == protocol]
    notes = [
        f"*{PROTOCOL_TITLES[name]}*: {PROTOCOL_NOTES[name]}."
        for name in protocols
        if name in PROTOCOL_NOTES
    ]
    if any(map(is_adapted, reports)):
        notes.append(
            f"*{ADAPTED[1:]}*: each test voice is known from all its recordings, those that are "
            "judged among them, without their labels."
        )
    notes += [
        f"*{name}*: the network of `{name.removesuffix(f'-{ablation}')}` with {lacks}."
        for ablation, lacks in ABLATION_NOTES.items()
        for name in sorted({str(report["recipe"]) for report in reports})
        if name.endswith(f"-{ablation}")
    ]
    earlier = {str(report["recipe"]).removesuffix(ADAPTED) for report in reports}
    notes += [
        f"*{name}*: that recipe as it was in commit {match[2]}, before it was changed."
        for name in sorted(earlier)
        if (match := _EARLIER.fullmatch(name)) and match["ablation"] is None
    ]
    if corpus in CORPORA and CORPORA[corpus].note:
        notes.append(f"{CORPORA[corpus].title}: {CORPORA[corpus].note}")
    ours = [report for report in reports if report["recipe"] in ("default", f"default{ADAPTED}")]
    notes += _about_intervals(reports, ours)
    notes += _on_chosen_speakers(ours)
    if corpus in SEEN_BEFORE and any(report["corpus"] == corpus for report in ours):
        notes.append(SEEN_BEFORE[corpus])
    for report in reports:
        if report["recipe"] == "paper":
            notes += _beside_the_authors(report)
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip()


def _about_intervals(
    reports: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]
) -> list[str]:
    """What the brackets are, and what they would be where whole voices are drawn anew."""
    if not reports:
        return []
    wider = [
        f"{report['uar']['ci95_speakers'][0]:.1f} to {report['uar']['ci95_speakers'][1]:.1f} "
        f"(*{report_title(report)}{', adapted' if is_adapted(report) else ''}*)"
        for report in ours
        if "ci95_speakers" in report["uar"]
    ]
    plain = "In brackets: 95 % interval of recordings drawn anew (bootstrap)."
    whole = f" With whole speakers drawn anew, where they are new to `default`: {', '.join(wider)}."
    return [plain + (whole if wider else "")]


def _on_chosen_speakers(reports: list[dict[str, Any]]) -> list[str]:
    """How the speakers that the recipe was chosen on compare with all others, where they differ."""
    found: dict[str, list[str]] = {}
    for report in reports:
        judged = report["protocol"].removeprefix(CROSS_CORPUS)
        judged = judged if judged in CORPORA else report["corpus"]
        chosen = CHOSEN_ON.get(judged, [])
        recalls = {
            name.removeprefix(f"{judged}:"): recall
            for name, recall in report.get("per_speaker", {}).items()
        }
        known = [recall for name, recall in recalls.items() if name in chosen]
        new = [recall for name, recall in recalls.items() if name not in chosen]
        if known and new:
            where = report_title(report) + (", adapted" if is_adapted(report) else "")
            means = f"{fmean(known):.1f} and {fmean(new):.1f} % (*{where}*)"
            found.setdefault(judged, []).append(means)
    return [
        f"`default` was chosen on speakers {CHOSEN_ON[judged][0]} to {CHOSEN_ON[judged][-1]} of "
        f"{CORPORA[judged].title}, who are among those tested. Mean UAR of theirs and of the "
        f"others: {', '.join(means)}."
        for judged, means in found.items()
    ]


def _beside_the_authors(report: dict[str, Any]) -> list[str]:
    """How far what the paper's recipe reaches here lies from what its authors report."""
    place = report["corpus"], report["protocol"], CORRECTED
    notes = []
    for row in PUBLISHED:
        if (row.corpus, row.protocol, row.system) != place or row.war is None:
            continue
        parts = []
        for name, theirs in (("uar", row.uar), ("war", row.war)):
            low, high = report[name]["ci95"]
            lies = "inside" if low <= theirs <= high else "**outside**"
            parts.append(
                f"{name.upper()} {report[name]['pooled']:.2f} (mean of the folds' "
                f"{report[name]['fold_mean']:.2f}), theirs {theirs:.2f} lies {lies} "
                f"its 95 % interval ({low:.1f} to {high:.1f})"
            )
        notes.append(f"*paper* beside its authors' corrected figures: {'; '.join(parts)}.")
    return notes


def _measured(title: str, report: dict[str, Any]) -> list[str]:
    """A row of ours, and one of each plain classifier on the same folds."""
    low, high = report["uar"]["ci95"]
    leak = ", **epoch chosen on the test fold: not a result**"
    name = f"TIM-Net, `{report['recipe']}` recipe{leak if report.get('leaks_test_fold') else ''}"
    if found := verdict(report):
        name += f", **{found}**"
    seeds = len(report["seeds"])
    of = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
    uar = f"**{report['uar']['pooled']:.2f}** ({low:.1f} to {high:.1f})"
    rows = [
        f"| {title} | {name} | {uar} | {report['war']['pooled']:.2f} | "
        f"{report['macro_f1']:.2f} | measured, {of} |"
    ]
    known = ", standardised for each speaker" if is_adapted(report) else ""
    whose = "the paper's " if report["recipe"].partition("-")[0] == "paper" else ""
    rows += [
        f"| {title} | {BASELINES[one]} on {whose}MFCC statistics{known} | {figures['uar']:.2f} | "
        f"{figures['war']:.2f} | {_or_dash(figures.get('macro_f1'))} | measured, same folds |"
        for one, figures in report.get("baselines", {}).items()
    ]
    return rows


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def is_adapted(report: dict[str, Any]) -> bool:
    """Whether a report is of voices that are known from their recordings."""
    return str(report["recipe"]).endswith(ADAPTED)


def _published(title: str, row: Published) -> str:
    uar = f"≈ {row.uar:.1f}" if row.approximate else f"{row.uar:.2f}"
    return f"| {title} | {row.system} | {uar} | {_or_dash(row.war)} | – | {row.source} |"


def fill_markers(text: str, results_dir: str | os.PathLike[str]) -> str:
    """Put tables between the markers of a text, in place of what stands there.

    ``<!-- results:begin emodb -->`` … ``<!-- results:end -->`` holds the table of one corpus,
    ``<!-- results:begin -->`` those of all corpora that something was measured on.
    """

    def fill(match: re.Match[str]) -> str:
        corpus = match["corpus"]
        table = render_results_table(results_dir, corpus) if corpus else _all_tables(results_dir)
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return _MARKERS.sub(fill, text)


def _all_tables(results_dir: str | os.PathLike[str]) -> str:
    reports = load_reports(results_dir)
    parts = []
    for corpus in dict.fromkeys(report["corpus"] for report in reports):
        title = CORPORA[corpus].title if corpus in CORPORA else corpus
        mine = [report for report in reports if report["corpus"] == corpus]
        parts.append(f"### {title}\n\n{render_reports(corpus, mine)}")
    return "\n\n".join(parts) or NOTHING_MEASURED


def render_benchmark(rows: list[dict[str, Any]]) -> str:
    """Rows of measurements as a Markdown table."""
    if not rows:
        return "Nothing has been measured yet."
    lines = [
        "| what | ours | other | the other is | times better | aimed at | machine's limit |",
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
        heads += [f"{CORPORA[one['corpus']].title}: same first label %", "probabilities differ by"]
        for name, told in one["versions"].items():
            rows[name] += [f"{told['same_label_percent']:.2f}", f"{told['mean_difference']:.4f}"]
    about = [
        f"{one['n_files']} recordings of {CORPORA[one['corpus']].title}, "
        f"{'which it learned' if one['learned'] else 'none of which it ever heard'}"
        for one in measured
    ]
    return "\n".join(
        [
            f"`{measured[0]['model']}` asked about {', and about '.join(about)}:",
            "",
            *(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows.values())),
        ]
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
