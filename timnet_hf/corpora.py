# SPDX-License-Identifier: Apache-2.0
"""Load the six corpora from the owners' published layouts, and say what a copy lacks.

The files may lie anywhere below ``data_dir``: they are known by the end of their paths, as
`timnet_hf.corpus_table` describes it. A corpus comes back in the paper's order, by class
(alphabetical), then by natural file name, because the paper's folds are drawn over that order.

Own data goes through `load_folder`, and arrives in the same shape.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .audio import AudioError
from .corpus_download import download_corpus
from .corpus_folder import load_folder
from .corpus_scan import listed, scan
from .corpus_table import CORPORA, Corpus, CorpusError, Download, Utterance, find_corpus
from .recordings import (
    common_names,
    content_of,
    dataset_checksum,
    files_checksum,
    identical_recordings,
    make_dataset,
    relative_names,
    unwritable_name,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "CORPORA",
    "Corpus",
    "CorpusError",
    "CorpusReport",
    "Download",
    "check_corpus",
    "dataset_checksum",
    "download_corpus",
    "find_corpus",
    "identical_recordings",
    "load_corpus",
    "load_folder",
    "relative_names",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusReport:
    """What a copy of a corpus holds, beside what its owners publish.

    Attributes:
        corpus: Short name of the corpus.
        title: Name as the owners write it.
        data_dir: Where was looked.
        n_files: Recordings found.
        expected_files: Recordings published.
        class_counts: Recordings found of each class.
        expected_class_counts: Recordings published of each class.
        speakers: Speakers found.
        expected_speakers: Number of speakers published.
        missing: Names of published recordings that are not there.
        unexpected: Names that are read as recordings of the corpus, but were never published.
        strays: Other audio files that lie among the recordings. They are not loaded.
        duplicates: Paths of recordings that are there more than once under one name; the first
            path of each is loaded.
        conflicting: Names among the duplicates whose files differ in what they decode to.
        identical: Names of different recordings that decode to the same samples. Some corpora are
            published with such pairs; splits keep them together.
        undecodable: Name → reason, for files that cannot be decoded, or only in part.
        checksum: `dataset_checksum` of the files found, or None where one cannot be opened. Where
            that of the published files is known, the files count under their published names.
        expected_checksum: That of the published files, where it is known and comparable: the copy
            is complete and not repacked.
    """

    corpus: str
    title: str
    data_dir: str
    n_files: int
    expected_files: int
    class_counts: dict[str, int]
    expected_class_counts: dict[str, int]
    speakers: tuple[str, ...]
    expected_speakers: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    strays: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]
    conflicting: tuple[str, ...]
    identical: tuple[tuple[str, ...], ...]
    undecodable: dict[str, str]
    checksum: str | None = None
    expected_checksum: str | None = None

    @property
    def extra(self) -> tuple[str, ...]:
        """Everything that the owners did not publish: unexpected recordings and strays."""
        return self.unexpected + self.strays

    @property
    def faults(self) -> list[str]:
        """Why results on this copy would not be results on the corpus; empty for a good copy."""
        faults = []
        if self.missing:
            faults.append(f"missing: {listed(self.missing)}")
        if self.unexpected:
            faults.append(f"not published: {listed(self.unexpected)}")
        if self.undecodable:
            faults.append(f"undecodable: {listed(self.undecodable.values(), '; ')}")
        if self.conflicting:
            faults.append(f"differing copies: {listed(self.conflicting)}")
        if self.class_counts != self.expected_class_counts:
            faults.append(
                "recordings of a class: "
                + ", ".join(
                    f"{label} {self.class_counts.get(label, 0)} of {count}"
                    for label, count in self.expected_class_counts.items()
                    if self.class_counts.get(label, 0) != count
                )
            )
        if len(self.speakers) != self.expected_speakers:
            faults.append(f"{len(self.speakers)} speakers of {self.expected_speakers}")
        if self.expected_checksum and self.checksum != self.expected_checksum:
            faults.append("checksum: the files are not byte for byte as published")
        return faults

    @property
    def ok(self) -> bool:
        """Whether the copy is complete, decodable, as published, and nothing else lies in it."""
        return not self.faults and not self.strays

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, complete, with ``extra`` and ``ok``."""
        return {**asdict(self), "extra": list(self.extra), "ok": self.ok}

    def __str__(self) -> str:
        state = "complete and readable" if self.ok else "NOT as published"
        lines = [
            f"{self.title} in {self.data_dir}: {state}",
            f"  recordings: {self.n_files} of {self.expected_files} ("
            + ", ".join(
                f"{label} {self.class_counts.get(label, 0)}/{count}"
                for label, count in self.expected_class_counts.items()
            )
            + ")",
            f"  speakers:   {len(self.speakers)} of {self.expected_speakers}",
        ]
        findings: list[tuple[str, Iterable[str]]] = [
            ("missing", self.missing),
            ("extra", self.extra),
            ("duplicates", (" = ".join(paths) for paths in self.duplicates)),
            ("conflicts", self.conflicting),
            ("identical", (" = ".join(names) for names in self.identical)),
            ("unreadable", self.undecodable.values()),
        ]
        for name, found in findings:
            lines.append(f"  {name + ':':<11} {listed(list(found), chr(10) + ' ' * 14)}")
        verdict = " (none is known to compare it with: names and counts were checked)"
        if self.expected_checksum:
            verdict = " (as published)" if self.checksum == self.expected_checksum else " (differs)"
        lines.append(
            f"  checksum:   {self.checksum}{verdict}"
            if self.checksum
            else "  checksum:   unknown, for not all files can be read"
        )
        return "\n".join(lines)


def load_corpus(name: str, data_dir: str | os.PathLike[str], *, strict: bool = True) -> Dataset:
    """Load a corpus, in the order over which the paper draws its folds.

    Args:
        name: Name of the corpus ("emodb", "EMO-DB"), see `CORPORA`.
        data_dir: Folder below which the recordings lie, in the owners' layout.
        strict: Refuse a copy that lacks recordings, has ones that were never published, or cannot
            be decoded. Otherwise load what is there; what cannot be decoded is left out, with a
            warning.

    Returns:
        Dataset with the columns path (str), audio (``Audio(decode=False)``), label (ClassLabel with
        all classes of the corpus), speaker (str) and sentence (str, or None where names do not tell
        it).

    Raises:
        CorpusError: No such corpus or folder, no recordings of it there, or with ``strict`` a copy
            that is not as published; the message names the files.
    """
    corpus = find_corpus(name)
    utterances, report = _survey(corpus, data_dir)
    if strict and report.faults:
        faults = "\n  ".join(report.faults)
        raise CorpusError(
            f"{data_dir}: this copy of {corpus.title} is not as published:\n  {faults}\n"
            "repair the copy until `timnet corpora check` is content, or take what is there: "
            "--as-is on the command line, strict=False in Python"
        )
    for problem in report.undecodable.values():
        logger.warning("%s", problem)
    for fault in replace(report, undecodable={}).faults:  # beside what was just named one by one
        logger.warning("%s is not as published: %s", corpus.title, fault)
    if not utterances:
        raise CorpusError(f"{data_dir}: no recording of {corpus.title} can be decoded")
    dataset = make_dataset(
        [utterance.path for utterance in utterances],
        [utterance.label or "" for utterance in utterances],
        [utterance.speaker for utterance in utterances],
        [utterance.sentence for utterance in utterances],
        names=corpus.labels,
    )
    dataset.info.dataset_name = corpus.name
    dataset.info.citation = corpus.citation
    dataset.info.homepage = corpus.homepage
    dataset.info.license = corpus.licence
    return dataset


def check_corpus(name: str, data_dir: str | os.PathLike[str]) -> CorpusReport:
    """Compare a copy of a corpus with what its owners publish: names, counts, content.

    Args:
        name: Name of the corpus, see `CORPORA`.
        data_dir: Folder below which the recordings lie.

    Returns:
        The report; ``report.ok`` sums it up, ``print(report)`` shows it.

    Raises:
        CorpusError: No such corpus or folder, or no recordings of it there.
    """
    corpus = find_corpus(name)
    _, report = _survey(corpus, data_dir, checksum=True)
    return report


def _survey(
    corpus: Corpus, data_dir: str | os.PathLike[str], *, checksum: bool = False
) -> tuple[list[Utterance], CorpusReport]:
    """Find, decode and count: what can be loaded, in the paper's order, and the report."""
    found = scan(corpus, data_dir)
    loadable: list[Utterance] = []
    undecodable: dict[str, str] = {}
    names_of: dict[str, list[str]] = defaultdict(list)  # by content
    for utterance in found.utterances:
        if problem := unwritable_name(utterance.path):
            undecodable[utterance.name] = problem
            continue
        try:
            content = content_of(utterance.path)
        except AudioError as error:
            undecodable[utterance.name] = str(error)
            continue
        loadable.append(utterance)
        names_of[content.digest].append(utterance.name)
        if content.problem:
            undecodable[utterance.name] = content.problem
    counts = Counter(utterance.label for utterance in found.utterances)
    report = CorpusReport(
        corpus=corpus.name,
        title=corpus.title,
        data_dir=os.fspath(data_dir),
        n_files=len(found.utterances),
        expected_files=corpus.n_files,
        class_counts={label: counts[label] for label in corpus.labels},
        expected_class_counts={label: corpus.class_counts[label] for label in corpus.labels},
        speakers=tuple(sorted({utterance.speaker for utterance in found.utterances})),
        expected_speakers=corpus.n_speakers,
        missing=found.missing,
        unexpected=found.unexpected,
        strays=tuple(os.path.relpath(path, found.root) for path in found.strays),
        duplicates=tuple(
            tuple(os.path.relpath(utterance.path, found.root) for utterance in same)
            for same in found.duplicates
        ),
        conflicting=tuple(same[0].name for same in found.duplicates if _differ(same)),
        identical=tuple(tuple(names) for names in names_of.values() if len(names) > 1),
        undecodable=undecodable,
    )
    return loadable, _with_checksum(report, corpus, found.utterances) if checksum else report


def _differ(copies: Sequence[Utterance]) -> bool:
    """Whether files that bear one name hold different recordings."""
    digests = set()
    for utterance in copies:
        try:
            digests.add(content_of(utterance.path).digest)
        except AudioError:
            digests.add(utterance.path)
    return len(digests) > 1


def _with_checksum(
    report: CorpusReport, corpus: Corpus, utterances: Sequence[Utterance]
) -> CorpusReport:
    """Add the checksum, and the published one where the two can be compared."""
    paths = [utterance.path for utterance in utterances]
    comparable = not report.missing and all(path.lower().endswith(".wav") for path in paths)
    names = common_names(paths)
    if corpus.checksum and comparable:
        # Wherever they lie and however their names are written: what counts is what is in them.
        published = {one.casefold(): one for fold in corpus.emobox_folds().values() for one in fold}
        own = [utterance.name for utterance in utterances]
        names = [f"{published.get(name.casefold(), name)}.wav" for name in own]
    try:
        checksum = files_checksum(dict(zip(names, paths, strict=True)))
    except CorpusError:  # a file that cannot even be opened stands among the undecodable ones
        return report
    return replace(
        report,
        checksum=checksum,
        expected_checksum=corpus.checksum if comparable else None,
    )
