# SPDX-License-Identifier: Apache-2.0
"""Recordings as rows of a dataset: one shape for every corpus, and what two rows have in common.

A recording is what its file decodes to. Two files with the same samples are one recording under
two names, whatever the container; splits must not put them on different sides. Checksums, on the
other hand, are about files, so that anybody can check them with ``sha256sum``.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .corpus_table import CorpusError
from .decoding import AudioError, open_recording

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Content",
    "common_names",
    "content_of",
    "dataset_checksum",
    "files_checksum",
    "identical_recordings",
    "make_dataset",
    "relative_names",
]


_UNTOLD = 0x7F000000  # lengths from here on are what programs write when they cannot know yet


@dataclass(frozen=True)
class Content:
    """What a file decodes to.

    Attributes:
        digest: SHA-256 of sampling rate and mono samples, in hex.
        problem: What the decoder complained of while it read as far as it could, or None.
    """

    digest: str
    problem: str | None = None


def make_dataset(
    paths: Sequence[str],
    labels: Sequence[str],
    speakers: Sequence[str | None],
    sentences: Sequence[str | None],
    *,
    names: Sequence[str],
    extras: Mapping[str, Sequence[str | None]] | None = None,
) -> Dataset:
    """Put recordings into the shape that everything behind this module expects.

    Args:
        paths: Files.
        labels: Class of each file, one of ``names``.
        speakers: Speaker of each file, None where unknown.
        sentences: Sentence of each file, None where unknown.
        names: All classes, in the order of their numbers.
        extras: More columns of text.

    Returns:
        Dataset with the columns path, audio (not decoded), label (ClassLabel), speaker, sentence
        and the extras, in the order given.

    Raises:
        CorpusError: A path cannot be written as UTF-8.
    """
    from datasets import Audio, ClassLabel, Dataset, Features, Value

    for path in paths:
        if problem := unwritable_name(path):
            raise CorpusError(problem)
    text = Value("string")
    index = {name: number for number, name in enumerate(names)}
    columns: dict[str, Any] = {
        "path": list(paths),
        "audio": list(paths),
        "label": [index[label] for label in labels],
        "speaker": list(speakers),
        "sentence": list(sentences),
    }
    features: dict[str, Any] = {column: text for column in columns}
    features["label"] = ClassLabel(names=list(names))
    for column, values in (extras or {}).items():
        columns[column], features[column] = list(values), text
    dataset = Dataset.from_dict(columns, features=Features(features))
    # Building with Audio encodes, which needs torchcodec; casting a column of paths does not.
    return dataset.cast_column("audio", Audio(decode=False))


def unwritable_name(path: str) -> str | None:
    """What is wrong with a path that no table can hold, or None."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{path!r}: the name is not valid UTF-8; rename the file, or the folder it lies in"
    return None


def content_of(source: str | bytes) -> Content:
    """Decode a recording, and tell its content by a digest.

    A file that has not changed since is not decoded again in this process.

    Args:
        source: A path, or the content of a file.

    Returns:
        The digest; equal for equal samples, in any lossless container. Channels are averaged.

    Raises:
        AudioError: The recording cannot be decoded at all.
    """
    if isinstance(source, bytes):
        return _decode(source)
    try:
        status = os.stat(source)
    except OSError:
        return _decode(source)  # raises, and says what is wrong
    return _decode_file(source, status.st_size, status.st_mtime_ns)


def identical_recordings(dataset: Dataset) -> list[list[int]]:
    """Find the rows that are one recording under several names.

    Rows whose recording cannot be read are no one's twin: whoever needs them says what is wrong.

    Args:
        dataset: Any dataset; recordings are its column ``audio``, else ``path``.

    Returns:
        Groups of two or more row numbers, each in ascending order.
    """
    twins: dict[str, list[int]] = defaultdict(list)
    for row, source in enumerate(_sources(dataset)):
        try:
            twins[content_of(source).digest].append(row)
        except AudioError:
            continue
    return [rows for rows in twins.values() if len(rows) > 1]


def relative_names(dataset: Dataset) -> list[str]:
    """Names of the recordings below the deepest folder that holds them all, ``/``-separated."""
    return common_names(list(dataset["path"]))


def common_names(paths: Sequence[str]) -> list[str]:
    """`relative_names` of files given by path."""
    if not paths:
        return []
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [os.path.relpath(os.path.abspath(path), folder).replace(os.sep, "/") for path in paths]


def dataset_checksum(dataset: Dataset) -> str:
    """Fingerprint the files of a dataset, wherever they lie and in whatever order.

    Returns:
        SHA-256, in hex, of the lines that ``sha256sum`` prints for the files, sorted by name. In a
        flat folder that is ``sha256sum * | sha256sum``.

    Raises:
        CorpusError: A file cannot be read.
    """
    return files_checksum(dict(zip(relative_names(dataset), _sources(dataset), strict=True)))


def files_checksum(files: Mapping[str, str | bytes]) -> str:
    """`dataset_checksum` of files given by name: a path, or the content itself, for each."""
    total = hashlib.sha256()
    for name, source in sorted(files.items(), key=lambda item: os.fsencode(item[0])):
        digest = hashlib.sha256(source if isinstance(source, bytes) else b"")
        if isinstance(source, str):
            try:
                with open(source, "rb") as file:
                    while chunk := file.read(2**20):
                        digest.update(chunk)
            except OSError as error:
                raise CorpusError(f"{source}: cannot be read ({error.strerror})") from error
        total.update(os.fsencode(f"{digest.hexdigest()}  {name}\n"))
    return total.hexdigest()


def _sources(dataset: Dataset) -> Iterator[str | bytes]:
    """The recording of each row, as a path or as the content of a file."""
    from datasets import Audio

    if "audio" not in dataset.column_names:
        yield from dataset["path"] if "path" in dataset.column_names else ()
        return
    if isinstance(dataset.features["audio"], Audio):
        dataset = dataset.cast_column("audio", Audio(decode=False))
    for audio in dataset["audio"]:
        yield audio["bytes"] if audio["bytes"] is not None else audio["path"]


@functools.lru_cache(maxsize=2**17)
def _decode_file(path: str, size: int, modified: int) -> Content:
    return _decode(path)


def _decode(source: str | bytes) -> Content:
    with _complaints() as complaints, open_recording(source) as recording:
        digest = hashlib.sha256(f"{recording.sampling_rate}\n".encode())
        for block in recording.blocks:
            mono = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
            digest.update(mono.astype("<f4").tobytes())
    problem = complaints[0] if complaints else None
    return Content(digest.hexdigest(), problem or _cut_short(source))


def _cut_short(source: str | bytes) -> str | None:
    """What is missing at the end of a WAV file, which decoders pass over in silence."""
    if isinstance(source, bytes):
        return None
    with open(source, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
        if (riff, wave) != (b"RIFF", b"WAVE"):
            return None
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            missing = file.tell() + length - size
            if name == b"data" and missing > 0 and length < _UNTOLD:
                return f"{source}: cut short, {missing} of {length} bytes of samples are missing"
            file.seek(length + length % 2, os.SEEK_CUR)
    return None


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what the decoder logs: a damaged file is decoded as far as it goes."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener, logger = Listener(logging.WARNING), logging.getLogger("timnet_hf.decoding")
    logger.addHandler(listener)
    try:
        yield heard
    finally:
        logger.removeHandler(listener)
