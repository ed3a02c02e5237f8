#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Try ideas about the training itself, and what it starts from, as `research_voices.py` does.

A variant of `research_variants.py` is other values for the same program. What stands here needs a
program of its own, and stays out of the package unless it pays ::

    python scripts/research_ideas.py --data-dir ../shared/data --measure few calm-10
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import research_parts as parts
import research_voices as voices
import soundfile
import torch
import torch.nn.functional as F  # noqa: N812
from research import RESULTS, features_of, read_options, train_on, write_table
from research_variants import SPEEDS, with_config
from scipy.signal import fftconvolve
from torch import nn
from transformers import Trainer, TrainerCallback

from timnet_hf import training
from timnet_hf.audio import load_audio, resample
from timnet_hf.corpora import load_corpus
from timnet_hf.evaluation import score
from timnet_hf.feature_store import FeatureStore, compute_features
from timnet_hf.prediction import load_model
from timnet_hf.recipes import Recipe

#: What every idea is measured against: the default recipe, as frozen in 7012b9c.
RECIPE = with_config(num_centered_members=2)

build_model = training.build_model
SoftTargetLoss = training.SoftTargetLoss


class Reversal(torch.autograd.Function):
    """Identity whose gradient is turned round and scaled."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the values."""
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Turn the gradient round."""
        return -ctx.scale * gradient, None


class Watched:
    """The model in training, with what its last batch was and became."""

    def __init__(self, extra: Callable[[nn.Module], None] | None = None):
        self.extra = extra
        self.seen: dict[str, Any] = {}
        self.model: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build the network as ever, and watch it."""
        self.model = build_model(*args, **kwargs)
        if self.extra:
            self.extra(self.model)
        self.model.timnet.register_forward_hook(self._keep, with_kwargs=True)
        return self.model

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.seen = {"args": args, "mask": kwargs.get("attention_mask"), **output}


class SpeakerSet(training.AugmentedSet):
    """Targets with the speaker's number as one more column."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        names = sorted({str(name) for name in self.speakers})
        self.numbers = torch.tensor([[names.index(str(name))] for name in self.speakers])

    def __getitems__(self, items: list[int]) -> list[dict[str, torch.Tensor]]:
        """One augmented batch."""
        batch = super().__getitems__(items)
        for one, number in zip(batch, self.numbers[items], strict=True):
            one["labels"] = torch.cat((one["labels"], number.float()))
        return batch


def mutual(share: float) -> dict[str, Any]:
    """Each member also learns from what all of them answer together."""

    class Loss(SoftTargetLoss):
        def __call__(
            self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            together = outputs["logits"].detach().softmax(-1)
            return super().__call__(
                outputs, (1 - share) * labels + share * together, num_items_in_batch
            )

    return {"SoftTargetLoss": Loss}


def sharpness_aware(radius: float) -> dict[str, Any]:
    """The gradient is taken where the loss is worst nearby (SAM, arXiv 2010.01412)."""

    class Sharp(Trainer):
        def training_step(
            self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            super().training_step(model, inputs, num_items_in_batch)
            with torch.no_grad():
                moved = [one for one in model.parameters() if one.grad is not None]
                norm = torch.stack([one.grad.norm() for one in moved]).norm() + 1e-12
                steps = [one.grad * (radius / norm) for one in moved]
                for one, step in zip(moved, steps, strict=True):
                    one.add_(step)
                    one.grad = None
            loss = super().training_step(model, inputs, num_items_in_batch)
            with torch.no_grad():
                for one, step in zip(moved, steps, strict=True):
                    one.sub_(step)
            return loss

    return {"Trainer": Sharp}


def calm(epochs: int) -> dict[str, Any]:
    """In the last epochs every recording comes whole and at its own speed."""

    class CalmSet(training.AugmentedSet):
        calm = False

        def _choose(self, item: int) -> torch.Tensor:
            return self.features[1.0][item] if self.calm else super()._choose(item)

    class Tell(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            left = args.num_train_epochs - round(state.epoch or 0)
            kwargs["train_dataloader"].dataset.calm = left <= epochs

    class Telling(Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.add_callback(Tell())

    return {"AugmentedSet": CalmSet, "Trainer": Telling}


def adversarial(scale: float, speakers: int = 12) -> dict[str, Any]:
    """A second head tells the speakers apart, and the network learns to hinder it."""

    def add(model: nn.Module) -> None:
        model.adversary = nn.Linear(model.config.pooled_size, speakers)

    watched = Watched(add)

    class Loss(SoftTargetLoss):
        def __call__(
            self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            loss = super().__call__(outputs, labels[:, :-1])
            guess = watched.model.adversary(Reversal.apply(watched.seen["pooler_output"], scale))
            return loss + F.cross_entropy(guess, labels[:, -1].long())

    return {"build_model": watched, "SoftTargetLoss": Loss, "AugmentedSet": SpeakerSet}


def contrastive(share: float, temperature: float = 0.1) -> dict[str, Any]:
    """Fused vectors of one emotion by different speakers come together (arXiv 2004.11362)."""
    watched = Watched()

    class Loss(SoftTargetLoss):
        def __call__(
            self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            targets, speakers = labels[:, :-1], labels[:, -1]
            loss = super().__call__(outputs, targets)
            vectors = F.normalize(watched.seen["pooler_output"], dim=-1)
            likeness = vectors @ vectors.T / temperature
            likeness = likeness.masked_fill(torch.eye(len(labels), dtype=torch.bool), -math.inf)
            same = targets.argmax(1)[:, None] == targets.argmax(1)
            wanted = same & (speakers[:, None] != speakers)
            log_shares = likeness.log_softmax(-1).masked_fill(~wanted, 0)
            has = wanted.any(1)
            pulled = -(log_shares.sum(1)[has] / wanted.sum(1)[has]).mean()
            return loss + share * pulled

    return {"build_model": watched, "SoftTargetLoss": Loss, "AugmentedSet": SpeakerSet}


def started_from(checkpoint: str) -> dict[str, Any]:
    """The weights of a shipped checkpoint to begin with, all but the classifier's."""

    def add(model: nn.Module) -> None:
        model.timnet.load_state_dict(load_model(checkpoint)[0].timnet.state_dict())

    return {"build_model": Watched(add)}


def ask_together(models: list[Any], *recordings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Several trained networks in the place of one: the mean of their logits, see `score`."""
    parts = [score(model, *recordings) for model in models]
    return np.mean([logits for logits, _ in parts], axis=0), parts[0][1]


def distilled(teachers: list[Any], share: float, temperature: float) -> dict[str, Any]:
    """Learn from what the teachers say of the very same changed recordings."""
    watched = Watched()

    class Loss(SoftTargetLoss):
        def __call__(
            self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            (values,), mask = watched.seen["args"], watched.seen["mask"]
            with torch.no_grad():
                logits = [one(values, attention_mask=mask).logits for one in teachers]
            said = (torch.stack(logits).mean(0) / temperature).softmax(-1)
            return super().__call__(
                outputs, (1 - share) * labels + share * said, num_items_in_batch
            )

    return {"build_model": watched, "SoftTargetLoss": Loss}


#: Version number of a changed recording: its speed and this.
CHANGED = 100.0


def in_noise(waveform: np.ndarray, random: np.random.Generator, least: float) -> np.ndarray:
    """With pink noise that is ``least`` to 30 dB below the recording."""
    spectrum = np.fft.rfft(random.standard_normal(len(waveform)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(waveform))
    level = waveform.std() / noise.std() * 10 ** (-random.uniform(least, 30) / 20)
    return (waveform + level * noise).astype(np.float32)


def in_rooms(waveform: np.ndarray, rate: int, random: np.random.Generator) -> np.ndarray:
    """Through a room of 0.2 to 0.8 s reverberation, with some noise."""
    seconds = random.uniform(0.2, 0.8)
    times = np.arange(int(rate * seconds)) / rate
    tail = random.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    tail *= 10 ** random.uniform(-1.5, -0.5) / np.linalg.norm(tail)
    tail[0] += 1
    return in_noise(fftconvolve(waveform, tail)[: len(waveform)], random, 10)


def through_codecs(waveform: np.ndarray, rate: int, random: np.random.Generator) -> np.ndarray:
    """Through MP3 or Vorbis at a low rate."""
    form, kind = [("MP3", None), ("OGG", "VORBIS")][random.integers(2)]
    data = io.BytesIO()
    level = 0.99 / max(0.99, float(np.abs(waveform).max()))
    with soundfile.SoundFile(
        data, "w", rate, 1, kind, format=form, compression_level=float(random.uniform(0.6, 1))
    ) as file:
        file.write(waveform * level)
    data.seek(0)
    return soundfile.read(data, dtype="float32")[0]


def versions(change: str, extractor: Any, store: FeatureStore, cache: Path) -> FeatureStore:
    """The store with a changed version of each recording at each speed."""
    path = cache / f"changed-{change}.npz"
    if not path.exists():
        random = np.random.default_rng(0)
        parts: dict[str, Any] = {}
        for speed in SPEEDS:
            clips = []
            for name in store.paths:
                waveform = load_audio(name, extractor.sampling_rate)
                if speed != 1:
                    fast = round(extractor.sampling_rate * speed)
                    waveform = resample(waveform, fast, extractor.sampling_rate)
                used = extractor
                if change == "rooms":
                    waveform = in_rooms(waveform, extractor.sampling_rate, random)
                elif change == "noise":
                    waveform = in_noise(waveform, random, 5)
                elif change == "codecs":
                    waveform = through_codecs(waveform, extractor.sampling_rate, random)
                else:  # the vocal tract: all bands moved by up to a tenth
                    warp = random.choice([0.88, 0.91, 0.94, 0.97, 1.02, 1.04])
                    settings = {**extractor.to_dict(), "min_frequency": 50 * warp}
                    settings["max_frequency"] = extractor.max_frequency * warp
                    used = type(extractor)(**settings)
                clips.append(used.extract(waveform).numpy())
            parts[f"{speed}"] = np.concatenate(clips)
            parts[f"{speed} frames"] = np.array([len(clip) for clip in clips])
        np.savez(path, **parts)
    features = dict(store.features)
    with np.load(path, allow_pickle=False) as kept:
        for speed in SPEEDS:
            cuts = np.cumsum(kept[f"{speed} frames"])[:-1]
            features[CHANGED + speed] = np.split(kept[f"{speed}"], cuts)
    return dataclasses.replace(store, features=features)


IDEAS: dict[str, Callable[[], dict[str, Any]]] = {
    "calm-10": lambda: calm(10),
    "mutual-0.3": lambda: mutual(0.3),
    "sharpness-aware-0.05": lambda: sharpness_aware(0.05),
    "adversarial-0.1": lambda: adversarial(0.1),
    "contrastive-0.2": lambda: contrastive(0.2),
    "noise": dict,
    "rooms": dict,
    "codecs": dict,
    "vocal-tract": dict,
    "from-emodb": lambda: started_from("timnet-emodb"),
    "three-together": dict,
    "three-distilled": dict,
    "masked-frames": dict,
    **parts.PARTS,
    **dict.fromkeys(parts.INPUTS, dict),
}


#: What goes along with some of them: other arguments of the recipe.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "from-emodb-epochs-30": {"num_train_epochs": 30},
    "from-emodb-rate-4e-3": {"learning_rate": 4e-3},
}
IDEAS |= dict.fromkeys(ARGUMENTS, IDEAS["from-emodb"])

#: Gaps filled in the training's own recordings first, and how.
GAPS: dict[str, dict[str, Any]] = {
    "masked-own-frames": {},
    "masked-own-frames-steps-1600": {"steps": 1600},
    "masked-own-frames-token": {"token": True},
    "own-frames-ahead": {"ahead": 4},
}
IDEAS |= dict.fromkeys(GAPS, dict)


def taught(idea: str) -> Callable[..., Any]:
    """How one fold is learned: three times, and asked together or distilled, or gaps first."""

    def run(store: FeatureStore, rows: Any, recipe: Recipe, extractor: Any, seed: int) -> Any:
        if idea in GAPS:
            with patched(parts.masked_frames(recipe, extractor, store, rows, **GAPS[idea])):
                return train_on(store, rows, recipe, extractor, seed)
        results = [train_on(store, rows, recipe, extractor, 100 * seed + n) for n in range(3)]
        models = [one.model.eval() for one in results]
        if idea == "three-together":
            return dataclasses.replace(results[0], model=models)
        with patched(distilled(models, 0.7, 1.0)):
            return train_on(store, rows, recipe, extractor, 100 * seed + 3)

    return run


def patched(changes: dict[str, Any]) -> AbstractContextManager[Any]:
    """The training module with some of its names changed, for as long as this lasts."""
    return patch.multiple(training, **changes) if changes else nullcontext()


def judge(idea: str, measure: str, data_dir: Path, cache: Path, seed: int) -> dict[str, Any]:
    """The figures of one idea."""
    started = time.time()
    arguments = {**RECIPE.arguments, **ARGUMENTS.get(idea, {})}
    recipe = dataclasses.replace(RECIPE, arguments=arguments)
    extractor, store = features_of(recipe, SPEEDS, data_dir, cache)
    if idea in ("noise", "rooms", "codecs", "vocal-tract"):
        store = versions(idea, extractor, store, cache)
        speeds = (*SPEEDS, *(CHANGED + speed for speed in SPEEDS))
        augmentation = dataclasses.replace(recipe.augmentation, speeds=speeds)
        recipe = dataclasses.replace(recipe, augmentation=augmentation)
    if idea in parts.INPUTS:
        store = parts.widened(idea, extractor, store)
        voices.microphones = parts.widened_microphones
        size = store.original[0].shape[1]
        recipe = dataclasses.replace(recipe, config={**recipe.config, "input_size": size})
    changes = IDEAS[idea]()
    if idea == "masked-frames":
        other = compute_features(load_corpus("emodb", data_dir), extractor, SPEEDS)
        changes = parts.masked_frames(recipe, extractor, other, np.arange(len(other)))
    voices.train_on = taught(idea) if idea.startswith(("three-", "masked-own")) else train_on
    voices.score = ask_together if idea == "three-together" else score
    run = voices.RUNS[measure]
    with patched(changes):
        figures = run(recipe, extractor, store, seed)
    seconds = round(time.time() - started)
    return {"seed": seed, **figures, "seconds": seconds, "recipe": recipe.to_dict()}


def main() -> None:
    """Try the ideas that were named and have no result yet."""
    options = read_options(__doc__, IDEAS, voices.MEASURES)
    folder = RESULTS / "voices"
    for idea in options.variants:
        path = folder / f"{idea}-{options.measure}-{options.seed}.json"
        if not path.exists():
            record = judge(idea, options.measure, options.data_dir, options.cache, options.seed)
            path.write_text(json.dumps({"variant": idea, **record}, indent=1) + "\n")
            print(idea, {key: record[key] for key in record if key != "recipe"}, flush=True)
    write_table("voices", voices.table())


if __name__ == "__main__":
    sys.exit(main())
