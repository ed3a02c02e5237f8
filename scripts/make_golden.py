# SPDX-License-Identifier: Apache-2.0
"""Write down what the shipped checkpoints compute from synthetic clips, for the golden test.

    python scripts/make_golden.py

Run it after a checkpoint was trained anew, or after a change that is meant to alter features or
answers; `tests/test_golden.py` then holds every machine to these values.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from timnet_hf import TimNetFeatureExtractor, load_audio
from timnet_hf.prediction import CHECKPOINTS, load_model

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden.json"


def clips() -> dict[str, bytes]:
    """Recordings without chance: name → the content of a FLAC file, each of another rate."""
    made = {}
    for name, rate, seconds, channels, pitch in (
        ("vowel", 16_000, 1.5, 1, 120.0),
        ("stereo glide", 44_100, 1.2, 2, 180.0),
        ("short", 8_000, 0.04, 1, 300.0),
        ("pause", 22_050, 2.0, 1, 95.0),
    ):
        time = np.arange(round(seconds * rate)) / rate
        phase = 2 * np.pi * pitch * (time + 0.15 * time**2)
        sound = sum(np.sin(k * phase) / k * np.cos(7 * time * k) for k in range(1, 12))
        sound = sound * np.sin(np.pi * 3 * time) ** 2 + 0.002 * np.sin(1e4 * time**2)
        if name == "pause":
            sound[rate // 2 : rate] = 0
        sound = 0.3 * sound / np.abs(sound).max()
        samples = np.stack([sound, 0.5 * sound[::-1]], axis=1) if channels == 2 else sound
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
        made[name] = file.getvalue()
    return made


def features_of(extractor: TimNetFeatureExtractor, clip: bytes) -> tuple[torch.Tensor, Any]:
    """The network's input (1, frames, coefficients), and the part of it that is written down."""
    waveform = load_audio(clip, extractor.sampling_rate)
    batch = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    values = batch["input_values"]
    frames = values.shape[1]
    shown = {index: values[0, index].tolist() for index in sorted({0, frames // 2, frames - 1})}
    return values, {
        "shape": list(values.shape),
        "mean": values[0].mean(0).tolist(),
        "frames": {str(index): row for index, row in shown.items()},
    }


def compute() -> dict[str, Any]:
    """Features of both presets' extractors, and features and logits of every checkpoint."""
    paper = TimNetFeatureExtractor.from_preset("paper")
    golden: dict[str, Any] = {
        "paper preset": {name: features_of(paper, clip)[1] for name, clip in clips().items()},
        "checkpoints": {},
    }
    for folder in sorted(path for path in CHECKPOINTS.iterdir() if path.is_dir()):
        model, extractor = load_model(folder.name)
        record = json.loads((folder / "training_record.json").read_text(encoding="utf-8"))
        answers = {}
        for name, clip in clips().items():
            values, features = features_of(extractor, clip)
            with torch.inference_mode():
                logits = model(values).logits[0].tolist()
            answers[name] = {"features": features, "logits": logits}
        golden["checkpoints"][folder.name] = {
            "model_sha256": record["model_sha256"],
            "clips": answers,
        }
    return golden


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=GOLDEN)
    target = parser.parse_args().output
    target.write_text(json.dumps(_rounded(compute())) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
