# SPDX-License-Identifier: Apache-2.0
"""Tables of measured and published results, for the README and the model cards.

Measured figures come from ``results/<corpus>/<protocol>/<recipe>/report.json`` and from nowhere
else; published ones from `published`.
"""

from __future__ import annotations

import glob
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
    "BEST_ON_TEST",
    "CROSS_CORPUS",
    "PROTOCOL_TITLES",
    "ResultsError",
    "fill_markers",
    "full_title",
    "is_adapted",
    "load_reports",
    "protocol_title",
    "recipe_title",
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
    "loso": "no test speaker is in training: the figure to expect on unseen speakers",
    "emobox": "the public folds of the EmoBox benchmark, split by speaker unless said otherwise",
    "loto": "no test sentence is in training; speakers are",
    "kfold": "recordings are dealt out at random, so test speakers and sentences are in training",
}
#: What each ablation's network lacks, see timnet_hf.configuration_timnet.ABLATIONS.
ABLATION_NOTES = {
    "no-backward": "no stream that reads from the end",
    "no-multi-scale": "the last and slowest time scale alone",
    "no-dynamic-fusion": "the mean of the time scales, in place of a learned weighting",
    "plain-tcn": "one direction and its last time scale alone: a temporal convolutional network",
}
#: Protocols of this prefix name the corpus that a model trained on all of this one was tested on.
CROSS_CORPUS = "to-"
#: End of the recipe's name where each test speaker was enrolled, see timnet_hf.speaker_timnet.
ADAPTED = "-adapted"
#: End of the recipe's name where each fold's epoch was chosen on that fold.
BEST_ON_TEST = "-best-on-test"
_ENROLLED = "test speakers enrolled"
#: The speakers whose recordings the default recipe was chosen on, see results/research.md.
CHOSEN_ON = {"ravdess": [f"{actor:02d}" for actor in range(1, 13)]}
_REVISED = (
    "`default` was fixed, tested on these folds and revised more than once. Twice the figures said "
    "what to work on next: speakers that are known, and other corpora."
)
#: What of the default recipe was not decided blind to a corpus' reported folds.
SEEN_BEFORE = {
    "emodb": f"{_REVISED} One change was taken back because of them: pretraining on RAVDESS, which "
    "helped on RAVDESS and not here. All values were chosen on RAVDESS (`results/research.md`).",
    "ravdess": f"{_REVISED} All values were chosen on speakers 01 to 12 (`results/research.md`).",
}
#: Results of a recipe that has been changed since, kept under its name and the commit's.
_EARLIER = re.compile(r"(\w+)-([0-9a-f]{7,40})(?:-(?P<ablation>[a-z-]+))?")
NOTHING_MEASURED = "Nothing has been measured yet."

_MARKERS = re.compile(
    r"(<!-- results:begin(?: (?P<corpus>\w+))? -->\n).*?(<!-- results:end -->)", re.DOTALL
)


def protocol_title(protocol: str) -> str:
    """What tables call a protocol."""
    if protocol.startswith(CROSS_CORPUS):
        return f"tested on {_corpus_title(protocol.removeprefix(CROSS_CORPUS))}"
    return PROTOCOL_TITLES.get(protocol, protocol)


def report_title(report: dict[str, Any]) -> str:
    """What tables call the protocol of a report, with what only the report says of it."""
    protocol = report["protocol"]
    if protocol == "kfold" and report.get("n_folds", 10) != 10:
        return f"random {report['n_folds']}-fold"
    if protocol == "group" and "group_by" in report:
        return f"{report['n_folds']} folds by {report['group_by']}"
    if protocol.startswith(CROSS_CORPUS):
        return f"trained on {_corpus_title(report['corpus'])}, {protocol_title(protocol)}"
    return protocol_title(protocol)


def _corpus_title(name: str) -> str:
    return CORPORA[name].title if name in CORPORA else name


def recipe_title(recipe: str) -> str:
    """What tables call the recipe of a report, its ablation and its known speakers in words."""
    name = recipe.removesuffix(ADAPTED).removesuffix(BEST_ON_TEST)
    ablation = _ablation_of(name)
    parts = [f"`{name.removesuffix(f'-{ablation}')}` recipe"]
    parts += [f"ablation `{ablation}`"] * (ablation is not None)
    parts += [_ENROLLED] * recipe.endswith(ADAPTED)
    return ", ".join(parts)


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
    parts = (glob.escape(corpus) if corpus else "*", "*", glob.escape(recipe) if recipe else "*")
    for path in sorted(Path(results_dir).glob("/".join((*parts, "report.json")))):
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
        "| protocol | model | UAR % | WAR % | macro F1 % | source |",
        "|---|---|---|---|---|---|",
    ]
    for protocol in protocols:
        title = protocol_title(protocol)
        measured = [report for report in reports if report["protocol"] == protocol]
        for report in measured:
            # Ablations have the same folds, so the same baseline: once is enough. Made on another
            # machine, it may differ by a recording.
            known = {tuple(line.split(" | ")[:2]) for line in lines}
            rows = _measured(report_title(report), report)
            lines += [row for row in rows if tuple(row.split(" | ")[:2]) not in known]
        lines += [_published(title, row) for row in published if row.protocol == protocol]
    notes = [
        f"*{PROTOCOL_TITLES[name]}*: {PROTOCOL_NOTES[name]}."
        for name in protocols
        if name in PROTOCOL_NOTES
    ]
    notes += _about_shared_labels(reports)
    if any(map(is_adapted, reports)):
        notes.append(
            f"*{_ENROLLED}*: the statistics of all recordings of each test speaker are known, "
            "those that are tested among them, without labels (transductive): an upper bound."
        )
    notes += _about_ablations(reports)
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


def _about_shared_labels(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Over how many labels a model is tested on another corpus."""
    told = {
        report_title(report): len(report["labels"])
        for report in reports
        if report["protocol"].startswith(CROSS_CORPUS) and "labels" in report
    }
    return [
        f"*{title}*: over the {count} labels that both have; chance level {100 / count:.1f} %."
        for title, count in told.items()
    ]


def _about_ablations(reports: Sequence[dict[str, Any]]) -> list[str]:
    """What each ablation is, and how all of them do beside the whole network."""
    notes = []
    for ablation, lacks in ABLATION_NOTES.items():
        if any(_ablation_of(report["recipe"]) == ablation for report in reports):
            notes.append(f"*ablation `{ablation}`*: the network with {lacks}.")
    for whole in reports:
        ablated = [
            report
            for report in reports
            if (found := _ablation_of(report["recipe"]))
            and report["protocol"] == whole["protocol"]
            and report["recipe"].replace(f"-{found}", "") == whole["recipe"]
        ]
        if not ablated:
            continue
        recalls = [report["uar"]["pooled"] for report in ablated]
        sizes = [report["parameters"] for report in ablated]
        low, high = whole["uar"]["ci95"]
        inside = all(low <= recall <= high for recall in recalls)
        notes.append(
            f"Ablations of {recipe_title(whole['recipe'])}: UAR {min(recalls):.2f} to "
            f"{max(recalls):.2f} with {min(sizes):,} to {max(sizes):,} parameters, "
            f"{'all inside' if inside else '**not all inside**'} the 95 % interval of the whole "
            f"network, {whole['uar']['pooled']:.2f} with {whole['parameters']:,}."
        )
    return notes


def _ablation_of(recipe: str) -> str | None:
    name = recipe.removesuffix(ADAPTED)
    return next((one for one in ABLATION_NOTES if name.endswith(f"-{one}")), None)


def _about_intervals(
    reports: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]
) -> list[str]:
    """What the brackets are, and what they would be where whole speakers are resampled."""
    if not reports:
        return []
    wider = [
        f"{report['uar']['ci95_speakers'][0]:.1f} to {report['uar']['ci95_speakers'][1]:.1f} "
        f"(*{full_title(report)}*)"
        for report in ours
        if "ci95_speakers" in report["uar"]
    ]
    plain = "In brackets: 95 % bootstrap interval over recordings."
    whole = f" Over whole speakers, where `default` is tested on unseen ones: {', '.join(wider)}."
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
            means = f"{fmean(known):.1f} and {fmean(new):.1f} % (*{full_title(report)}*)"
            found.setdefault(judged, []).append(means)
    return [
        f"`default` was chosen on speakers {CHOSEN_ON[judged][0]} to {CHOSEN_ON[judged][-1]} of "
        f"{CORPORA[judged].title}, who are among those tested. Mean UAR of these speakers and of "
        f"the others: {', '.join(means)}."
        for judged, means in found.items()
    ]


def full_title(report: dict[str, Any]) -> str:
    """The protocol of a report, and whether its test speakers were enrolled."""
    return report_title(report) + (f", {_ENROLLED}" if is_adapted(report) else "")


def _beside_the_authors(report: dict[str, Any]) -> list[str]:
    """How far what the paper's recipe reaches here lies from what its authors report."""
    if report.get("n_folds", 10) != 10:
        return []
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
                f"{name.upper()} {report[name]['pooled']:.2f} pooled, "
                f"{report[name]['fold_mean']:.2f} as mean of folds; theirs, {theirs:.2f}, lies "
                f"{lies} the 95 % interval ({low:.1f} to {high:.1f})"
            )
        notes.append(f"`paper` recipe and the authors' corrected figures: {'. '.join(parts)}.")
    return notes


def _measured(title: str, report: dict[str, Any]) -> list[str]:
    """A row of ours, and one of each plain classifier on the same folds."""
    low, high = report["uar"]["ci95"]
    leak = ", **epoch chosen on the test fold: not a result**"
    name = f"TIM-Net, {recipe_title(str(report['recipe']))}"
    name += leak if report.get("leaks_test_fold") else ""
    if found := verdict(report):
        name += f", **{found}**"
    seeds = len(report["seeds"])
    of = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
    uar = f"**{report['uar']['pooled']:.2f}** ({low:.1f} to {high:.1f})"
    rows = [
        f"| {title} | {name} | {uar} | {report['war']['pooled']:.2f} | "
        f"{report['macro_f1']:.2f} | measured, {of} |"
    ]
    known = ", standardised per speaker" if is_adapted(report) else ""
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
    """Whether a report is of speakers that are known from their recordings."""
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
    parts = [overview] if (overview := _overview(reports)) else []
    for corpus in dict.fromkeys(report["corpus"] for report in reports):
        mine = [report for report in reports if report["corpus"] == corpus]
        parts.append(f"### {_corpus_title(corpus)}\n\n{render_reports(corpus, mine)}")
    return "\n\n".join(parts) or NOTHING_MEASURED


def _overview(reports: Sequence[dict[str, Any]]) -> str:
    """The default recipe's UAR on all corpora and protocols, beside that of others."""
    heads = ["UAR %", "TIM-Net `default`", _ENROLLED, *BASELINES.values(), CORRECTED]
    enrolled = {
        (report["corpus"], report["protocol"]): f"{report['uar']['pooled']:.1f}"
        for report in reports
        if report["recipe"] == f"default{ADAPTED}"
    }
    theirs = {
        (row.corpus, row.protocol): f"{row.uar:.1f}" for row in PUBLISHED if row.system == CORRECTED
    }
    rows = []
    for report in reports:
        if report["recipe"] != "default":
            continue
        place = report["corpus"], report["protocol"]
        like_theirs = report.get("n_folds", 10) == 10
        title = report_title(report)
        if not report["protocol"].startswith(CROSS_CORPUS):
            title = f"{_corpus_title(report['corpus'])}, {title}"
        rows.append([title, f"**{report['uar']['pooled']:.1f}**", enrolled.get(place, "–")])
        plain = report.get("baselines", {})
        rows[-1] += [f"{plain[one]['uar']:.1f}" if one in plain else "–" for one in BASELINES]
        rows[-1] += [theirs.get(place, "–") if like_theirs else "–"]
    if not rows:
        return ""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))
