# SPDX-License-Identifier: Apache-2.0
"""Load a folder of one's own recordings.

Two layouts are understood, with audio of any format, rate and number of channels:

- one sub-folder a class, recordings at any depth in it::

      my-data/angry/a.wav
      my-data/sad/b.mp3

- a ``metadata.csv`` in the folder, with the columns ``file_name`` and ``label``, and if known
  ``speaker`` and ``sentence``. Other columns are kept as text, for folds grouped by them::

      file_name,label,speaker,room
      a.wav,angry,ann,studio
      more/b.mp3,sad,ben,kitchen

Without speakers no evaluation can tell whether a model knows the emotion or the voice: where they
are known, write them down.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .audio import AudioError, natural_key
from .corpus_scan import audio_below, is_audio, listed, require_folder
from .corpus_table import CorpusError
from .recordings import content_of, make_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_folder"]

logger = logging.getLogger(__name__)

_METADATA = "metadata.csv"


@dataclass(frozen=True)
class _Row:
    path: str
    label: str
    speaker: str | None = None
    sentence: str | None = None
    extras: dict[str, str | None] = field(default_factory=dict)


def load_folder(
    data_dir: str | os.PathLike[str], *, labels: Sequence[str] | None = None
) -> Dataset:
    """Load own recordings from a folder (see the module's text for its two layouts).

    Every recording is decoded once, so that a bad file is found now and not after an hour of
    training.

    Args:
        data_dir: The folder.
        labels: Classes in the order they shall be numbered. By default all that occur, in
            alphabetical order.

    Returns:
        Dataset with the columns path, audio (``Audio(decode=False)``), label (ClassLabel), speaker,
        sentence (None where unknown) and the other columns of ``metadata.csv``; ordered by class,
        then by natural file name.

    Raises:
        CorpusError: No such folder, neither layout, fewer than two classes, an empty class, a label
            that is not in ``labels``, files that are missing, named twice or cannot be decoded; the
            message names them.
    """
    root = require_folder(data_dir)
    metadata = os.path.join(root, _METADATA)
    rows = _metadata_rows(metadata, root) if os.path.isfile(metadata) else _class_rows(root)
    present = sorted({row.label for row in rows})
    if len(present) < 2:
        raise CorpusError(
            f"{data_dir}: all recordings are {present[0]!r}; a classifier needs two classes"
        )
    if labels is not None and (unknown := sorted(set(present) - set(labels))):
        named = [f"{row.path} ({row.label})" for row in rows if row.label in unknown]
        raise CorpusError(
            f"{data_dir}: unknown labels {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(labels)}. They are on {listed(named)}"
        )
    _refuse_undecodable(data_dir, rows)
    rows.sort(key=lambda row: (row.label, natural_key(os.path.relpath(row.path, root))))
    return make_dataset(
        [row.path for row in rows],
        [row.label for row in rows],
        [row.speaker for row in rows],
        [row.sentence for row in rows],
        names=list(labels) if labels is not None else present,
        extras={column: [row.extras[column] for row in rows] for column in rows[0].extras},
    )


def _class_rows(root: str) -> list[_Row]:
    """One sub-folder a class."""
    classes, loose = [], []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            classes.append(entry)
        elif is_audio(entry.name):
            loose.append(entry.name)
    if not classes:
        raise CorpusError(
            f"{root}: neither a {_METADATA} nor sub-folders; put the recordings of each class into "
            f"a sub-folder named after it, or list them in {_METADATA} (file_name,label)"
        )
    if loose:
        raise CorpusError(
            f"{root}: {listed(loose)} in no class; move them into the sub-folder of their class"
        )
    rows = []
    for folder in classes:
        files = audio_below(folder.path)
        if not files:
            raise CorpusError(
                f"{folder.path}: the class {folder.name!r} is empty; add recordings to its folder "
                "or remove it"
            )
        rows += [_Row(path, folder.name) for path in files]
    return rows


def _metadata_rows(metadata: str, root: str) -> list[_Row]:
    """Recordings as a table lists them."""
    try:
        with open(metadata, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or ())
            table = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{metadata}: cannot be read as CSV in UTF-8 ({error})") from error
    lacking = [column for column in ("file_name", "label") if column not in columns]
    if (
        lacking
        or not all(column.isprintable() and column for column in columns)
        or len(set(columns)) < len(columns)
        or {"path", "audio"} & set(columns)
    ):
        raise CorpusError(
            f"{metadata}: the first line must name the columns file_name and label, each column "
            f"once, and none path or audio; it has {', '.join(map(repr, columns)) or 'nothing'}"
        )
    rows = []
    for number, line in table:
        if None in line or None in line.values():
            raise CorpusError(f"{metadata}, line {number}: not {len(columns)} values as above it")
        values = {column: value.strip() or None for column, value in line.items()}
        name, label = values.pop("file_name"), values.pop("label")
        if name is None or label is None:
            what = "file_name" if name is None else "label"
            raise CorpusError(f"{metadata}, line {number}: the {what} is empty")
        speaker, sentence = values.pop("speaker", None), values.pop("sentence", None)
        path = os.path.normpath(os.path.join(root, name))
        rows.append(_Row(path, label, speaker, sentence, values))
    if not rows:
        raise CorpusError(f"{metadata}: lists no recordings")
    if missing := [row.path for row in rows if not os.path.exists(row.path)]:
        raise CorpusError(f"{metadata}: {len(missing)} listed files are missing: {listed(missing)}")
    counts = Counter(os.path.realpath(row.path) for row in rows)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise CorpusError(f"{metadata}: files are listed more than once: {listed(twice)}")
    return rows


def _refuse_undecodable(data_dir: str | os.PathLike[str], rows: Iterable[_Row]) -> None:
    problems = []
    for row in rows:
        try:
            content = content_of(row.path)
        except AudioError as error:
            problems.append(str(error))
        else:
            if content.problem:
                logger.warning("%s", content.problem)
    if problems:
        raise CorpusError(
            f"{data_dir}: {len(problems)} recordings cannot be used:"
            f"\n  {listed(problems, chr(10) + '  ')}"
        )
