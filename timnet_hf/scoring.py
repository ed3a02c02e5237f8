# SPDX-License-Identifier: Apache-2.0
"""Bulk scoring: any number of recordings in, one Parquet file out, one row a recording.

Beside the output lies a folder while the work is going on::

    OUT.parquet.shards/
      plan.json               what was fixed before: input, model, options
      inputs.parquet          the listing of a folder or manifest
      shard-00000.parquet …   what is done, each written in one step
      .lock                   held by the process at work

A run that was killed goes on where it stopped, on any number of workers, on this machine or on
Ray: a shard is scored by the same function everywhere, and its content depends on nothing but the
shard. A run with another input, model or option is refused. In the end the shards are joined.

Columns: ``index`` (place in the input), ``path``, the input's other columns (``input_…`` where a
name is taken), ``label``, ``score``, ``p_<label>`` for every label, ``duration`` (seconds),
``sampling_rate`` (of the file, Hz), ``silent``, and ``error``: what is wrong with a recording that
has no scores, else null.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output_folder import replace_durably, sole_use, told_when_full, write_json
from .prediction import load_model
from .scoring_inputs import (
    Inputs,
    ScoringError,
    Shard,
    free_name,
    open_inputs,
    read_carried,
    read_items,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from .scoring_batches import Scored, Scorer

#: Where shards are scored.
ENGINES = ("local", "ray")

#: Written into plans and outputs; another layout of either gets another number.
FORMAT = 1

BATCH_SIZE = 16

_JOINED_ROWS = 2**16  # rows of a row group of the output, at least


@dataclass(frozen=True)
class ShardReport:
    """What became of one shard: its number, its rows, how many have an error, seconds of sound."""

    number: int
    rows: int
    errors: int
    audio_seconds: float


@dataclass
class Summary:
    """What a run did.

    Attributes:
        output: The Parquet file.
        rows: Recordings in it.
        errors: Those without scores.
        audio_seconds: Sound scored by this run; what an earlier run had done is not counted.
        wall_seconds: How long this run took.
    """

    output: Path
    rows: int
    errors: int = 0
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0


#: Called with recordings done, recordings in all, and seconds of sound scored by this run.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to score any shard; it can be pickled.

    Attributes:
        inputs: See `open_inputs`.
        scorer: A pickled `Scorer`: the model travels with the job, not by name.
        folder: Where shards are written.
    """

    inputs: Inputs
    scorer: bytes = field(repr=False)
    folder: str

    def load(self) -> Scorer:
        """Unpack the model."""
        scorer: Scorer = pickle.loads(self.scorer)
        return scorer

    def shard_file(self, number: int) -> Path:
        """Where a shard's rows lie when they are done."""
        return Path(self.folder) / f"shard-{number:05d}.parquet"


def score(
    source: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    shard_size: int | None = None,
    batch_size: int = BATCH_SIZE,
    audio_column: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Score every recording of an input into one Parquet file.

    Args:
        source: A folder, a manifest or Parquet, see `timnet_hf.scoring_inputs`.
        output: The Parquet file to write.
        model: See `timnet_hf.prediction.load_model`.
        engine: One of ``ENGINES``.
        address: Of a running Ray cluster; without it Ray runs on this machine.
        workers: Processes; by default one a core (of the cluster).
        shard_size: Recordings that are done or not done as one; by default a 64th of the input, 32
            to 1,024.
        batch_size: Recordings that go through the network together.
        audio_column: Parquet's column of recordings, where it is not plain which.
        progress: See :data:`Progress`.

    Raises:
        ScoringError: The input cannot be understood; the output belongs to another run, or another
            process is at work on it.
        ModelError: The model cannot be loaded.
        ImportError: The engine is not installed.
    """
    if engine not in ENGINES:
        raise ScoringError(f"Unknown engine {engine!r}: {', '.join(ENGINES)}.")
    if any(value is not None and value < 1 for value in (workers, shard_size, batch_size)):
        raise ScoringError("workers, shard_size and batch_size must be at least 1")
    if address is not None and engine != "ray":
        raise ScoringError("--address is that of a Ray cluster; add --engine ray")
    from .scoring_batches import Scorer

    started = time.perf_counter()
    output = Path(output)
    folder = output.with_name(output.name + ".shards")
    network, extractor = load_model(model)
    scorer = Scorer(network, extractor, batch_size)
    options = {"shard_size": shard_size, "batch_size": batch_size, "audio_column": audio_column}
    with _claimed(folder, output):
        listing = folder / "inputs.parquet"
        inputs = open_inputs(source, listing, shard_size, audio_column, output)
        fixed = {"format": FORMAT, "input": inputs.sha256, "model": scorer.sha256, **options}
        job = Job(inputs, pickle.dumps(scorer), str(folder.absolute()))
        columns = output_schema(job, scorer)
        finished = _finished(output, fixed)
        summary = Summary(output, inputs.rows, errors=finished or 0)
        if finished is None:
            _claim_plan(folder, fixed)
            todo = [n for n, shard in enumerate(inputs.shards) if not _is_done(job, n, shard)]
            done = inputs.rows - sum(inputs.shards[number].rows for number in todo)
            tell = progress or (lambda *_: None)
            tell(done, inputs.rows, 0.0)
            for report in _run(job, todo, engine, workers, address):
                done += report.rows
                summary.audio_seconds += report.audio_seconds
                tell(done, inputs.rows, summary.audio_seconds)
            summary.errors = _join(job, output, columns, fixed)
        _clear(folder)
    summary.wall_seconds = time.perf_counter() - started
    return summary


def score_shard(job: Job, number: int, scorer: Scorer) -> ShardReport:
    """Score one shard and write its rows in one step; doing it twice changes nothing."""
    import pyarrow.parquet as pq

    shard = job.inputs.shards[number]
    scored = scorer(read_items(job.inputs, shard))
    table = _as_table(job, shard, scored, scorer)
    target = job.shard_file(number)
    temporary = target.with_name(f".{target.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        replace_durably(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return ShardReport(
        number,
        len(scored),
        sum(one.error is not None for one in scored),
        sum(one.duration or 0.0 for one in scored),
    )


def output_schema(job: Job, scorer: Scorer) -> pa.Schema:
    """Columns of the output: ours, and between them those that the input brings along."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = [("index", pa.int64()), ("path", pa.string())]
    after = [("label", pa.string()), ("score", pa.float32())]
    after += [(f"p_{label}", pa.float32()) for label in scorer.labels]
    after += [("duration", pa.float64()), ("sampling_rate", pa.int32())]
    after += [("silent", pa.bool_()), ("error", pa.string())]
    given = pq.read_schema(job.inputs.tables[0])
    names = _shown_names(job.inputs, scorer)
    carried = [(shown, given.field(name).type) for name, shown in names.items()]
    return pa.schema(before + carried + after)


def _shown_names(inputs: Inputs, scorer: Scorer) -> dict[str, str]:
    """What the input's other columns are called in the output."""
    taken = {*_OURS, *(f"p_{label}" for label in scorer.labels)}
    shown: dict[str, str] = {}
    for name in inputs.carried:
        if name != "path":
            shown[name] = free_name(name, {*taken, *shown.values()})
    return shown


def _as_table(job: Job, shard: Shard, scored: list[Scored], scorer: Scorer) -> pa.Table:
    import pyarrow as pa

    values: dict[str, Any] = {name: [getattr(one, name) for one in scored] for name in _OURS}
    for label in scorer.labels:
        values[f"p_{label}"] = [one.scores.get(label) for one in scored]
    given = read_carried(job.inputs, shard)
    for name, shown in _shown_names(job.inputs, scorer).items():
        values[shown] = given[name]
    return pa.Table.from_pydict(values, schema=output_schema(job, scorer))


#: What `Job.shard_file` calls shards.
_SHARDS = "shard-[0-9][0-9][0-9][0-9][0-9]*.parquet"
_OURS = {"index", "path", "label", "score", "duration", "sampling_rate", "silent", "error"}


@contextmanager
def _claimed(folder: Path, output: Path) -> Iterator[None]:
    """Be the only process at work on an output; where nothing was begun, leave nothing behind."""
    if not output.parent.is_dir():
        raise ScoringError(f"{output.parent}: no such folder; make it first")
    remedy = "free some space and run the same command again: what is done is kept"
    try:
        with sole_use(folder, ScoringError), told_when_full(folder, remedy):
            foreign = [path.name for path in folder.glob("shard-*.parquet")]
            if foreign and not (folder / "plan.json").exists():
                raise ScoringError(
                    f"{folder}: holds {min(foreign)}, and no plan of a run that made it. Move it "
                    "away, or choose another output."
                )
            try:
                yield
            finally:
                if not (folder / "plan.json").exists():
                    _clear(folder)
    finally:
        with suppress(OSError):  # it holds a plan and shards
            folder.rmdir()


def _clear(folder: Path) -> None:
    """Remove what a run keeps there, the plan last: what lies there without it is not ours."""
    shards = (_SHARDS, f".{_SHARDS}.*.tmp") if (folder / "plan.json").exists() else ()
    listing = ("inputs.parquet", ".inputs.parquet.tmp")
    for pattern in (*shards, *listing, ".joined.tmp", ".plan.json*.tmp", "plan.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _claim_plan(folder: Path, fixed: dict[str, Any]) -> None:
    """Note whose shards lie in a folder; never mix those of two runs."""
    plan = folder / "plan.json"
    if not plan.exists():
        write_json(plan, fixed)
        return
    try:
        noted = dict(json.loads(plan.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ScoringError(
            f"{plan}: is damaged ({error}). Remove {folder} and run the command again."
        ) from error
    if differing := sorted(key for key in fixed if fixed[key] != noted.get(key)):
        raise ScoringError(
            f"{folder}: holds the shards of a run with another {', '.join(differing)}. Go on with "
            "the same, choose another output, or remove the folder."
        )


def _finished(output: Path, fixed: dict[str, Any]) -> int | None:
    """How many errors a finished output of this very run has; None where there is no output."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not output.exists():
        return None
    try:
        metadata = pq.read_metadata(output).metadata or {}
        noted = json.loads(metadata.get(b"timnet", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        noted = {}
    if noted.get("fixed") != fixed:
        raise ScoringError(
            f"{output}: is there already, and not from this input, model and options. Choose "
            "another output, or remove it."
        )
    return int(noted["errors"])


def _is_done(job: Job, number: int, shard: Shard) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_metadata(job.shard_file(number)).num_rows == shard.rows)
    except (pa.ArrowException, OSError):  # not there, or the machine went down while it was written
        return False


def _run(
    job: Job, todo: list[int], engine: str, workers: int | None, address: str | None
) -> Iterable[ShardReport]:
    if not todo:
        return ()
    if engine == "ray":
        from .scoring_ray import run_on_ray

        return run_on_ray(job, todo, workers, address)
    from .scoring_local import run_here

    return run_here(job, todo, workers)


def _join(job: Job, output: Path, columns: pa.Schema, fixed: dict[str, Any]) -> int:
    """Join the shards in order, in one step; return how many rows have an error."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    temporary = Path(job.folder) / ".joined.tmp"
    rows = errors = 0
    held: list[pa.Table] = []
    with pq.ParquetWriter(temporary, columns) as writer:
        for number, shard in enumerate(job.inputs.shards):
            try:
                table = pq.read_table(job.shard_file(number), partitioning=None)
                first, last = pc.min_max(table["index"]).as_py().values()
                found = (len(table), first, last)
            except (pa.ArrowException, OSError):
                found = None
            if found != (shard.rows, shard.first, shard.first + shard.rows - 1):
                job.shard_file(number).unlink(missing_ok=True)
                raise ScoringError(
                    f"{job.shard_file(number)}: was damaged, and is removed. Run the same command "
                    "again: all others are kept."
                )
            errors += len(table) - table["error"].null_count
            rows += len(table)
            held.append(table)
            if sum(map(len, held)) >= _JOINED_ROWS or number == len(job.inputs.shards) - 1:
                writer.write_table(pa.concat_tables(held))
                held = []
        writer.add_key_value_metadata({"timnet": json.dumps({"fixed": fixed, "errors": errors})})
    if rows != job.inputs.rows:
        raise ScoringError(f"{output}: {rows} rows for {job.inputs.rows} recordings")
    replace_durably(temporary, output)
    return errors


__all__ = [
    "BATCH_SIZE",
    "ENGINES",
    "Job",
    "Progress",
    "ScoringError",
    "ShardReport",
    "Summary",
    "output_schema",
    "score",
    "score_shard",
]
