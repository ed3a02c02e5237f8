# SPDX-License-Identifier: Apache-2.0
"""Other parts of the network, other inputs, another end and another beginning of the training.

What `research_ideas.py` tries beside ideas about the loss. Each idea of `PARTS` gives names of
`timnet_hf.training` to change; each of `INPUTS` gives columns to put beside the coefficients.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import research_voices as voices
import torch
import torch.nn.functional as F  # noqa: N812
from research import normalized
from torch import nn
from transformers import Trainer, TrainerCallback

from timnet_hf import training
from timnet_hf.audio import load_audio, resample
from timnet_hf.feature_store import FeatureStore
from timnet_hf.layers_timnet import VARIANCE_FLOOR
from timnet_hf.mfcc_timnet import analysis_window, as_samples
from timnet_hf.recipes import Recipe

build_model = training.build_model
microphones = voices.microphones


class AttentivePooling(nn.Module):
    """Each scale of each stream learns which frames count (arXiv 1803.10963).

    Mean and deviation are weighted so; the mean absolute change is taken as it was. All weights
    are equal to begin with.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.scores = nn.Parameter(
            torch.zeros(config.num_scales, config.num_streams, 1, 1, config.hidden_size)
        )
        self.turn = 0

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool (streams, frames, batch, hidden_size) to (batch, pooled_size)."""
        score = (hidden * self.scores[self.turn]).sum(-1, keepdim=True)
        self.turn = (self.turn + 1) % len(self.scores)  # the scales come in turn
        valid = torch.ones_like(score[:1]) if mask is None else mask[None]
        weight = score.masked_fill(valid == 0, -torch.inf).softmax(1)
        mean = (weight * hidden).sum(1)
        variance = (weight * (hidden - mean.unsqueeze(1)).square()).sum(1)
        later = valid[:, 1:]
        change = ((hidden[:, 1:] - hidden[:, :-1]).abs() * later).sum(1)
        change = change / later.sum(1).clamp(min=1)
        statistics = torch.stack((mean, torch.sqrt(variance + VARIANCE_FLOOR), change))
        return statistics.permute(2, 0, 1, 3).flatten(1)


def attention() -> dict[str, Any]:
    """Attention in the place of equal weights."""

    def build(*args: Any, **kwargs: Any) -> Any:
        model = build_model(*args, **kwargs)
        model.timnet.pooling = AttentivePooling(model.config)
        return model

    return {"build_model": build}


def averaged_weights(epochs: int, floor: float) -> dict[str, Any]:
    """The mean of the last epochs' weights, at a rate that stays high (SWA, arXiv 1803.05407).

    Batch normalisation is estimated anew behind it, over one epoch.
    """

    class Average(TrainerCallback):
        mean: Any = None

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch > args.num_train_epochs - epochs + 0.5:
                model = kwargs["model"]
                if self.mean is None:
                    self.mean = torch.optim.swa_utils.AveragedModel(model)
                self.mean.update_parameters(model)

        @torch.no_grad()
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            model.load_state_dict(self.mean.module.state_dict())
            norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm1d)]
            model.train()
            for number, batch in enumerate(kwargs["train_dataloader"], start=1):
                for norm in norms:
                    norm.momentum = 1 / number  # so they hold the mean of all batches so far
                model(batch["input_values"], attention_mask=batch.get("attention_mask"))

    class Held(Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.add_callback(Average())

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
            usual = scheduler.lr_lambdas[0]  # of all groups of weights

            def held(step: int) -> float:
                late = step > num_training_steps / 2
                return max(usual(step), floor) if late else usual(step)

            scheduler.lr_lambdas = [held] * len(scheduler.lr_lambdas)
            return scheduler

    return {"Trainer": Held}


def masked_frames(
    recipe: Recipe,
    extractor: Any,
    store: FeatureStore,
    rows: np.ndarray,
    steps: int = 640,
    share: float = 0.3,
    ahead: int = 0,
    token: bool = False,
) -> dict[str, Any]:
    """Start from weights that have learned to fill gaps in these recordings, without labels.

    About ``share`` of the frames are blanked out in runs of eight; a linear layer on both
    directions' last block guesses them. With ``token`` a learned frame stands in the gaps, not
    nought. With ``ahead`` nothing is blanked out: each direction guesses the frame that is so many
    ahead of where it is (autoregressive predictive coding, arXiv 1904.03240).
    """
    torch.manual_seed(0)
    model = build_model(recipe, store.label_names).train()
    network, config = model.timnet, model.config
    size, width = config.input_size, config.num_streams * config.hidden_size
    directions = config.num_directions if ahead else 1
    heads = nn.ModuleList(nn.Linear(width // directions, size) for _ in range(directions))
    blank = nn.Parameter(0.5 * torch.randn(size) if token else torch.zeros(size), token)
    weights = [*network.parameters(), *heads.parameters(), blank]
    data = training.AugmentedSet(
        store, rows, normalized(extractor, store, rows), recipe.augmentation
    )
    optimizer = torch.optim.AdamW(weights, lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)

    def gaps(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        starts = (torch.rand(*values.shape[:2]) < share / 8).float()
        hidden = F.max_pool1d(F.pad(starts[:, None], (7, 0)), 8, 1).squeeze(1).bool()
        if mask is not None:
            hidden &= mask.bool()
        seen = torch.where(hidden[..., None], blank, values)
        guess = heads[0](network(seen, attention_mask=mask).last_hidden_state)
        return F.mse_loss(guess[hidden], values[hidden])

    def next_ones(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        state = network(values, attention_mask=mask).last_hidden_state
        valid = torch.ones(values.shape[:2]).bool() if mask is None else mask.bool()
        valid = valid[:, ahead:]
        losses = []
        for turn, (head, part) in enumerate(zip(heads, state.chunk(directions, -1), strict=True)):
            here, there = (part[:, ahead:], values[:, :-ahead])  # reads backwards
            if turn == 0:
                here, there = (part[:, :-ahead], values[:, ahead:])
            losses.append(F.mse_loss(head(here)[valid], there[valid]))
        return torch.stack(losses).mean()

    losses = []
    for _ in range(steps):
        batch = training.collate(data.__getitems__(torch.randperm(len(rows))[:32].tolist()))
        loss = (next_ones if ahead else gaps)(batch["input_values"], batch.get("attention_mask"))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(f"gaps filled: loss {np.mean(losses[:20]):.3f} → {np.mean(losses[-50:]):.3f}", flush=True)
    learned = copy.deepcopy(network.state_dict())

    def build(*args: Any, **kwargs: Any) -> Any:
        started = build_model(*args, **kwargs)
        started.timnet.load_state_dict(learned)
        return started

    return {"build_model": build}


def deltas(clip: np.ndarray, *_: Any) -> np.ndarray:
    """Slope of each coefficient over five frames."""
    padded = np.pad(clip, ((2, 2), (0, 0)), mode="edge")
    slope = padded[3:-1] - padded[1:-3] + 2 * (padded[4:] - padded[:-4])
    return (slope / 10).astype(np.float32)


def voice_quality(clip: np.ndarray, waveform: np.ndarray, extractor: Any) -> np.ndarray:
    """Harmonics-to-noise ratio, jitter, shimmer and spectral flatness of each frame.

    The first from the autocorrelation by that of the window (Boersma 1993), the next two as changes
    of logarithmic period and amplitude from frame to frame, nought where a frame is not voiced.
    """
    samples, rate = as_samples(waveform), extractor.sampling_rate
    size, hop = extractor.n_fft, extractor.hop_length
    window = analysis_window(extractor.win_length, size).numpy()
    padded = np.pad(samples, size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    power = np.abs(np.fft.rfft(frames, 2 * size)) ** 2 + 1e-10
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * size)) ** 2)
    lags = slice(round(rate / 500), round(rate / 65))
    likeness = np.fft.irfft(power)
    likeness = likeness[:, lags] / likeness[:, :1] * (own[0] / own[lags])
    peak = np.clip(likeness.max(1), 1e-3, 0.999)
    voiced = peak > 0.5
    period = np.log(likeness.argmax(1) + lags.start)
    amplitude = np.log(power.sum(1))
    both = (voiced[1:] & voiced[:-1]).astype(float)
    changes = [np.abs(np.diff(one)) * both for one in (period, amplitude)]
    jitter, shimmer = (np.concatenate(([0.0], one)) for one in changes)
    flatness = np.log(power).mean(1) - np.log(power.mean(1))
    columns = np.stack((10 * np.log10(peak / (1 - peak)), jitter, shimmer, flatness), 1)
    return columns[_kept(clip, samples, extractor)].astype(np.float32)


def _kept(clip: np.ndarray, waveform: np.ndarray, extractor: Any) -> slice:
    """Which frames of a recording the extractor keeps: those that stand in the clip."""
    whole = type(extractor)(**{**extractor.to_dict(), "trim_db": None}).extract(waveform)
    start = int(np.abs(whole.numpy() - clip[0]).sum(1).argmin())
    return slice(start, start + len(clip))


#: Idea → the columns that stand beside a recording's coefficients (frames, columns).
INPUTS: dict[str, Callable[[np.ndarray, np.ndarray, Any], np.ndarray]] = {
    "with-deltas": deltas,
    "with-voice-quality": voice_quality,
}


def widened(idea: str, extractor: Any, store: FeatureStore) -> FeatureStore:
    """The store with the idea's columns beside the coefficients."""
    rate, columns_of = extractor.sampling_rate, INPUTS[idea]
    features: dict[float, list[np.ndarray]] = {speed: [] for speed in store.features}
    for number, path in enumerate(store.paths):
        waveform = load_audio(path, rate)
        for speed, clips in store.features.items():
            played = waveform if speed == 1 else resample(waveform, round(rate * speed), rate)
            columns = columns_of(clips[number], played, extractor)
            features[speed].append(np.concatenate((clips[number], columns), 1))
    return dataclasses.replace(store, features=features)


def widened_microphones(store: FeatureStore, extractor: Any) -> FeatureStore:
    """`research_voices.microphones`, which bends the coefficients and leaves what is beside."""
    size = extractor.feature_size
    plain = dataclasses.replace(store, features={1.0: [one[:, :size] for one in store.original]})
    bent = microphones(plain, extractor).original
    pairs = zip(bent, store.original, strict=True)
    heard = [np.concatenate((own, wide[:, size:]), 1) for own, wide in pairs]
    return dataclasses.replace(store, features={1.0: heard})


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "attention-pooling": attention,
    "averaged-15-epochs": lambda: averaged_weights(15, 0.25),
}
