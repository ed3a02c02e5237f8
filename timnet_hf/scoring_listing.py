# SPDX-License-Identifier: Apache-2.0
"""The listing: what a folder or a manifest names, as a Parquet file that any worker can read."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .audio import AUDIO_EXTENSIONS, natural_key
from .output_folder import in_one_step

logger = logging.getLogger(__name__)

#: Names of a manifest's column of recordings.
PATH_COLUMNS = ("path", "file_name")

#: The listing's column of files.
LISTED = "file"

#: Recordings in a shard, unless told: enough to be worth a file, and no more than a few minutes'
#: work, so that every core has some and little is lost in a crash.
_SMALLEST_SHARD, _LARGEST_SHARD, _USUAL_SHARDS = 32, 1024, 64


class ScoringError(ValueError):
    """Scoring cannot start or go on; the message says why and what to do."""


def list_recordings(folder: Path) -> Iterator[str]:
    """The order of `find_audio_files`, without holding more than one path's folders at a time."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        logger.warning("%r: cannot be listed (%s); left out", str(folder), error.strerror)
        return
    for entry in sorted(found, key=lambda entry: natural_key(entry.name)):
        if entry.is_dir(follow_symlinks=False):
            yield from list_recordings(folder / entry.name)
        elif entry.name.lower().endswith(AUDIO_EXTENSIONS) and not entry.is_dir():
            yield str(folder / entry.name)


def read_manifest(source: Path, kind: str) -> tuple[list[str], Iterator[dict[str, str | None]]]:
    """Columns and rows of a manifest; the rows are read as they are asked for."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                columns = list(csv.DictReader(file, strict=True).fieldnames or ())
            else:  # a line may lack a key, so all of them have to be looked at
                columns = list(
                    dict.fromkeys(key for row in _json_rows(source, file) for key in row)
                )
    except UnicodeDecodeError as error:
        raise ScoringError(f"{source}: cannot be read as UTF-8 text ({error})") from None
    except csv.Error as error:
        raise ScoringError(f"{source}: its first line is not CSV ({error})") from None
    named = next((name for name in PATH_COLUMNS if name in columns), None)
    if named is None:
        shown = ", ".join(map(str, columns)) or "none"
        raise ScoringError(f"{source}: no column `path`; its columns are: {shown}")
    if len(set(columns)) < len(columns):
        raise ScoringError(f"{source}: two columns have the same name; rename one")

    def rows() -> Iterator[dict[str, str | None]]:
        with source.open(encoding="utf-8-sig", newline="") as file:
            # Not strict, a quote that nobody closes would make one row of all that follow.
            lines = csv.DictReader(file, strict=True)
            read: Any = lines if kind == ".csv" else _json_rows(source, file)
            try:
                for row in read:
                    text = {name: _as_text(row.get(name)) for name in columns if name != named}
                    yield {"path": _as_text(row.get(named)), **text}
            except UnicodeDecodeError as error:
                raise ScoringError(f"{source}: cannot be read as UTF-8 text ({error})") from None
            except csv.Error as error:
                raise ScoringError(
                    f"{source}: not CSV behind line {lines.line_num} ({error}); look for a quote "
                    "that is not closed"
                ) from None

    return ["path", *(name for name in columns if name != named)], rows()


def _json_rows(source: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ScoringError(f"{source}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ScoringError(f"{source}: line {number} is not an object like {{'path': …}}")
            yield row


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def write_listing(
    rows: Iterable[dict[str, str | None]],
    columns: Sequence[str],
    folder: str,
    listing: Path,
    shard_size: int | None,
) -> str:
    """Write row groups that shards can be made of; return the checksum of all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if LISTED in columns:  # the listing's own column; the user's may not be lost over it
        columns = [free_name(name, columns) if name == LISTED else name for name in columns]
    schema = pa.schema([(LISTED, pa.binary()), *((name, pa.string()) for name in columns)])
    digest = hashlib.sha256(json.dumps([folder, *columns]).encode())
    with in_one_step(listing) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        rows, written = iter(rows), 0
        while chunk := list(itertools.islice(rows, shard_size or usual_size(written))):
            written += len(chunk)
            table: list[dict[str, Any]] = []
            for row in chunk:
                values = dict(zip(columns, row.values(), strict=True))
                digest.update(json.dumps(list(values.values())).encode())
                file = _file_name(folder, values["path"])
                # A name may hold bytes that are no text: the file is found by the bytes.
                table.append({LISTED: file, **{key: _shown(text) for key, text in values.items()}})
            writer.write_table(pa.Table.from_pylist(table, schema), row_group_size=len(table))
    return digest.hexdigest()


def _file_name(folder: str, path: str | None) -> bytes | None:
    try:
        return os.fsencode(os.path.abspath(os.path.join(folder, path))) if path else None
    except UnicodeEncodeError:  # half a character: no file can be called that
        return None


def _shown(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def usual_size(rows: int) -> int:
    """Recordings in a shard of an input of so many."""
    return min(_LARGEST_SHARD, max(_SMALLEST_SHARD, -(-rows // _USUAL_SHARDS)))


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name of a column, with ``input_`` before it as often as it is taken."""
    taken = set(taken)
    while name in taken:
        name = f"input_{name}"
    return name


__all__ = [
    "LISTED",
    "PATH_COLUMNS",
    "ScoringError",
    "free_name",
    "list_recordings",
    "read_manifest",
    "usual_size",
    "write_listing",
]
