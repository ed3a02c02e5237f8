# SPDX-License-Identifier: Apache-2.0
"""Make ``timnet_hf/data/emobox_folds.json`` from a table of the public EmoBox test folds.

    python scripts/make_emobox_folds.py [TABLE.csv]

The table has the columns corpus, fold, file and emotion, taken from the ``*_test_fold_*`` files of
https://github.com/emo-box/EmoBox (Ma et al., EmoBox, Interspeech 2024). Paths become the corpora's
own names of the recordings, so that the folds fit any copy; names are sorted, one fold a line, so
that a change shows as a readable difference. Every name and every class is read back through the
table of corpora: a path that it cannot read stops the script.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

from timnet_hf.corpora import CORPORA

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "EmoBox public test folds (Ma et al., Interspeech 2024), github.com/emo-box/EmoBox"

# EmoBox keeps the owners' codes or spells the classes its own way.
CLASSES = {
    "anger": "angry",
    "boredem": "boredom",
    "fearful": "fear",
    "surprised": "surprise",
}


def read_folds(table: Path) -> dict[str, dict[str, list[str]]]:
    """Read the table as corpus → fold → sorted names of recordings."""
    folds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with table.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            corpus = CORPORA[row["corpus"]]
            recording = corpus.parse(row["file"])
            if recording is None:
                raise SystemExit(f"{table}: {corpus.title} has no recording like {row['file']}")
            emotion = row["emotion"].lower()
            if recording.label != corpus.codes.get(emotion, CLASSES.get(emotion, emotion)):
                raise SystemExit(f"{table}: {row['file']} is {recording.label}, not {emotion}")
            folds[corpus.name][row["fold"]].append(recording.name)
    for name, parts in folds.items():
        names = [recording for part in parts.values() for recording in part]
        if len(set(names)) != len(names) or len(names) != CORPORA[name].n_files:
            raise SystemExit(f"{table}: the folds of {name} do not cover each recording once")
    return {c: {f: sorted(parts[f]) for f in sorted(parts, key=int)} for c, parts in folds.items()}


def write_folds(folds: dict[str, dict[str, list[str]]], target: Path) -> None:
    """Write the folds as JSON, the names of a fold as one space-separated line."""
    text = {c: {f: " ".join(names) for f, names in parts.items()} for c, parts in folds.items()}
    document = {"source": SOURCE, "folds": text}
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, convert, and say what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "table",
        nargs="?",
        type=Path,
        default=ROOT.parent / "shared/reference/emobox_test_folds.csv",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "timnet_hf" / "data" / "emobox_folds.json"
    )
    arguments = parser.parse_args()
    folds = read_folds(arguments.table)
    write_folds(folds, arguments.output)
    for corpus, parts in folds.items():
        print(f"{corpus}: {len(parts)} folds, {sum(map(len, parts.values()))} recordings")


if __name__ == "__main__":
    main()
