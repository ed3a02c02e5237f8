# SPDX-License-Identifier: Apache-2.0
"""The recordings to learn from, and the first of two jobs: train one model on all of them.

The other is to cross-validate a recipe, see :mod:`timnet_hf.crossvalidation_run`.

Script and command line call these functions, so a result never depends on who asked for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output_folder import remove_stale, sole_use, told_when_full, write_json
from .ranks import is_first
from .recipes import Recipe

if TYPE_CHECKING:
    from datasets import Dataset


Progress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a detail."""


@dataclass
class Data:
    """Recordings to learn from.

    Attributes:
        name: A corpus of the paper, or the name of the folder with the user's own data.
        corpora: The known corpora that they are; none where they are one's own.
        dataset: See :mod:`timnet_hf.corpora`.
        sha256: Checksum of names and contents.
    """

    name: str
    corpora: tuple[str, ...]
    dataset: Dataset
    sha256: str

    @property
    def corpus(self) -> str | None:
        """The known corpus, where it is one and no other."""
        return self.corpora[0] if len(self.corpora) == 1 else None


def load_data(data_dir: str | Path, corpus: str | None = None, *, strict: bool = True) -> Data:
    """Load a known corpus, several of them, or a folder of the user's own recordings.

    Args:
        data_dir: Folder that holds the recordings.
        corpus: A known corpus; ``emodb+ravdess`` for two of them as one, under the union of their
            labels; None for recordings of one's own.
        strict: Refuse a copy of a corpus that is not as published, see
            :func:`timnet_hf.corpora.load_corpus`.

    Raises:
        CorpusError: Something is missing or cannot be read; the message names it.
        CrossValidationError: A corpus is named twice.
    """
    from .corpora import CORPORA, dataset_checksum, find_corpus, load_corpus, load_folder

    if corpus is not None and "+" in corpus:
        from .joined_corpora import join_corpora

        return join_corpora(
            [load_data(data_dir, part, strict=strict) for part in corpus.split("+")]
        )
    if corpus is None:
        dataset = load_folder(data_dir)
        name = Path(data_dir).resolve().name or "own"
        if set(name.split("-")) <= set(CORPORA):  # whose results these are not
            name = f"own-{name}"
        return Data(name, (), dataset, _checksum_with_labels(dataset))
    table = find_corpus(corpus)
    dataset = load_corpus(table.name, data_dir, strict=strict)
    checksum = _checksum_with_labels if table.annotations else dataset_checksum
    return Data(table.name, (table.name,), dataset, checksum(dataset))


def _checksum_with_labels(dataset: Dataset) -> str:
    """Checksum of recordings and of what a file beside them says of them, and may correct."""
    from .corpora import dataset_checksum

    said = [dataset.features["label"].names]
    said += [
        list(dataset[name])
        for name in ("label", "speaker", "sentence")
        if name in dataset.column_names
    ]
    text = dataset_checksum(dataset) + json.dumps(said)
    return hashlib.sha256(text.encode()).hexdigest()


def train_to_folder(
    data: Data,
    recipe: Recipe,
    output_dir: str | Path,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    calibration: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Path:
    """Train on all recordings and leave a folder that is ready for the Hub.

    Checkpoints lie in ``<output_dir>/trainer`` until the training is done.

    Args:
        data: The recordings.
        recipe: See :mod:`timnet_hf.recipes`.
        output_dir: Where the model goes.
        seed: Of weights, order and augmentation.
        overrides: ``TrainingArguments`` that win over the recipe's.
        config: Overrides of the recipe's network.
        resume: Go on from the newest checkpoint.
        calibration: Inner folds, 0 to 4, each one more training on some of the speakers, to fit
            the temperature on that goes into the config; 0 for none.
        command: How the run was asked for, for the record.
        progress: See :data:`Progress`.

    Raises:
        TrainingError: Nothing to resume, or what is there belongs to another training; checkpoints
            of an unfinished training would be overwritten; another process trains there; a label
            without recordings.
        HubError: The folder is some other project's.
        AudioError: Recordings cannot be read.
        OSError: The folder cannot be written to, or the disk is full.
    """
    from .model_folder import refuse_another_project
    from .training import TrainingError

    output_dir = Path(output_dir)
    train = partial(
        _train_to_folder,
        data,
        recipe,
        output_dir,
        seed=seed,
        overrides=overrides,
        config=config,
        resume=resume,
        calibration=calibration,
    )
    if not is_first():  # another process claims the folder, and writes for all
        return train(command="", progress=None)
    remedy = "free some space and go on with --resume: what was saved before is whole"
    with sole_use(output_dir, TrainingError), told_when_full(output_dir, remedy):
        remove_stale(output_dir)
        refuse_another_project(output_dir)  # before hours of training, not after
        return train(command=command, progress=progress)


def _train_to_folder(
    data: Data,
    recipe: Recipe,
    output_dir: Path,
    *,
    seed: int,
    overrides: dict[str, Any] | None,
    config: dict[str, Any] | None,
    resume: bool,
    calibration: int,
    command: str,
    progress: Progress | None,
) -> Path:
    from .calibration import INNER_FOLDS, fitted_record, held_out_logits
    from .feature_store import compute_features
    from .hub import save_model_folder
    from .protocols import inner_folds
    from .provenance import versions
    from .training import ProgressReport, SaveReport, build_arguments, build_extractor, train

    recipe = recipe.for_corpus(data.corpus)
    clock = time.perf_counter()
    checkpoints = output_dir / "trainer"
    # When the training began, and how long it has taken, in all the parts it was made in.
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    begun: dict[str, Any] = {"started": now, "seconds": 0}
    taken = checkpoints / "time.json"
    if resume:
        known = taken.exists()
        begun = json.loads(taken.read_text(encoding="utf-8")) if known else dict.fromkeys(begun)

    def seconds() -> int | None:
        before = begun["seconds"]
        return None if before is None else round(before + time.perf_counter() - clock)

    def note_time() -> None:
        if is_first():
            write_json(taken, {**begun, "seconds": seconds()})

    arguments = build_arguments(
        recipe,
        checkpoints,
        seed,
        {
            "save_strategy": "epoch",
            "save_total_limit": 2,
            "disable_tqdm": progress is not None or not is_first(),
            **(overrides or {}),
        },
    )
    fixed = {
        "recipe": recipe.to_dict(),
        "config": config or {},
        "seed": seed,
        "calibration": calibration,
        "data": data.sha256,
        "training arguments": _without_secrets(overrides or {}),
    }
    if is_first():
        _claim_checkpoints(checkpoints, fixed, resume)
    extractor = build_extractor(recipe, *data.corpora)
    store = compute_features(
        data.dataset, extractor, recipe.augmentation.speeds, named_progress(progress, "features")
    )
    temperature: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    divided: dict[str, Any] = {"calibration": 0}
    if calibration:
        inner = inner_folds(data.dataset, range(len(store)), INNER_FOLDS)
        divided = {"calibration": min(calibration, len(inner)), "inner_folds": len(inner)}
        inner = inner[:calibration]
        note = checkpoints / "temperature.json"
        if not (resume and note.exists()):
            logits, labels = held_out_logits(
                store, inner, recipe, extractor, seed, config, overrides
            )
            write_json(note, fitted_record(logits, labels))
        held_out = json.loads(note.read_text(encoding="utf-8"))
        temperature = {"temperature": held_out.pop("temperature"), "apply_temperature": True}
    shown = named_progress(progress, "training")
    trained = train(
        store,
        range(len(store)),
        recipe,
        extractor,
        arguments,
        config={**(config or {}), **temperature},
        resume=resume,
        callbacks=[SaveReport(note_time), *([ProgressReport(shown)] if shown else [])],
    )
    if not is_first():
        return output_dir
    record = {
        "corpus": data.name,
        "recipe": recipe.to_dict(),
        "overrides": _without_secrets(overrides or {}),
        "config": config or {},
        "seed": seed,
        **divided,
        "held_out": held_out,
        "labels": store.label_names,
        "parameters": trained.model.num_parameters(only_trainable=True),
        "data": {"files": len(store), "sha256": data.sha256},
        "versions": versions(),
        "command": command,
        "started": begun["started"],
        "wall_time_seconds": seconds(),
        "log": trained.log,
    }
    save_model_folder(output_dir, trained.model, trained.extractor, record)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return output_dir


def _without_secrets(overrides: dict[str, Any]) -> dict[str, Any]:
    """Records go public; tokens that were given as training arguments do not."""
    return {
        name: "not recorded" if "token" in name and value else value
        for name, value in overrides.items()
    }


def _claim_checkpoints(folder: Path, fixed: dict[str, Any], resume: bool) -> None:
    """Note whose checkpoints will lie in a folder; never mix those of two trainings."""
    from .training import TrainingError, complete_checkpoints, newest_checkpoint

    note = folder / "training.json"
    fixed = json.loads(json.dumps(fixed, default=str))
    if resume:
        newest_checkpoint(folder)
        noted = json.loads(note.read_text(encoding="utf-8")) if note.exists() else fixed
        # What an earlier version did not note is not compared.
        if differing := sorted(key for key in {*fixed} & {*noted} if fixed[key] != noted[key]):
            raise TrainingError(
                f"{folder}: its checkpoints are of a training with another "
                f"{', '.join(differing)}. Resume with the same, or choose another output folder."
            )
    elif complete_checkpoints(folder):
        raise TrainingError(
            f"{folder}: holds checkpoints of an unfinished training. Go on with --resume, or "
            "remove them."
        )
    else:
        for torn in folder.glob("checkpoint-*"):  # killed while the first one was written
            shutil.rmtree(torn)
    write_json(note, fixed)


def named_progress(progress: Progress | None, what: str) -> Callable[..., None] | None:
    """What tells ``progress`` of one of the things that are done."""
    if progress is None:
        return None
    return lambda done, total, detail="": progress(what, done, total, detail)


__all__ = ["Data", "Progress", "load_data", "named_progress", "train_to_folder"]
