#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Try variants of the default recipe on RAVDESS actors 1-12, and on nothing that is reported.

Trained on nine of these actors and judged on the other three, twice; then trained on four fifths of
all their recordings and judged on the last fifth, for voices that are known. One JSON a variant
goes into ``results/research/``; a variant that is there is not run again. ``results/research.md``
says what each was expected to bring and what became of it ::

    python scripts/research.py --data-dir ../shared/data width-48 hop-12.5ms
    python scripts/research.py --data-dir ../shared/data        # only the table
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from research_variants import CHOICES
from sklearn.model_selection import train_test_split
from transformers import TrainerCallback

from timnet_hf.calibration import fit_temperature
from timnet_hf.corpora import load_corpus
from timnet_hf.evaluation import score, softmax, uar, war
from timnet_hf.feature_store import FeatureStore, compute_features
from timnet_hf.memory import keep_freed_memory
from timnet_hf.recipes import Recipe
from timnet_hf.reporting import expected_calibration_error
from timnet_hf.training import Trained, build_arguments, build_extractor, train

ACTORS = [f"{actor:02d}" for actor in range(1, 13)]
JUDGED = (["01", "02", "03"], ["07", "08", "09"])
#: Recordings that a voice is enrolled with.
ENROLLED = ("1", "3", "10", "all")
RESULTS = Path(__file__).absolute().parents[1] / "results" / "research"


class LastEpochs(TrainerCallback):
    """Scores the judged recordings after each of the last ten epochs, to see how steady they are.

    The same once more for running averages of the weights. It changes nothing.
    """

    def __init__(self, store: FeatureStore, rows: np.ndarray):
        self.store, self.rows = store, rows
        self.extractor: Any = None
        self.averages: dict[str, dict[str, torch.Tensor]] = {"0.98": {}, "0.995": {}}
        self.logits: dict[str, list[np.ndarray]] = {"": [], **{name: [] for name in self.averages}}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the averages on."""
        for name, average in self.averages.items():
            for key, value in kwargs["model"].state_dict().items():
                if key in average and value.is_floating_point():
                    average[key].lerp_(value, 1 - float(name))
                else:
                    average[key] = value.clone()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score, if this is one of the last ten epochs."""
        if state.epoch > state.num_train_epochs - 10 - 0.5:
            for name, logits in self.logits.items():
                model = copy.deepcopy(kwargs["model"])
                if name:
                    model.load_state_dict(self.averages[name])
                logits.append(score(model.eval(), self.extractor, self.store, self.rows)[0])


def features_of(
    recipe: Recipe, speeds: tuple[float, ...], data_dir: Path, cache: Path
) -> tuple[Any, FeatureStore]:
    """The features of actors 1-12 for this recipe, kept from one run to the next."""
    extractor = build_extractor(recipe)
    settings = json.dumps([extractor.to_dict(), speeds], sort_keys=True)
    path = cache / f"ravdess-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    dataset = load_corpus("ravdess", data_dir)
    chosen = [row for row, speaker in enumerate(dataset["speaker"]) if speaker in ACTORS]
    dataset = dataset.select(chosen)
    if not path.exists():
        store = compute_features(dataset, extractor, speeds)
        cache.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        for speed, clips in store.features.items():
            arrays[f"{speed}"] = np.concatenate(clips)
            arrays[f"{speed} frames"] = np.array([len(clip) for clip in clips])
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, **arrays)
        partial.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        features = {
            speed: np.split(kept[f"{speed}"], np.cumsum(kept[f"{speed} frames"])[:-1])
            for speed in sorted({1.0, *speeds})
        }
    return extractor, FeatureStore(
        features=features,
        labels=np.asarray(dataset["label"], dtype=np.int64),
        label_names=list(dataset.features["label"].names),
        paths=list(dataset["path"]),
        speakers=list(dataset["speaker"]),
    )


def answers(
    recipe: Recipe, store: FeatureStore, extractor: Any, seed: int, cache: Path
) -> dict[str, np.ndarray]:
    """Train three times; the logits of all that is judged, kept from one run to the next.

    Returns:
        ``new`` (judged, labels) and ``enrolled 1`` … ``enrolled all``: voices that were left out,
        in the order of `JUDGED`; ``epochs …`` (10, judged, labels): the same after each of the
        last ten epochs; ``known``: voices that were heard; ``own 0`` and ``own 1``: what the
        first two trainings learned from. And the number of ``parameters``, and ``seconds``.
    """
    settings = json.dumps([recipe.to_dict(), seed], sort_keys=True)
    path = cache / f"answers-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    found: dict[str, list[np.ndarray]] = {}
    started = time.time()
    splits = _splits(store)
    for number, (rest, test) in enumerate(splits[:-1]):
        watch = LastEpochs(store, test)
        watch.extractor = normalized(extractor, store, rest)
        result = train_on(store, rest, recipe, extractor, seed, [watch])
        found.setdefault("new", []).append(score(result.model, result.extractor, store, test)[0])
        for count in ENROLLED:
            scores = score_enrolled(result, store, test, count)
            found.setdefault(f"enrolled {count}", []).append(scores)
        for name, epochs in watch.logits.items():
            found.setdefault(f"epochs {name}", []).append(np.stack(epochs))
        own, _ = score(result.model, result.extractor, store, rest)
        found[f"own {number}"] = [own]
    rest, test = splits[-1]
    result = train_on(store, rest, recipe, extractor, seed)
    found["known"] = [score(result.model, result.extractor, store, test)[0]]
    arrays = {name: np.concatenate(parts, axis=-2) for name, parts in found.items()}
    arrays["parameters"] = np.array(result.model.num_parameters())
    arrays["seconds"] = np.array(round(time.time() - started))
    partial = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
    return arrays


def _splits(store: FeatureStore) -> list[tuple[np.ndarray, np.ndarray]]:
    """Trained on and judged: nine actors and three, twice; then four recordings of five."""
    speakers = np.array(store.speakers)
    splits = [
        (np.flatnonzero(~np.isin(speakers, actors)), np.flatnonzero(np.isin(speakers, actors)))
        for actors in JUDGED
    ]
    rest, test = train_test_split(
        np.arange(len(speakers)), test_size=0.2, random_state=0, stratify=store.labels
    )
    return [*splits, (rest, test)]


def judge(
    name: str, recipes: Sequence[Recipe], data_dir: Path, cache: Path, seed: int
) -> dict[str, Any]:
    """Train on nine actors, judge on three; twice. Then judge recordings of known voices.

    Of several recipes each trains a network of its own, with a seed of its own, and the mean of
    their logits is judged.
    """
    speeds = tuple(sorted({speed for one in recipes for speed in one.augmentation.speeds}))
    extractor, store = features_of(recipes[0], speeds, data_dir, cache)
    parts = [
        answers(recipe, store, extractor, seed + number, cache)
        for number, recipe in enumerate(recipes)
    ]
    mean = {key: np.mean([part[key] for part in parts], axis=0) for key in parts[0]}
    splits = _splits(store)
    rows = np.concatenate([test for _, test in splits[:-1]])
    truth, known = store.labels[rows], store.labels[splits[-1][1]]
    edges = np.cumsum([len(test) for _, test in splits[:-2]])
    folds = zip(np.split(truth, edges), np.split(mean["new"], edges), strict=True)
    return {
        "variant": name,
        "seed": seed,
        "uar": round(uar(truth, mean["new"].argmax(1)), 2),
        "war": round(war(truth, mean["new"].argmax(1)), 2),
        "per_fold": [round(uar(labels, logits.argmax(1)), 2) for labels, logits in folds],
        "loss": best_loss(mean["new"], truth),
        "loss_known": best_loss(mean["known"], known),
        "uar_known": round(uar(known, mean["known"].argmax(1)), 2),
        "loss_enrolled": best_loss(mean["enrolled all"], truth),
        "uar_enrolled": {
            count: round(uar(truth, mean[f"enrolled {count}"].argmax(1)), 2) for count in ENROLLED
        },
        "training_uar": [
            round(uar(store.labels[rest], mean[f"own {number}"].argmax(1)), 1)
            for number, (rest, _) in enumerate(splits[:-1])
        ],
        "last_ten_epochs": last_ten_epochs(mean, truth),
        "ece": round(expected_calibration_error(softmax(mean["new"]), truth), 4),
        "parameters": int(sum(part["parameters"] for part in parts)),
        "seconds": int(sum(part["seconds"] for part in parts)),
        "recipe": recipes[0].to_dict(),
        **({"recipes": [recipe.to_dict() for recipe in recipes]} if len(recipes) > 1 else {}),
    }


def train_on(
    store: FeatureStore,
    rows: np.ndarray,
    recipe: Recipe,
    extractor: Any,
    seed: int,
    callbacks: list[Any] | None = None,
) -> Trained:
    """Train quietly on these recordings."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = build_arguments(
            recipe, folder, seed, {"disable_tqdm": True, "logging_strategy": "no"}
        )
        return train(store, rows, recipe, extractor, arguments, callbacks=callbacks or [])


def best_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    """Cross-entropy at the temperature that suits these recordings: less noisy than recalls."""
    shares = softmax(logits, fit_temperature(logits, truth))
    return round(float(-np.log(shares[np.arange(len(truth)), truth]).mean()), 4)


def last_ten_epochs(logits: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """UAR over all judged recordings after the last epoch, and its spread over the last ten.

    For the weights as they are, and for their running averages.
    """
    figures = {}
    for name in (name for name in logits if name.startswith("epochs ")):
        values = [uar(truth, epoch.argmax(1)) for epoch in logits[name]]
        figures[name.removeprefix("epochs ") or "as they are"] = {
            "last": round(values[-1], 2),
            "spread": round(max(values) - min(values), 2),
        }
    return figures


def score_enrolled(result: Trained, store: FeatureStore, test: np.ndarray, count: str) -> Any:
    """Logits of the judged recordings, each voice known from some of its recordings."""
    speakers = np.array(store.speakers)
    logits = np.zeros((len(test), len(store.label_names)))
    for speaker in np.unique(speakers[test]):
        rows = test[speakers[test] == speaker]
        drawn = np.random.default_rng(0).permutation(rows)
        enrolled = rows if count == "all" else drawn[: int(count)]
        scores, _ = score(result.model, result.extractor, store, rows, enrolled=enrolled)
        logits[np.isin(test, rows)] = scores
    return logits


def normalized(extractor: Any, store: FeatureStore, rows: np.ndarray) -> Any:
    """The extractor as training will set it up for these recordings."""
    extractor = copy.deepcopy(extractor)
    mean, std = store.statistics(rows)
    extractor.mean, extractor.std = mean.tolist(), std.tolist()
    return extractor


def table() -> str:
    """All results so far, best first, as Markdown."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "| variant | loss | UAR % | each three actors | known voices: loss | UAR % "
        "| enrolled with all | on training | last ten epochs within | weights averaged | ECE "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda one: one.get("loss", 9)):
        seed = f", seed {record['seed']}" if record["seed"] else ""
        enrolled = record.get("uar_enrolled", {}).get("all")
        known = "–" if enrolled is None else f"{enrolled:.1f}"
        heard = f"{record['uar_known']:.1f}" if "uar_known" in record else "–"
        loss, heard_loss = (
            f"{record[name]:.3f}" if name in record else "–" for name in ("loss", "loss_known")
        )
        steady = record.get("last_ten_epochs", {})
        spread = f"{steady['as they are']['spread']:.1f}" if steady else "–"
        averaged = f"{steady['0.995']['last']:.1f}" if steady else "–"
        lines.append(
            f"| {record['variant']}{seed} | {loss} | {record['uar']:.1f} "
            f"| {_each(record['per_fold'])} | {heard_loss} | {heard} | {known} "
            f"| {_each(record['training_uar'])} "
            f"| {spread} | {averaged} | {record['ece']:.3f} "
            f"| {record['parameters']:,} |"
        )
    return "\n".join(lines)


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def write_table(name: str, table: str) -> None:
    """Put a table between the markers of its name in research.md."""
    path = RESULTS.parent / "research.md"
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{table}\n\n{end}{tail}", encoding="utf-8")


def read_options(
    description: str | None, names: Iterable[str], measures: Sequence[str] = ()
) -> argparse.Namespace:
    """Read a research script's command line, and get ready to train.

    Args:
        description: The script's docstring.
        names: What can be tried.
        measures: What it can be judged by, the usual one first, where there is a choice.
    """
    known = sorted(names)
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(known))
    parser.add_argument("--data-dir", type=Path, required=True)
    if measures:
        parser.add_argument("--measure", choices=measures, default=measures[0])
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "timnet-research"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.variants) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    keep_freed_memory()
    return options


def main() -> None:
    """Run the variants that were named and have no result yet, then bring the table up to date."""
    options = read_options(__doc__, CHOICES)
    write_table("variants", table())
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        path = RESULTS / (f"{name}.json" if not options.seed else f"{name}-{options.seed}.json")
        if path.exists():
            continue
        record = judge(name, CHOICES[name], options.data_dir, options.cache, options.seed)
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_table("variants", table())
        print({key: record[key] for key in record if not key.startswith("recipe")}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
