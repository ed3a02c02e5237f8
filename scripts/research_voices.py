#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare variants of the default recipe on judgements enough to tell them apart.

``research.py`` judges 360 recordings of new voices and 144 of known ones, where two seeds of one
recipe lie up to five points of UAR apart. Here each training is small and there are many, on the
same actors 1-12 of RAVDESS:

``few``
    Learned from three actors, judged on the nine others, four times: 2,160 judgements of new
    voices. Once more through ``microphones``: each judged actor gets a spectrum of their own, bent
    by a few decibels, as another corpus would have.
    A curve that stays the same for all frames is what centred members cannot see, so this is the
    best case for them; noise and rooms are not in it.
``many``
    Learned from nine actors, judged on the three others, four times: 720 judgements.
``known``
    Five folds of all recordings: 720 judgements of voices that were heard.

One JSON a variant, seed and measure goes into ``results/research/voices/``; what is there is not
run again. The table in ``results/research.md`` is brought up to date ::

    python scripts/research_voices.py --data-dir ../shared/data --measure few two-of-four-centered
    python scripts/research_voices.py --data-dir ../shared/data        # only the table
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from research import ACTORS, RESULTS, best_loss, features_of, read_options, train_on, write_table
from research_variants import CHOICES, SPEEDS
from sklearn.model_selection import StratifiedKFold

from timnet_hf.evaluation import score, uar
from timnet_hf.feature_store import FeatureStore
from timnet_hf.mfcc_timnet import DECIBEL, cosine_transform
from timnet_hf.recipes import Recipe

#: The columns of the table.
SHOWN = ("few", "microphones", "many", "known")
MEASURES = ("few", "many", "known")
#: A microphone's curve: so many random gains along the bands, straight lines between them.
KNOTS, KNOT_STD_DB = 6, 4.0


def microphones(store: FeatureStore, extractor: Any) -> FeatureStore:
    """The recordings as they are, each actor through a microphone of their own."""
    random = np.random.default_rng(0)
    bands = extractor.num_mel_bins
    to_cepstra = cosine_transform(extractor.feature_size, bands).numpy() / DECIBEL
    offsets = {}
    for speaker in sorted({str(name) for name in store.speakers}):
        gains = random.normal(0, KNOT_STD_DB, KNOTS)
        curve = np.interp(np.linspace(0, KNOTS - 1, bands), np.arange(KNOTS), gains)
        offsets[speaker] = ((curve - curve.mean()) @ to_cepstra).astype(np.float32)
    pairs = zip(store.original, store.speakers, strict=True)
    heard = [clip + offsets[str(speaker)] for clip, speaker in pairs]
    return dataclasses.replace(store, features={1.0: heard})


def few_voices(recipe: Recipe, extractor: Any, store: FeatureStore, seed: int) -> dict[str, Any]:
    """Learn from three actors and judge the nine others, four times."""
    speakers = np.array(store.speakers)
    logits: dict[str, list[np.ndarray]] = {"few": [], "microphones": []}
    truth = []
    for start in range(0, len(ACTORS), 3):
        inside = np.isin(speakers, ACTORS[start : start + 3])
        rest, test = np.flatnonzero(inside), np.flatnonzero(~inside)
        result = train_on(store, rest, recipe, extractor, seed)
        for name, heard in (("few", store), ("microphones", microphones(store, extractor))):
            logits[name].append(score(result.model, result.extractor, heard, test)[0])
        truth.append(store.labels[test])
    labels = np.concatenate(truth)
    return {name: _figures(np.concatenate(parts), labels) for name, parts in logits.items()}


def many_voices(recipe: Recipe, extractor: Any, store: FeatureStore, seed: int) -> dict[str, Any]:
    """Learn from nine actors and judge the three others, four times."""
    speakers = np.array(store.speakers)
    logits = np.zeros((len(store), len(store.label_names)))
    for start in range(0, len(ACTORS), 3):
        outside = np.isin(speakers, ACTORS[start : start + 3])
        rest, test = np.flatnonzero(~outside), np.flatnonzero(outside)
        result = train_on(store, rest, recipe, extractor, seed)
        logits[test] = score(result.model, result.extractor, store, test)[0]
    return {"many": _figures(logits, store.labels)}


def known_voices(recipe: Recipe, extractor: Any, store: FeatureStore, seed: int) -> dict[str, Any]:
    """Five folds of all recordings, stratified by label."""
    logits = np.zeros((len(store), len(store.label_names)))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for rest, test in folds.split(store.labels, store.labels):
        result = train_on(store, rest, recipe, extractor, seed)
        logits[test] = score(result.model, result.extractor, store, test)[0]
    return {"known": _figures(logits, store.labels)}


def _figures(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {"loss": best_loss(logits, truth), "uar": round(uar(truth, logits.argmax(1)), 2)}


RUNS = {"few": few_voices, "many": many_voices, "known": known_voices}


def judge(recipe: Recipe, measure: str, data_dir: Path, cache: Path, seed: int) -> dict[str, Any]:
    """The figures of one variant."""
    started = time.time()
    # The features at all speeds that most variants have: they are kept from one run to the next.
    wanted = {1.0, *recipe.augmentation.speeds}
    extractor, every = features_of(recipe, tuple(sorted({*SPEEDS, *wanted})), data_dir, cache)
    store = dataclasses.replace(
        every, features={speed: every.features[speed] for speed in sorted(wanted)}
    )
    run = RUNS[measure]
    return {
        "seed": seed,
        **run(recipe, extractor, store, seed),
        "seconds": round(time.time() - started),
        "recipe": recipe.to_dict(),
    }


def table() -> str:
    """All figures so far, means over seeds, best with few voices first, as Markdown."""
    found: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((RESULTS / "voices").glob("*.json")):
        record = json.loads(path.read_text())
        for name in SHOWN:
            if name in record:
                found[record["variant"]][name].append(record[name])

    def cell(values: list[dict[str, float]]) -> str:
        if not values:
            return "– | –"
        loss, recall = (np.mean([one[key] for one in values]) for key in ("loss", "uar"))
        return f"{loss:.3f} | {recall:.1f}" + (f" ({len(values)})" if len(values) > 1 else "")

    def order(item: tuple[str, Any]) -> float:
        few = item[1]["few"]
        return float(np.mean([one["loss"] for one in few])) if few else 9.0

    lines = [
        "| variant | few voices: loss | UAR % (seeds) | through microphones: loss | UAR % (seeds) "
        "| many voices: loss | UAR % (seeds) | known voices: loss | UAR % (seeds) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, values in sorted(found.items(), key=order):
        cells = " | ".join(cell(values[key]) for key in SHOWN)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run the variants that were named and have no result yet, then bring the table up to date."""
    single = [name for name, recipes in CHOICES.items() if len(recipes) == 1]
    options = read_options(__doc__, single, MEASURES)
    folder = RESULTS / "voices"
    folder.mkdir(parents=True, exist_ok=True)
    write_table("voices", table())
    for name in options.variants:
        path = folder / f"{name}-{options.measure}-{options.seed}.json"
        if path.exists():
            continue
        (recipe,) = CHOICES[name]
        record = judge(recipe, options.measure, options.data_dir, options.cache, options.seed)
        path.write_text(json.dumps({"variant": name, **record}, indent=1) + "\n")
        write_table("voices", table())
        print({key: record[key] for key in record if key != "recipe"}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
