# SPDX-License-Identifier: Apache-2.0
"""Which recordings a model learns from, and which it is judged on.

Five protocols, from what the paper did to what a user should ask for:

======== ================================== ======================================================
name     one fold tests on                  what its figure tells
======== ================================== ======================================================
kfold    a random tenth                     the paper's protocol; speakers are on both sides
emobox   a public EmoBox test fold          comparable with the EmoBox benchmark
loso     all recordings of one speaker      new voices, which is what applications meet
loto     all recordings of one sentence     known voices, new words
group    groups of any column               whatever the column separates: rooms, devices, dialogs
======== ================================== ======================================================

One recording under two names never sits on both sides of a fold. Where the folds are drawn by
chance, identical recordings move together to the fold of the first of them; where a fold has a
meaning (a speaker, a published list), it is kept whole, and the twins of its recordings are left
out of its training side.

A fold that no honest model can be trained on is refused before any training starts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .audio import natural_key
from .corpora import find_corpus, identical_recordings
from .corpus_scan import listed
from .corpus_table import Corpus, Utterance

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PROTOCOLS", "Fold", "ProtocolError", "inner_folds", "make_folds"]

PROTOCOLS = ("kfold", "emobox", "loso", "loto", "group")
"""Names of the protocols, as `make_folds` takes them."""


class ProtocolError(ValueError):
    """The folds that were asked for cannot be made, or not honestly, from these recordings."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One split.

    Attributes:
        name: Unique within its protocol, fit for a file name: "fold-01", "speaker-03" …
        train: Row numbers to learn from, ascending, int64 of shape (n,).
        test: Row numbers to be judged on, ascending, int64 of shape (m,).
        inner: Splits of ``train``, to calibrate on.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    inner: tuple[Fold, ...] = ()


def make_folds(
    dataset: Dataset,
    protocol: str,
    *,
    corpus: str | None = None,
    seed: int | None = None,
    n_folds: int = 10,
    group_by: str | None = None,
) -> list[Fold]:
    """Split a dataset into folds.

    Args:
        dataset: As `timnet_hf.corpora.load_corpus` and `load_folder` return it. `kfold` draws over
            the order of its rows, which is the paper's order as loaded.
        protocol: One of `PROTOCOLS`.
        corpus: Name of the corpus that the dataset is; needed for `emobox`, and gives `kfold` its
            authors' seed.
        seed: ``random_state`` of `kfold`. Default: the authors' seed of ``corpus``, else 0. The
            other protocols do not depend on chance.
        n_folds: Number of folds of `kfold` and `group`; the other protocols have as many as there
            are published folds, speakers or sentences.
        group_by: Column whose values `group` keeps together.

    Returns:
        The folds; each row is tested on in exactly one.

    Raises:
        ProtocolError: Unknown protocol or column, an empty class, a single class, fewer rows or
            groups than folds, a single speaker or sentence, rows of unknown speaker, recordings
            that a public fold lists and the dataset lacks or the reverse, or a class that is
            missing from the training side of a fold.
        timnet_hf.corpora.CorpusError: Unknown corpus.

    Example:
        >>> from datasets import ClassLabel, Dataset
        >>> rows = {"label": [0, 1] * 4, "speaker": list("aabbccdd")}
        >>> data = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["calm", "sad"]))
        >>> [(fold.name, fold.test.tolist()) for fold in make_folds(data, "loso")][:2]
        [('speaker-a', [0, 1]), ('speaker-b', [2, 3])]
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    labels, names = _labels(dataset)
    _refuse_empty_classes(labels, names)
    twins = identical_recordings(dataset)
    if protocol == "kfold":
        if seed is None:
            seed = find_corpus(corpus).seed if corpus else 0
        tests = _together(_random_folds(len(labels), n_folds, seed), twins)
    elif protocol == "emobox":
        tests = _emobox_folds(dataset, corpus)
    elif protocol == "loso":
        tests = _one_each(dataset, "speaker")
    elif protocol == "loto":
        tests = _one_each(dataset, "sentence")
    else:
        tests = _group_folds(dataset, group_by, n_folds)
    folds = _folds(tests, np.arange(len(labels)), twins)
    _refuse_untrainable(folds, labels, names)
    return folds


def inner_folds(
    dataset: Dataset, train_indices: Sequence[int] | np.ndarray, n_folds: int = 5, *, seed: int = 0
) -> list[Fold]:
    """Split the training side of a fold again, for calibration.

    Where every row has a speaker and there are several, the folds keep speakers together, as equal
    in size as that allows, so that what is chosen on them holds for new voices. Otherwise they are
    stratified by class.

    Args:
        dataset: The whole dataset.
        train_indices: Rows of the training side; no other row is looked at.
        n_folds: Number of folds, at least 2. There are fewer when there are fewer speakers, or
            fewer recordings of the rarest class.
        seed: ``random_state`` of the stratified folds; folds by speaker do not depend on chance.

    Returns:
        The folds, in row numbers *of the whole dataset*.

    Raises:
        ProtocolError: Too few rows, or a class that is missing from the training side of a fold.
    """
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    rows = np.sort(np.asarray(train_indices, dtype=np.int64))
    part = dataset.select(rows)
    all_labels, names = _labels(dataset)
    labels = all_labels[rows]
    present, counts = np.unique(labels, return_counts=True)
    if n_folds < 2 or len(present) < 2 or counts.min() < 2:
        raise ProtocolError(
            f"{n_folds} inner folds of {len(rows)} training recordings ("
            + (", ".join(f"{names[k]} {n}" for k, n in zip(present, counts, strict=True)) or "none")
            + ") cannot be made; it takes 2 folds, and 2 classes with 2 recordings each"
        )
    speakers = _values(part, "speaker") if "speaker" in part.column_names else [None]
    n_speakers = len(set(speakers))
    if None not in speakers and n_speakers > 1:
        splits = GroupKFold(min(n_folds, n_speakers)).split(rows, labels, speakers)
    else:
        n_folds = min(n_folds, int(counts.min()))
        stratified = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        splits = stratified.split(rows, labels)
    tests = {f"inner-{number:02d}": rows[test] for number, (_, test) in enumerate(splits, start=1)}
    twins = [[int(rows[row]) for row in same] for same in identical_recordings(part)]
    folds = _folds(tests, rows, twins)
    _refuse_untrainable(folds, all_labels, names, needed=present)
    return folds


def _labels(dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """Class of each row, int64 of shape (rows,), and the names of the classes."""
    from datasets import ClassLabel

    feature = dataset.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ProtocolError("the dataset has no column 'label' of type ClassLabel; cast it")
    labels = list(dataset["label"])
    if unlabelled := [str(row) for row, label in enumerate(labels) if label is None or label < 0]:
        raise ProtocolError(f"rows without a label: {listed(unlabelled)}; remove them")
    return np.asarray(labels, dtype=np.int64), list(feature.names)


def _refuse_empty_classes(labels: np.ndarray, names: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ProtocolError(
            f"classes without a recording: {listed(empty)}; add recordings or remove the class"
        )
    if len(names) < 2:
        raise ProtocolError(f"the only class is {listed(names)}; two are needed to tell apart")


def _random_folds(n_rows: int, n_folds: int, seed: int) -> dict[str, np.ndarray]:
    from sklearn.model_selection import KFold

    if not 2 <= n_folds <= n_rows:
        raise ProtocolError(
            f"{n_rows} recordings cannot make {n_folds} folds; ask for 2 to {n_rows}"
        )
    splits = KFold(n_folds, shuffle=True, random_state=seed).split(np.arange(n_rows))
    return {f"fold-{number:02d}": test for number, (_, test) in enumerate(splits, start=1)}


def _together(
    tests: Mapping[str, np.ndarray], twins: Iterable[Sequence[int]]
) -> dict[str, np.ndarray]:
    """Move identical recordings to the fold that tests on the first of them."""
    fold_of = {int(row): name for name, test in tests.items() for row in test}
    for first, *others in twins:
        for row in others:
            fold_of[row] = fold_of[first]
    return {name: np.array([r for r in fold_of if fold_of[r] == name]) for name in tests}


def _emobox_folds(dataset: Dataset, corpus: str | None) -> dict[str, np.ndarray]:
    """The public folds, found again by the corpus' own names of the recordings."""
    if corpus is None:
        raise ProtocolError("the emobox folds belong to a corpus; say which one the dataset is")
    table = find_corpus(corpus)
    paths = list(dataset["path"])
    parsed = [table.parse(path.replace(os.sep, "/")) for path in paths]
    if table.emobox_format is not None:
        return _told_folds(table, parsed)
    published = table.emobox_folds()
    fold_of = {name.casefold(): fold for fold, part in published.items() for name in part}
    names = [utterance.name.casefold() if utterance else "" for utterance in parsed]
    if unlisted := [p for p, name in zip(paths, names, strict=True) if name not in fold_of]:
        raise ProtocolError(
            f"{len(unlisted)} recordings are in no emobox fold of {table.title}: "
            f"{listed(unlisted)}; bring their names into the owners' form, for example "
            f"{table.layout}"
            + (", with the speakers spelled as in the folds" if table.speakers_vary else "")
        )
    if lacking := sorted(fold_of.keys() - set(names)):
        raise ProtocolError(
            f"{len(lacking)} recordings of the emobox folds of {table.title} are not in the "
            f"dataset: {listed(lacking)}; load the whole corpus"
        )
    folds = np.array([fold_of[name] for name in names])
    return {f"emobox-{fold}": np.flatnonzero(folds == fold) for fold in published}


def _told_folds(table: Corpus, parsed: Sequence[Utterance | None]) -> dict[str, np.ndarray]:
    """The public folds of a corpus whose names tell them: IEMOCAP's are its sessions."""
    if len(parsed) != table.n_files or None in parsed:
        raise ProtocolError(
            f"the emobox folds of {table.title} are of {table.n_files} recordings, the dataset has "
            f"{sum(one is not None for one in parsed)} of them; load the whole corpus"
        )
    folds = np.array([one.emobox if one else "" for one in parsed])
    return {
        f"emobox-{number}": np.flatnonzero(folds == fold)
        for number, fold in enumerate(np.unique(folds), start=1)
    }


def _one_each(dataset: Dataset, column: str) -> dict[str, np.ndarray]:
    """One fold for each value of a column, in natural order of the values."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(_known(dataset, column)):
        rows_of[value].append(row)
    if len(rows_of) < 2:
        raise ProtocolError(
            f"the only {column} is {listed(rows_of)}; leaving one out takes at least two"
        )
    tests: dict[str, np.ndarray] = {}
    taken: set[str] = set()
    for value in sorted(rows_of, key=natural_key):
        name = f"{column}-{re.sub(r'[^A-Za-z0-9._-]+', '_', value)}"
        # Values may differ only in what a file name cannot hold, in upper and lower case, which
        # are one to some disks, or be whole sentences.
        if name.casefold() in taken or len(name) > 80:
            name = f"{name[:60]}-{hashlib.sha256(value.encode()).hexdigest()[:12]}"
        taken.add(name.casefold())
        tests[name] = np.array(rows_of[value])
    return tests


def _group_folds(dataset: Dataset, column: str | None, n_folds: int) -> dict[str, np.ndarray]:
    from sklearn.model_selection import GroupKFold

    if column is None:
        raise ProtocolError(
            f"group folds need a column to group by; there are {listed(dataset.column_names)}"
        )
    groups = _known(dataset, column)
    n_groups = len(set(groups))
    if not 2 <= n_folds <= n_groups:
        raise ProtocolError(
            f"{n_groups} values of {column!r} cannot make {n_folds} folds"
            + (f"; ask for 2 to {n_groups}" if n_groups > 1 else "; it takes at least two")
        )
    splits = GroupKFold(n_folds).split(groups, groups=groups)
    return {f"group-{number:02d}": test for number, (_, test) in enumerate(splits, start=1)}


def _values(dataset: Dataset, column: str) -> list[str | None]:
    return [None if value is None else str(value) for value in dataset[column]]


def _known(dataset: Dataset, column: str) -> list[str]:
    """A column as text; every row must have a value."""
    if column not in dataset.column_names:
        raise ProtocolError(
            f"there is no column {column!r}; there are {listed(dataset.column_names)}"
        )
    values = _values(dataset, column)
    if unknown := [str(row) for row, value in enumerate(values) if value is None]:
        raise ProtocolError(
            f"the {column} of {len(unknown)} of {len(values)} recordings is unknown (rows "
            f"{listed(unknown)}); name it, or choose another protocol"
        )
    return [value for value in values if value is not None]


def _folds(
    tests: Mapping[str, np.ndarray], rows: np.ndarray, twins: Iterable[Sequence[int]]
) -> list[Fold]:
    """Train on all other rows, except twins of a test recording."""
    twins_of = {row: same for same in twins for row in same}
    folds = []
    for name, test in tests.items():
        held_out = {twin for row in test.tolist() for twin in twins_of.get(row, (row,))}
        train = np.array([row for row in rows.tolist() if row not in held_out], dtype=np.int64)
        folds.append(Fold(name, train, np.sort(test).astype(np.int64)))
    return folds


def _refuse_untrainable(
    folds: Iterable[Fold],
    labels: np.ndarray,
    names: Sequence[str],
    needed: Iterable[int] | None = None,
) -> None:
    """No fold without test recordings, none whose training side lacks a class."""
    wanted = set(range(len(names)) if needed is None else map(int, needed))
    for fold in folds:
        if not len(fold.test):
            raise ProtocolError(
                f"{fold.name} has nothing to test on, because identical recordings stay together; "
                "ask for fewer folds or remove the copies"
            )
        if lacking := sorted(wanted - set(labels[fold.train].tolist())):
            raise ProtocolError(
                f"{fold.name}: all recordings of {listed(names[k] for k in lacking)} are on the "
                f"test side ({len(fold.train)} recordings are left to train on); choose other "
                "folds or add recordings"
            )
