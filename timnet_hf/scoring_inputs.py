# SPDX-License-Identifier: Apache-2.0
"""What is to be scored: a folder, a manifest or Parquet, as numbered shards of recordings.

========================  =======================================================================
a folder                  every recording below it, in natural order, as `find_audio_files` lists
                          them; or, where it holds none, the Parquet files in it
``.csv``, ``.jsonl``      a manifest: column ``path`` (or ``file_name``), relative to the manifest;
                          all other columns are carried into the output, as text
``.parquet``              a column of audio: content as ``struct<bytes, path>`` (how `datasets`
                          stores it) or plain binary, or paths as text, relative to the Parquet
                          file; all other columns are carried into the output, except those that
                          hold binary content
========================  =======================================================================

Folders and manifests are read once, as a stream, into a listing, a Parquet file. A shard is one or
more of its row groups, or of those of Parquet that is given; they are never split.
Either way any worker can read any shard by itself, and nobody holds more than one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .audio import natural_key
from .scoring_listing import (
    LISTED,
    PATH_COLUMNS,
    ScoringError,
    free_name,
    list_recordings,
    read_manifest,
    usual_size,
    write_listing,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: Names of a Parquet file's column of audio.
AUDIO_COLUMNS = ("audio", *PATH_COLUMNS)

_READ_ROWS = 8  # recordings of given Parquet held at a time
_BUFFER = 2**20


@dataclass(frozen=True)
class Item:
    """One recording to score.

    Attributes:
        index: Its place in the input.
        path: What the output calls it.
        source: A file's name, a file's content, or None where the input has neither.
        problem: Why not, where it could not be read.
    """

    index: int
    path: str
    source: str | bytes | None
    problem: str = "the input has neither a file nor content for it"


@dataclass(frozen=True)
class Shard:
    """Row groups ``groups[0]`` up to ``groups[1]`` of a table.

    Attributes:
        table: Which of the input's tables.
        groups: The first row group, and the one behind the last.
        first: Place of the first row in the whole input.
        rows: How many there are.
    """

    table: int
    groups: tuple[int, int]
    first: int
    rows: int


@dataclass(frozen=True)
class Inputs:
    """The whole input.

    Attributes:
        tables: Parquet files that are the input, or the listing that was made of it.
        audio: Their column that holds the recordings.
        carried: Their columns that go into the output.
        shards: All rows of all tables, each in one shard.
        sha256: Checksum of the input: names and the manifest's other columns; of Parquet that is
            given, sizes and times. Of the recordings themselves it knows nothing.
        listed: Whether the table is a listing, so the recordings are names of files.
    """

    tables: tuple[str, ...]
    audio: str
    carried: tuple[str, ...]
    shards: tuple[Shard, ...]
    sha256: str
    listed: bool

    @property
    def rows(self) -> int:
        """Number of recordings."""
        return sum(shard.rows for shard in self.shards)


def open_inputs(
    source: str | Path,
    listing: Path,
    shard_size: int | None = None,
    audio_column: str | None = None,
    output: Path | None = None,
) -> Inputs:
    """Find out what is to be scored.

    Args:
        source: A folder, a manifest, or Parquet.
        listing: Where the listing of a folder or manifest is written.
        shard_size: Recordings in a shard, about; by default a 64th of the input, 32 to 1,024.
        audio_column: Parquet's column of recordings; by default ``audio``, else the only one that
            holds content, else the names of files in ``path`` or ``file_name``.
        output: A file that is no input, though it may lie among the Parquet files of a folder.

    Raises:
        ScoringError: There is no such input, it holds nothing, or cannot be understood.
    """
    source = Path(source)
    if not source.exists():
        raise ScoringError(f"{source}: no such file or folder; check the path")
    kind = source.suffix.lower()
    if source.is_dir():
        found = list_recordings(source)
        first = next(found, None)
        tables = [] if first else sorted(source.glob("*.parquet"), key=natural_key)
        if output is not None:
            tables = [path for path in tables if path.absolute() != output.absolute()]
        if tables:
            return _given(tables, shard_size, audio_column)
        if first is None:
            raise ScoringError(f"{source}: holds no recordings and no Parquet files")
        rows: Iterable[dict[str, str | None]] = (
            {"path": name} for name in itertools.chain([first], found)
        )
        # Where the command is given matters only to a name that depends on it.
        columns, folder = ["path"], "" if source.is_absolute() else os.getcwd()
    elif kind == ".parquet":
        return _given([source], shard_size, audio_column)
    elif kind in (".csv", ".jsonl", ".ndjson"):
        columns, rows = read_manifest(source, kind)
        folder = os.path.abspath(source.parent)
    else:
        raise ScoringError(
            f"{source}: not a manifest; give a folder, a .csv, .jsonl or .parquet file, or use "
            "`timnet predict` for single recordings"
        )
    digest = write_listing(rows, columns, folder, listing, shard_size)
    inputs = _table_inputs([listing], LISTED, shard_size, digest, listed=True)
    if not inputs.rows:
        raise ScoringError(f"{source}: holds no rows")
    return inputs


def read_items(inputs: Inputs, shard: Shard) -> Iterator[Item]:
    """Read a shard's recordings one by one, in order; a row that cannot be read is an item too."""
    table = inputs.tables[shard.table]
    for index, row in enumerate(_rows(inputs, shard), start=shard.first):
        number = f"#{index}" if inputs.listed else f"{Path(table).name}#{index}"
        if isinstance(row, str):
            yield Item(index, number, None, row)
            continue
        source, inner = row[inputs.audio], None
        if isinstance(source, dict):
            inner = source.get("path")
            source = source["bytes"] if source.get("bytes") is not None else inner
        if inputs.listed and isinstance(source, bytes):
            source = os.fsdecode(source)  # a listing's names, whatever bytes they hold
        elif isinstance(source, str):
            inner, source = inner or source, os.path.join(os.path.dirname(table), source)
        named = row.get("path")  # beside audio it may be a number
        path = inner if named is None else str(named)
        yield Item(index, path or number, source or None)


def _rows(inputs: Inputs, shard: Shard) -> Iterator[dict[str, Any] | str]:
    """A shard's rows; of one that cannot be read, why not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [inputs.audio, *(["path"] if "path" in inputs.carried else [])]
    read = 0
    # Content is large; names are not, and a call for a few of them takes longer than they do.
    together = shard.rows if inputs.listed else _READ_ROWS
    try:
        table = inputs.tables[shard.table]
        with pq.ParquetFile(table, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(together, range(*shard.groups), columns):
                try:
                    rows: list[dict[str, Any] | str] = batch.to_pylist()
                except UnicodeDecodeError:  # which of them it is, one has to try
                    rows = [_row(batch.slice(place, 1)) for place in range(len(batch))]
                read += len(rows)
                yield from rows
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk or network, which may do better another time
        reason = " ".join(str(error).split())
        for _ in range(shard.rows - read):
            yield f"its part of {table} is damaged ({reason})"


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"its text is not UTF-8 ({error})"
    return row


def read_carried(inputs: Inputs, shard: Shard) -> pa.Table:
    """Read the columns that go into the output as they are; empty where they are damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(inputs.carried)
    with pq.ParquetFile(inputs.tables[shard.table]) as file:
        try:
            table = file.read_row_groups(range(*shard.groups), columns=columns)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            kinds = [file.schema_arrow.field(name) for name in columns]
            empty = [pa.nulls(shard.rows, kind.type) for kind in kinds]
            return pa.table(empty, names=columns)
    return table.replace_schema_metadata(None)


def _given(tables: list[Path], shard_size: int | None, audio_column: str | None) -> Inputs:
    """Parquet files as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    schema = None
    for path in tables:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        try:
            found = pq.read_schema(path).remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise ScoringError(f"{path}: not a Parquet file ({error})") from None
        if schema is not None and not found.equals(schema):
            raise ScoringError(f"{path}: its columns differ from those of {tables[0].name}")
        schema = found
    assert schema is not None
    inputs = _table_inputs(
        tables, _audio_column(tables[0], schema, audio_column), shard_size, digest.hexdigest()
    )
    if not inputs.rows:
        raise ScoringError(f"{tables[0]}: holds no rows")
    return inputs


def _audio_column(table: Path, schema: pa.Schema, wanted: str | None) -> str:
    import pyarrow.types as is_

    def kind_of(name: str) -> pa.DataType:
        kind = schema.field(name).type
        # A text column with few different values, as pandas writes it, is a dictionary.
        return kind.value_type if is_.is_dictionary(kind) else kind

    def names_files(name: str) -> bool:
        return bool(is_.is_string(kind_of(name)) or is_.is_large_string(kind_of(name)))

    def can_be(name: str) -> bool:
        kind = kind_of(name)
        if is_.is_struct(kind):
            return {"bytes", "path"} & {field.name for field in kind} != set()
        return _is_binary(kind) or names_files(name)

    names = list(schema.names)
    if wanted is not None:
        if wanted not in names or not can_be(wanted):
            raise ScoringError(f"{table}: no column {wanted!r} of audio; it has {', '.join(names)}")
        return wanted
    if "audio" in names and can_be("audio"):
        return "audio"
    # Content goes before names: these may be those that the recordings once had elsewhere.
    found = [name for name in names if can_be(name) and not names_files(name)]
    if not found:
        found = [name for name in AUDIO_COLUMNS if name in names and can_be(name)][:1]
    if len(found) != 1:
        raise ScoringError(
            f"{table}: which column is the audio? Name it with --audio-column; the columns are: "
            + ", ".join(names)
        )
    return found[0]


def _table_inputs(
    tables: Sequence[Path], audio: str, shard_size: int | None, digest: str, listed: bool = False
) -> Inputs:
    """Join neighbouring row groups up to the size of a shard."""
    import pyarrow.parquet as pq

    size = shard_size or usual_size(sum(pq.read_metadata(path).num_rows for path in tables))
    shards: list[Shard] = []
    total = 0
    for number, path in enumerate(tables):
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            start = rows = 0
            for group in range(file.num_row_groups):
                more = file.metadata.row_group(group).num_rows
                if rows and rows + more > size:
                    shards.append(Shard(number, (start, group), total, rows))
                    total, start, rows = total + rows, group, 0
                rows += more
            if rows:
                shards.append(Shard(number, (start, file.num_row_groups), total, rows))
                total += rows
    carried = tuple(field.name for field in schema if field.name != audio and _is_plain(field.type))
    paths = tuple(os.path.abspath(path) for path in tables)
    return Inputs(paths, audio, carried, tuple(shards), digest, listed)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    return bool(is_.is_binary(kind) or is_.is_large_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    if is_.is_nested(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    return not _is_binary(kind)


__all__ = [
    "AUDIO_COLUMNS",
    "PATH_COLUMNS",
    "Inputs",
    "Item",
    "ScoringError",
    "Shard",
    "free_name",
    "open_inputs",
    "read_carried",
    "read_items",
]
