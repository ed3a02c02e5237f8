# SPDX-License-Identifier: Apache-2.0
"""The rows that time both sides in this process: features, scoring, training steps, bulk scoring.

The clips are noise with the rise and fall of syllables: what they hold does not change the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import librosa
import numpy as np
import soundfile
import torch
from benchmark_limits import (
    features_seconds,
    gemm_rate,
    network_flops,
    read_seconds,
)
from benchmark_timing import Measure, alternate, make_row, milliseconds

from timnet_hf import TimNetFeatureExtractor, fused_timnet, load_audio
from timnet_hf.export import export_onnx
from timnet_hf.fused_timnet import passes_for
from timnet_hf.memory import keep_freed_memory
from timnet_hf.onnx_inference import OnnxModel
from timnet_hf.passes_timnet import PLAIN
from timnet_hf.prediction import Scorer, TorchScorer, load_model, predict_recordings
from timnet_hf.recipes import RECIPES
from timnet_hf.training import build_model

Row = dict[str, Any]

RATE = 16_000
DURATION = 2.73
BATCH = 64
#: Recordings enough that loading the model once is no matter; docs/scaling.md has what that costs.
BULK = 2048
#: Files that one side takes in turn: each is timed at its own pace, not with the other's caches.
TURN = 32

LIBROSA = "librosa (load + mfcc)"
KERAS = "librosa + the paper's network in Keras, as a graph"
WAV2VEC = "wav2vec 2.0 base, random weights"
PLAIN_TORCH = "the same model in PyTorch, without the extra `fast`"


def clip(seed: int = 0, duration: float = DURATION, rate: int = RATE) -> np.ndarray:
    """A waveform (samples,) with the level of speech that comes and goes."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(duration * rate)) / rate
    syllables = 0.05 + np.sin(np.pi * 3 * time + seed) ** 2
    return (0.05 * syllables * generator.standard_normal(len(time))).astype(np.float32)


@contextmanager
def clip_files(count: int) -> Iterator[list[Path]]:
    """Clips as 16-bit wav files, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="timnet-bench-") as folder:
        paths = [Path(folder) / f"{number:04d}.wav" for number in range(count)]
        for number, path in enumerate(paths):
            soundfile.write(path, clip(number), RATE)
        yield paths


def each(paths: list[Path], action: Callable[[Path], Any]) -> Measure:
    """The time of an action on one file, in ms: the mean of a turn."""
    turn = milliseconds(lambda: [action(path) for path in paths])
    return lambda: turn() / len(paths)


def rate_of(action: Callable[[], Any], sound: float) -> Measure:
    """Seconds of sound that an action scores in a second."""
    turn = milliseconds(action)
    return lambda: 1000 * sound / turn()


def librosa_features(extractor: TimNetFeatureExtractor, path: Path) -> np.ndarray:
    """The same analysis by librosa (frames, coefficients), without what only ours does.

    That is setting the level, and leaving out silence at the ends.
    """
    waveform, _ = librosa.load(path, sr=extractor.sampling_rate)
    if extractor.num_samples is not None:
        waveform = librosa.util.pad_center(waveform, size=extractor.num_samples)
    return librosa_mfcc(extractor, waveform).T


def librosa_mfcc(extractor: TimNetFeatureExtractor, waveform: np.ndarray) -> np.ndarray:
    """Coefficients (…, coefficients, frames) of waveforms (…, samples)."""
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=extractor.sampling_rate,
        n_fft=extractor.n_fft,
        win_length=extractor.win_length,
        hop_length=extractor.hop_length,
        n_mels=extractor.num_mel_bins,
        fmin=extractor.min_frequency,
        fmax=extractor.max_frequency,
    )
    decibels = librosa.power_to_db(power, top_db=extractor.top_db)
    return librosa.feature.mfcc(S=decibels, n_mfcc=extractor.feature_size)


def assert_same_features(preset: str, path: Path) -> None:
    """Both sides do the same work: their features agree, where ours keeps level and silence."""
    plain = {"normalize_level": False, "trim_db": None}
    extractor = TimNetFeatureExtractor.from_preset(preset, **plain)
    ours = extractor.extract(load_audio(path, extractor.sampling_rate)).numpy()
    np.testing.assert_allclose(ours, librosa_features(extractor, path), atol=5e-3, rtol=0)


@lru_cache
def keras_timnet() -> Any:
    """The module with the Keras network; TensorFlow is given one thread before it starts."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras_timnet as module

    return module


@lru_cache
def keras_scorer() -> Callable[[np.ndarray], np.ndarray]:
    """Features (batch, frames, 39) → labels (batch,), by the Keras network as a graph."""
    import tensorflow as tf

    graph = keras_timnet().scoring_graph(keras_timnet().build_keras_timnet(7))
    return lambda features: graph(tf.constant(features, tf.float32)).numpy().argmax(-1)


@lru_cache
def wav2vec_scorer() -> Callable[[np.ndarray], np.ndarray]:
    """Waveforms (batch, samples) → labels (batch,), by wav2vec 2.0 base with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=7)).eval()

    @torch.inference_mode()
    def score(waveforms: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(waveforms)).logits.argmax(-1).numpy()

    return score


def scoring_seconds(
    model: torch.nn.Module, extractor: TimNetFeatureExtractor, path: Path, samples: int
) -> float:
    """The machine's limit for one file → label."""
    network = network_flops(model, samples // extractor.hop_length + 1) / gemm_rate()
    return read_seconds(path) + features_seconds(extractor, samples) + network


def features_row(preset: str) -> Callable[[str, int], Row]:
    """File → features."""

    def run(name: str, rounds: int) -> Row:
        extractor = TimNetFeatureExtractor.from_preset(preset)
        rate = extractor.sampling_rate
        with clip_files(TURN) as paths:
            assert_same_features(preset, paths[0])
            ours, other = alternate(
                each(paths, lambda path: extractor.extract(load_audio(path, rate))),
                each(paths, lambda path: librosa_features(extractor, path)),
                max(rounds, 50),
            )
            limit = read_seconds(paths[0]) + features_seconds(extractor, round(DURATION * rate))
        return make_row(name, LIBROSA, ours, other, "ms", 1000 * limit)

    return run


@lru_cache
def onnx_scorer() -> OnnxModel:
    """The model that comes with the package, as `timnet export` writes it."""
    with tempfile.TemporaryDirectory(prefix="timnet-bench-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(None, path)
        return OnnxModel(path)


def clip_row(against: str, onnx: bool = False) -> Callable[[str, int], Row]:
    """File → label, one clip, by the model that comes with the package."""

    def run(name: str, rounds: int) -> Row:
        model, extractor = load_model()
        scorer: Scorer = onnx_scorer() if onnx else TorchScorer(model, extractor)

        def other(path: Path) -> Any:
            if against == WAV2VEC:
                return wav2vec_scorer()(load_audio(path, RATE)[None])
            return keras_scorer()(librosa_features(extractor, path)[None])

        with clip_files(TURN) as paths:
            times = alternate(
                each(paths, lambda path: next(iter(predict_recordings([path], scorer))).label),
                each(paths[:1] if against == WAV2VEC else paths, other),
                rounds if against == WAV2VEC else max(rounds, 50),
            )
            limit = scoring_seconds(model, extractor, paths[0], round(DURATION * RATE))
        return make_row(name, against, *times, "ms", 1000 * limit)

    return run


def batch_row(against: str) -> Callable[[str, int], Row]:
    """64 waveforms in memory → labels."""

    def run(name: str, rounds: int) -> Row:
        model, extractor = load_model()
        waveforms = np.stack([clip(seed) for seed in range(BATCH)])

        scorer = TorchScorer(model, extractor)

        def ours() -> Any:
            return scorer.score(list(waveforms))[0].argmax(-1)

        def other() -> Any:
            if against == WAV2VEC:  # eight at a time: all at once take gigabytes, and no less time
                return [wav2vec_scorer()(part) for part in np.split(waveforms, BATCH // 8)]
            return keras_scorer()(librosa_mfcc(extractor, waveforms).swapaxes(1, 2))

        times = alternate(milliseconds(ours), milliseconds(other), rounds, warm_up=1)
        samples = waveforms.shape[1]
        flops = network_flops(model, samples // extractor.hop_length + 1)
        limit = BATCH * (features_seconds(extractor, samples) + flops / gemm_rate())
        return make_row(name, against, *times, "ms", 1000 * limit)

    return run


def onnx_row(name: str, rounds: int) -> Row:
    """A waveform in memory → label, by ONNX Runtime and by PyTorch's own operations."""
    model, extractor = load_model()
    scorers: list[Scorer] = [onnx_scorer(), TorchScorer(model, extractor, compiled=False)]
    waveforms = [clip(seed) for seed in range(TURN)]
    ours, other = (
        milliseconds(lambda scorer=scorer: [scorer.score([one]) for one in waveforms])
        for scorer in scorers
    )
    times = alternate(lambda: ours() / TURN, lambda: other() / TURN, max(rounds, 50))
    samples = len(waveforms[0])
    network = network_flops(model, samples // extractor.hop_length + 1) / gemm_rate()
    limit = features_seconds(extractor, samples) + network
    return make_row(name, PLAIN_TORCH, *times, "ms", 1000 * limit)


def training_row(bfloat16: bool) -> Callable[[str, int], Row]:
    """One optimiser step of the paper's recipe on features in memory, as `timnet train` takes it.

    With ``bfloat16`` our products are taken in that type, as ``--bf16`` does, and so is the limit;
    Keras' stay in float32, its default. Memory is kept as `timnet train` keeps it, for both sides
    alike.
    """

    def row(name: str, rounds: int) -> Row:
        import tensorflow as tf

        keep_freed_memory()
        frames, labels = 188, 7
        features = torch.randn(BATCH, frames, 39)
        targets = torch.arange(BATCH) % labels
        model = build_model(RECIPES["paper"], [str(label) for label in range(labels)]).train()
        optimizer = torch.optim.Adam(
            model.parameters(), lr=1e-3, betas=(0.93, 0.98), eps=1e-8, fused=True
        )
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

        def ours() -> float:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = model(features).logits
            loss = criterion(logits.float(), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        step = keras_timnet().training_graph(keras_timnet().build_keras_timnet(labels))
        given = tf.constant(features.numpy()), tf.one_hot(targets.numpy(), labels)
        times = alternate(milliseconds(ours), milliseconds(lambda: step(*given).numpy()), rounds)
        # Backward multiplies each matrix twice: by the gradient for the input, and for the weights.
        rate = gemm_rate(torch.bfloat16 if bfloat16 else torch.float32)
        limit = 3 * BATCH * network_flops(model, frames) / rate
        return make_row(name, "the same network in Keras, as a graph", *times, "ms", 1000 * limit)

    return row


def fast_row(name: str, rounds: int) -> Row:
    """One step of the default recipe on its usual crops, with and without compiled passes."""
    keep_freed_memory()
    batch, frames, labels = 32, 125, 7
    features, targets = torch.randn(batch, frames, 39), torch.arange(batch) % labels
    model = build_model(RECIPES["default"], [str(label) for label in range(labels)]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    assert passes_for(features) is not PLAIN, "the extra `fast` is missing, or many threads"

    def step() -> float:
        optimizer.zero_grad()
        loss = model(features, labels=targets).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    def plain() -> None:
        with patch.object(fused_timnet, "passes_for", lambda _: PLAIN):
            step()

    times = alternate(milliseconds(step), milliseconds(plain), rounds)
    limit = 3 * batch * network_flops(model, frames) / gemm_rate()
    return make_row(name, "the same without the extra `fast`", *times, "ms", 1000 * limit)


def bulk_row(name: str, rounds: int) -> Row:
    """A folder of wav files → a table of scores, in seconds of sound a second."""
    from timnet_hf.scoring import score

    keep_freed_memory()  # as `timnet score` does; for both sides alike
    model, extractor = load_model()
    sound = BULK * DURATION
    with clip_files(BULK) as paths, tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "scores.parquet"

        def ours() -> None:
            output.unlink(missing_ok=True)
            summary = score(paths[0].parent, output, workers=1)
            assert (summary.rows, summary.errors) == (BULK, 0)

        def other() -> None:
            # In batches, as ours are; more at a time gain nothing.
            for start in range(0, BULK, BATCH):
                part = paths[start : start + BATCH]
                keras_scorer()(np.stack([librosa_features(extractor, path) for path in part]))

        rates = alternate(rate_of(ours, sound), rate_of(other, sound), rounds, warm_up=1)
        limit = scoring_seconds(model, extractor, paths[0], round(DURATION * RATE))
    unit = "× real time"
    against = f"{KERAS}, {BATCH} clips at a time"
    return make_row(name, against, *rates, unit, DURATION / limit, more_is_better=True)


ROWS: dict[str, Callable[[str, int], Row]] = {
    "file → features, default preset": features_row("default"),
    "file → features, paper preset": features_row("paper"),
    "file → label, one clip": clip_row(KERAS),
    "file → label, one clip, exported to ONNX": clip_row(KERAS, onnx=True),
    "file → label, one clip, beside wav2vec 2.0": clip_row(WAV2VEC),
    "waveform → label, exported to ONNX": onnx_row,
    "64 waveforms → labels": batch_row(KERAS),
    "64 waveforms → labels, beside wav2vec 2.0": batch_row(WAV2VEC),
    # Last: from here on the process keeps its memory.
    "folder of wav files → scores": bulk_row,
    "training step, 64 × 188 frames": training_row(bfloat16=False),
    "training step, 64 × 188 frames, ours in bfloat16": training_row(bfloat16=True),
    "training step, default recipe": fast_row,
}

__all__ = ["ROWS", "clip_files", "librosa_features"]
