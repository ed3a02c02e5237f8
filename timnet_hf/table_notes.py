# SPDX-License-Identifier: Apache-2.0
"""What a reader must know beside the figures: the notes under a table of results.

How protocols and variants of a recipe are called in tables stands here too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Any

from .corpus_table import CORPORA
from .starting_weights import LEARNED

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
#: Results of a recipe that has been changed since, kept under its name and the commit's.
_EARLIER = re.compile(r"(\w+)-([0-9a-f]{7,40})(?:-(?P<ablation>[a-z-]+))?")


def protocol_title(protocol: str) -> str:
    """What tables call a protocol."""
    if protocol.startswith(CROSS_CORPUS):
        name = protocol.removeprefix(CROSS_CORPUS)
        return f"judged on {CORPORA[name].title if name in CORPORA else name}"
    return PROTOCOL_TITLES.get(protocol, protocol)


def render_notes(
    corpus: str, protocols: Sequence[str], reports: Sequence[dict[str, Any]]
) -> list[str]:
    """The notes under one corpus' table, one sentence or two each.

    Args:
        corpus: Short name of the corpus.
        protocols: Those of the table's rows, measured or published, in their order.
        reports: What was measured.
    """
    notes = [
        f"*{PROTOCOL_TITLES[name]}*: {PROTOCOL_NOTES[name]}."
        for name in protocols
        if name in PROTOCOL_NOTES
    ]
    if any(str(report["recipe"]).endswith(ADAPTED) for report in reports):
        notes.append(
            f"*{ADAPTED[1:]}*: each test voice is known from its recordings, without their labels."
        )
    notes += _on_starts(corpus, reports)
    notes += [
        f"*{name}*: the network of `{base}` with {lacks}"
        + (", which no start fits: compare it with `from-scratch`." if base == "default" else ".")
        for ablation, lacks in ABLATION_NOTES.items()
        for name in sorted({str(report["recipe"]) for report in reports})
        if name.endswith(f"-{ablation}") and (base := name.removesuffix(f"-{ablation}"))
    ]
    earlier = {str(report["recipe"]).removesuffix(ADAPTED) for report in reports}
    notes += [
        f"*{name}*: that recipe as it was in commit {match[2]}, before it was changed."
        for name in sorted(earlier)
        if (match := _EARLIER.fullmatch(name)) and match["ablation"] is None
    ]
    if corpus in CORPORA and CORPORA[corpus].note:
        notes.append(f"{CORPORA[corpus].title}: {CORPORA[corpus].note}")
    for report in reports:
        name = str(report["recipe"])
        match = _EARLIER.fullmatch(name)
        earlier_default = match and match[1] == "default" and not match["ablation"]
        plain = name in ("default", "from-scratch") or earlier_default
        if report["corpus"] == corpus and plain:
            notes += _on_chosen_speakers(report)
    return notes


def _on_starts(corpus: str, reports: Sequence[dict[str, Any]]) -> list[str]:
    """Notes on which runs of a recipe began with weights that had learned other corpora."""
    starts: dict[str, dict[str | None, set[str]]] = defaultdict(lambda: defaultdict(set))
    for report in reports:
        start, name = report.get("start"), str(report["recipe"]).removesuffix(ADAPTED)
        known = report["corpus"] == corpus and (start is None or start in LEARNED)
        if known and name in ("default", "default-best-on-test"):
            starts[name][start].add(protocol_title(report["protocol"]))
    notes = []
    for name, protocols in sorted(starts.items()):
        for start, places in sorted(protocols.items(), key=lambda item: str(item[0])):
            where = f"*{name}* ({', '.join(sorted(places))})"
            if start is None:
                notes.append(f"{where}: no start fits, so from scratch.")
                continue
            notes.append(
                f"{where}: starts from weights that have learned {titles(LEARNED[start])}, and "
                "nothing of the corpus judged."
            )
    return notes


def titles(names: Collection[str]) -> str:
    """The corpora's names for a sentence; empty for none."""
    return " and ".join(CORPORA[name].title for name in sorted(names))


def _on_chosen_speakers(report: dict[str, Any]) -> list[str]:
    """A note on how the speakers that the recipe was chosen on compare with all others."""
    chosen = CHOSEN_ON.get(report["corpus"], [])
    recalls = report.get("per_speaker", {})
    known = [recall for name, recall in recalls.items() if name in chosen]
    new = [recall for name, recall in recalls.items() if name not in chosen]
    if report["protocol"] not in ("loso", "emobox") or not (known and new):
        return []
    return [
        f"`{report['recipe']}` was chosen on speakers {chosen[0]} to {chosen[-1]} of "
        f"{CORPORA[report['corpus']].title}, who are among those tested. Of "
        f"*{protocol_title(report['protocol'])}* their mean UAR is {fmean(known):.1f} %, that of "
        f"the others {fmean(new):.1f} %."
    ]


__all__ = ["ADAPTED", "CROSS_CORPUS", "PROTOCOL_TITLES", "protocol_title", "render_notes", "titles"]
