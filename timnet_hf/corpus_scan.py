# SPDX-License-Identifier: Apache-2.0
"""Find the recordings of a corpus, wherever below a folder they lie.

Nothing is decoded here: this is about names. Files are known by the end of their paths. A copy may
be nested, linked to, or lie there twice; hidden files and the ``__MACOSX`` folders of some
archives are no recordings.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .audio import AUDIO_EXTENSIONS, natural_key
from .corpus_table import Corpus, CorpusError, Utterance

__all__ = ["Scan", "audio_below", "is_audio", "listed", "require_folder", "scan"]

logger = logging.getLogger(__name__)

_SHOWN = 10  # names that a message lists before it counts the rest


@dataclass(frozen=True)
class Scan:
    """What the names below a folder tell.

    Attributes:
        root: The folder, absolute.
        utterances: One file for each recording, in the paper's order: by class, then by natural
            file name.
        duplicates: Groups of files that bear the name of one recording; the first of each group
            is among ``utterances``.
        expected: Names of all published recordings, or empty where they are not known.
        strays: Audio files that lie among the recordings and are none, and recordings whose
            emotion should stand in an annotation file and does not.
    """

    root: str
    utterances: tuple[Utterance, ...]
    duplicates: tuple[tuple[Utterance, ...], ...]
    expected: frozenset[str]
    strays: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of published recordings that were not found; upper and lower case are one."""
        found = {utterance.name.casefold() for utterance in self.utterances}
        return _natural(name for name in self.expected if name.casefold() not in found)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Names that were found, but never published."""
        if not self.expected:
            return ()
        known = {name.casefold() for name in self.expected}
        return _natural(u.name for u in self.utterances if u.name.casefold() not in known)


def scan(corpus: Corpus, data_dir: str | os.PathLike[str]) -> Scan:
    """Look for the recordings of a corpus.

    Args:
        corpus: What to look for.
        data_dir: Folder below which they lie.

    Returns:
        What was found; at least one recording.

    Raises:
        CorpusError: There is no such folder, or no recording of the corpus in it.
    """
    root = require_folder(data_dir)
    files = _files_below(root)
    emotions = _annotated(corpus, files)
    class_of = {name.casefold(): label for name, label in emotions.items()}
    copies: dict[str, list[Utterance]] = defaultdict(list)
    others: list[str] = []
    unannotated: list[str] = []
    unlabelled = 0
    for path in files:
        utterance = corpus.parse(path.replace(os.sep, "/"))
        if utterance is None:
            others.append(path)
            continue
        utterance = replace(utterance, path=path)
        if corpus.annotations:
            label = class_of.get(utterance.name.casefold())
            if label is None:
                unlabelled += 1
                if utterance.name.casefold() not in class_of:  # else one that the task leaves out
                    unannotated.append(path)
                continue
            utterance = replace(utterance, label=label)
        copies[utterance.name.casefold()].append(utterance)
    if not copies:
        raise CorpusError(_nothing_found(corpus, data_dir, unlabelled))
    for same in copies.values():
        same.sort(key=_preference)
    chosen = sorted(_spelled_alike([same[0] for same in copies.values()]), key=_paper_order)
    folders = {os.path.dirname(utterance.path) for utterance in chosen}
    strays = [
        p
        for p in others
        if os.path.dirname(p) in folders and not corpus.leaves_out(p.replace(os.sep, "/"))
    ]
    return Scan(
        root=root,
        utterances=tuple(chosen),
        duplicates=tuple(tuple(same) for same in copies.values() if len(same) > 1),
        expected=frozenset(name for name, label in emotions.items() if label)
        if corpus.annotations
        else _published(corpus, chosen),
        strays=tuple(p for p in sorted([*strays, *unannotated], key=natural_key) if is_audio(p)),
    )


def require_folder(data_dir: str | os.PathLike[str]) -> str:
    """The folder as an absolute path, or a `CorpusError` that says why it is none."""
    root = os.path.abspath(os.fspath(data_dir))
    if not os.path.isdir(root):
        problem = "is not a folder" if os.path.exists(root) else "no such folder"
        raise CorpusError(f"{data_dir}: {problem}; name the folder that holds the recordings")
    if not os.access(root, os.R_OK | os.X_OK):
        raise CorpusError(f"{data_dir}: may not be read; check its permissions")
    return root


def audio_below(folder: str) -> list[str]:
    """The audio files below a folder, in natural order."""
    return [path for path in _files_below(folder) if is_audio(path)]


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """Name the first few, count the rest: "a, b and 7 more"; "none" for nothing."""
    names = list(items)
    text = separator.join(names[:_SHOWN]) or "none"
    return f"{text}{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else text


def _files_below(root: str) -> list[str]:
    """All visible files below a folder, in natural order; links are followed, loops are not."""
    found, seen = [], set()
    for folder, folders, files in os.walk(root, onerror=_tell, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if _is_visible(name))
        found += [os.path.join(folder, name) for name in files if _is_visible(name)]
    return sorted(found, key=natural_key)


def _tell(error: OSError) -> None:
    """What lies in a folder that may not be read is not missing."""
    logger.warning("%s: cannot be read (%s); check its permissions", error.filename, error.strerror)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def is_audio(path: str) -> bool:
    """Whether a file is called like a recording."""
    return path.lower().endswith(AUDIO_EXTENSIONS)


def _preference(utterance: Utterance) -> tuple[bool, int, list[tuple[list[tuple[int, str]], str]]]:
    """Of several copies: the owners' format, then the shallowest, then the first by name."""
    path = utterance.path
    return not path.lower().endswith(".wav"), path.count(os.sep), natural_key(path)


def _paper_order(utterance: Utterance) -> tuple[str, list[tuple[list[tuple[int, str]], str]]]:
    return utterance.label or "", natural_key(utterance.order)


def _spelled_alike(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Speakers and sentences as most names spell them: a copy may mix upper and lower case."""
    usual: dict[str, dict[str, str]] = {}
    for column in ("speaker", "sentence"):
        counts = Counter(getattr(utterance, column) or "" for utterance in utterances)
        spellings = sorted(counts, key=lambda text: (counts[text], text))
        usual[column] = {text.casefold(): text for text in spellings}
    return [
        replace(
            utterance,
            speaker=usual["speaker"][utterance.speaker.casefold()],
            sentence=utterance.sentence and usual["sentence"][utterance.sentence.casefold()],
        )
        for utterance in utterances
    ]


def _natural(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=natural_key))


def _annotated(corpus: Corpus, files: Iterable[str]) -> dict[str, str | None]:
    """Class of each recording in the corpus' annotation files; None where the task has none."""
    labels: dict[str, str | None] = {}
    if corpus.annotations is None or corpus.annotation is None:
        return labels
    for path in files:
        if not corpus.is_annotation(path.replace(os.sep, "/")):
            continue
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
        for match in re.finditer(corpus.annotation, text):
            name, label = match["name"], corpus.codes.get(match["emotion"].lower())
            labels[name] = labels.get(name) or label
    return labels


def _published(corpus: Corpus, found: Sequence[Utterance]) -> frozenset[str]:
    """Names of all recordings, as the public folds list them."""
    names = [name for fold in corpus.emobox_folds().values() for name in fold]
    if corpus.speakers_vary:
        # The folders of this copy may spell the speakers differently: what counts is that each
        # speaker has said everything.
        listed = {name.partition("/")[0].casefold() for name in names}
        speakers = {utterance.speaker for utterance in found}
        folded = {speaker.casefold() for speaker in speakers}
        if not (listed <= folded or folded <= listed):
            said = {name.partition("/")[2] for name in names}
            names = [f"{speaker}/{what}" for speaker in speakers for what in said]
    return frozenset(names)


def _nothing_found(corpus: Corpus, data_dir: str | os.PathLike[str], recordings: int) -> str:
    remedy = corpus.obtain
    if corpus.download:
        remedy = f"`timnet corpora download {corpus.name} --data-dir DIR` fetches it"
    if recordings:
        return (
            f"{data_dir}: {recordings} recordings of {corpus.title}, but no text file that gives "
            f"one of them an emotion; files are expected as {corpus.layout}. Copy these too."
        )
    return (
        f"{data_dir}: no recordings of {corpus.title} below this folder, where files are expected "
        f"as {corpus.layout}. {remedy}"
    )
