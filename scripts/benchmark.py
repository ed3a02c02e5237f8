# SPDX-License-Identifier: Apache-2.0
"""Measure speed by ratio: each row times two sides alternately in this one process.

    python scripts/benchmark.py            writes results/benchmark.json

One thread. A synthetic clip of 2.73 s stands for a recording. The ratio is theirs over ours: above
one, ours is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import librosa
import numpy as np
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.crossvalidation import write_json
from timnet_hf.prediction import load_model
from timnet_hf.provenance import versions

ROOT = Path(__file__).resolve().parent.parent
DURATION = 2.73


def compare(
    name: str, ours: Callable[[], Any], other: Callable[[], Any], against: str, rounds: int
) -> dict[str, Any]:
    """Time both sides turn by turn; medians of times and of ratios."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    for side in (ours, other):
        side()  # what happens once only is not part of it
    for _ in range(rounds):
        for label, side in (("ours", ours), ("other", other)):
            start = time.perf_counter()
            side()
            times[label].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times["ours"], times["other"], strict=True)]
    row = {
        "name": name,
        "against": against,
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "ours": round(1000 * statistics.median(times["ours"]), 3),
        "other": round(1000 * statistics.median(times["other"]), 3),
        "unit": "ms",
        "rounds": rounds,
    }
    print(f"{name}: {row['ratio_median']} × ({row['ours']} ms against {row['other']} ms)")
    return row


def librosa_mfcc(extractor: TimNetFeatureExtractor, clip: np.ndarray) -> np.ndarray:
    """The same analysis by librosa, without the level and silence handling that only ours has."""
    return librosa.feature.mfcc(
        y=clip,
        sr=extractor.sampling_rate,
        n_mfcc=extractor.feature_size,
        n_fft=extractor.n_fft,
        win_length=extractor.win_length,
        hop_length=extractor.hop_length,
        n_mels=extractor.num_mel_bins,
        fmin=extractor.min_frequency,
        fmax=extractor.max_frequency,
    )


def main() -> None:
    """Measure all rows and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    rows = []
    for preset in ("default", "paper"):
        extractor = TimNetFeatureExtractor.from_preset(preset, num_samples=None)
        samples = round(DURATION * extractor.sampling_rate)
        clip = (0.1 * generator.standard_normal(samples)).astype(np.float32)
        rows.append(
            compare(
                f"features, {preset} preset",
                lambda clip=clip, extractor=extractor: extractor.extract(clip),
                lambda clip=clip, extractor=extractor: librosa_mfcc(extractor, clip),
                "librosa",
                arguments.rounds,
            )
        )
    model, extractor = load_model()
    large = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=7)).eval()
    clip = (0.1 * generator.standard_normal(round(DURATION * 16_000))).astype(np.float32)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        features = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_values"]
        return model(features).logits

    @torch.inference_mode()
    def other() -> torch.Tensor:
        return large(torch.from_numpy(clip)[None]).logits

    rows.append(
        compare(
            "features and network, one clip",
            ours,
            other,
            "wav2vec 2.0 base, random weights",
            arguments.rounds,
        )
    )
    write_json(arguments.output, {"rows": rows, "threads": 1, "versions": versions()})


if __name__ == "__main__":
    main()
