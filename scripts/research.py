#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Try variants of the default recipe on RAVDESS actors 1-12, and on nothing that is reported.

Trained on nine of these actors and judged on the other three, twice. One JSON a variant goes into
``results/research/``; a variant that is there is not run again. ``results/research.md`` says what
each was expected to bring and what became of it ::

    python scripts/research.py --data-dir ../shared/data width-48 hop-12.5ms
    python scripts/research.py --data-dir ../shared/data        # only the table
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import TrainerCallback

from timnet_hf.corpora import load_corpus
from timnet_hf.evaluation import score, softmax, uar, war
from timnet_hf.feature_store import FeatureStore, compute_features
from timnet_hf.recipes import RECIPES, Recipe
from timnet_hf.reporting import expected_calibration_error
from timnet_hf.training import Trained, build_arguments, build_extractor, train

ACTORS = [f"{actor:02d}" for actor in range(1, 13)]
JUDGED = (["01", "02", "03"], ["07", "08", "09"])
RESULTS = Path(__file__).absolute().parents[1] / "results" / "research"


def variant(
    config: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    augmentation: dict[str, Any] | None = None,
    **rest: Any,
) -> Recipe:
    """The default recipe with some values changed."""
    base = RECIPES["default"]
    return dataclasses.replace(
        base,
        config={**base.config, **(config or {})},
        arguments={**base.arguments, **(arguments or {})},
        augmentation=dataclasses.replace(base.augmentation, **(augmentation or {})),
        **rest,
    )


VARIANTS: dict[str, Recipe] = {
    "start": variant(),
    "width-48": variant({"hidden_size": 48}),
    "coefficients-64": variant({"input_size": 64}, features={"feature_size": 64}),
    "hop-12.5ms": variant(features={"hop_length": 200}),
    "window-32ms": variant(features={"win_length": 512, "n_fft": 512}),
    "crop-4s": variant(augmentation={"max_seconds": 4.0}),
    "epochs-200": variant(arguments={"num_train_epochs": 200}),
    "offset-0.5": variant(augmentation={"offset_std": 0.5}),
    "no-mixup": variant(augmentation={"mixup": 0.0}),
    "masking": variant(augmentation={"mask_frames": 15, "mask_coefficients": 6}),
    "batch-16": variant(arguments={"per_device_train_batch_size": 16, "learning_rate": 3e-3}),
    "decay-0.1": variant(arguments={"weight_decay": 0.1}),
    "tempo-0.2": variant(augmentation={"tempo": 0.2}),
    "speaker-half": variant(augmentation={"speaker_share": 0.5}),
    "speaker-all": variant(augmentation={"speaker_share": 1.0}),
    "speaker-all-no-offset": variant(augmentation={"speaker_share": 1.0, "offset_std": 0.0}),
    "dropout-0.2": variant({"hidden_dropout_prob": 0.2}),
}


class LastEpochs(TrainerCallback):
    """Scores the judged recordings after each of the last ten epochs, to see how steady they are.

    What it sees goes into the record and changes nothing.
    """

    def __init__(self, store: FeatureStore, rows: np.ndarray):
        self.store, self.rows = store, rows
        self.extractor: Any = None
        self.uar: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score, if this is one of the last ten epochs."""
        if state.epoch > state.num_train_epochs - 10 - 0.5:
            model = kwargs["model"]
            model.eval()
            logits, _ = score(model, self.extractor, self.store, self.rows)
            self.uar.append(uar(self.store.labels[self.rows], logits.argmax(1)))
            model.train()


def features_of(recipe: Recipe, data_dir: Path, cache: Path) -> tuple[Any, FeatureStore]:
    """The features of actors 1-12 for this recipe, kept from one run to the next."""
    extractor = build_extractor(recipe)
    settings = json.dumps([extractor.to_dict(), recipe.augmentation.speeds], sort_keys=True)
    path = cache / f"ravdess-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    dataset = load_corpus("ravdess", data_dir)
    chosen = [row for row, speaker in enumerate(dataset["speaker"]) if speaker in ACTORS]
    dataset = dataset.select(chosen)
    if not path.exists():
        store = compute_features(dataset, extractor, recipe.augmentation.speeds)
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
            for speed in sorted({1.0, *recipe.augmentation.speeds})
        }
    return extractor, FeatureStore(
        features=features,
        labels=np.asarray(dataset["label"], dtype=np.int64),
        label_names=list(dataset.features["label"].names),
        paths=list(dataset["path"]),
        speakers=list(dataset["speaker"]),
    )


def judge(name: str, recipe: Recipe, data_dir: Path, cache: Path, seed: int) -> dict[str, Any]:
    """Train on nine actors, judge on three; twice."""
    extractor, store = features_of(recipe, data_dir, cache)
    speakers = np.array(store.speakers)
    judged, logits, folds, spreads, trained_on = [], [], [], [], []
    adapted: dict[str, list[np.ndarray]] = {"1": [], "3": [], "10": [], "all": []}
    parameters, started = 0, time.time()
    for actors in JUDGED:
        test = np.flatnonzero(np.isin(speakers, actors))
        rest = np.flatnonzero(~np.isin(speakers, actors))
        with tempfile.TemporaryDirectory() as folder:
            arguments = build_arguments(
                recipe, folder, seed, {"disable_tqdm": True, "logging_strategy": "no"}
            )
            watch = LastEpochs(store, test)
            watch.extractor = normalized(extractor, store, rest)
            result = train(store, rest, recipe, extractor, arguments, callbacks=[watch])
        scores, _ = score(result.model, result.extractor, store, test)
        judged.append(test)
        logits.append(scores)
        folds.append(round(uar(store.labels[test], scores.argmax(1)), 2))
        spreads.append(round(max(watch.uar) - min(watch.uar), 2))
        for count, collected in adapted.items():
            collected.append(score_enrolled(result, store, test, count))
        own, _ = score(result.model, result.extractor, store, rest)
        trained_on.append(round(uar(store.labels[rest], own.argmax(1)), 1))
        parameters = result.model.num_parameters()
    rows, scores = np.concatenate(judged), np.concatenate(logits)
    truth = store.labels[rows]
    return {
        "variant": name,
        "seed": seed,
        "uar": round(uar(truth, scores.argmax(1)), 2),
        "war": round(war(truth, scores.argmax(1)), 2),
        "per_fold": folds,
        "uar_enrolled": {
            count: round(uar(truth, np.concatenate(scores).argmax(1)), 2)
            for count, scores in adapted.items()
        },
        "training_uar": trained_on,
        "last_ten_epochs_spread": spreads,
        "ece": round(expected_calibration_error(softmax(scores), truth), 4),
        "parameters": parameters,
        "seconds": round(time.time() - started),
        "recipe": recipe.to_dict(),
    }


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
        "| variant | UAR % | each three actors | enrolled with all | on training | last ten epochs"
        " within | ECE | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda one: -one["uar"]):
        seed = f", seed {record['seed']}" if record["seed"] else ""
        enrolled = record.get("uar_enrolled", {}).get("all")
        known = "–" if enrolled is None else f"{enrolled:.1f}"
        lines.append(
            f"| {record['variant']}{seed} | {record['uar']:.1f} | {_each(record['per_fold'])} "
            f"| {known} | {_each(record['training_uar'])} "
            f"| {_each(record['last_ten_epochs_spread'])} | {record['ece']:.3f} "
            f"| {record['parameters']:,} |"
        )
    return "\n".join(lines)


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def write_table() -> None:
    """Bring the table in research.md up to date."""
    path = RESULTS.parent / "research.md"
    begin, end = "<!-- variants:begin -->\n", "<!-- variants:end -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{table()}\n\n{end}{tail}", encoding="utf-8")


def main() -> None:
    """Run the variants that were named and have no result yet, then bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "timnet-research"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    torch.set_num_threads(1)
    write_table()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        path = RESULTS / (f"{name}.json" if not options.seed else f"{name}-{options.seed}.json")
        if path.exists():
            continue
        record = judge(name, VARIANTS[name], options.data_dir, options.cache, options.seed)
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_table()
        print({key: record[key] for key in list(record)[:-1]}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
