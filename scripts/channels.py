#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Does a recording get the same answer whatever it went through on its way?

Each recording of a corpus is resampled by three libraries, stored in three codecs, made louder and
softer, and given silence at its ends. Every version is a file that is read like a user's. The
answers are compared with the original's, and results/channels.json tells how often the first label
is the same and how far the probabilities are apart ::

    python scripts/channels.py --data-dir ../shared/data --corpus emodb
    python scripts/channels.py --data-dir ../shared/data --corpus ravdess --every 3 \
        --output results/channels-unheard.json

A model is surer of the recordings it learned, so the second line asks about such that it did not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import soundfile
import soxr
import torch
import torchaudio

from timnet_hf.corpora import load_corpus
from timnet_hf.output_folder import write_json
from timnet_hf.prediction import CHECKPOINTS, TorchScorer, load_model, predict_recordings
from timnet_hf.provenance import versions

RESULTS = Path(__file__).absolute().parents[1] / "results" / "channels.json"
RATES = (16_000, 22_050, 44_100, 48_000, 8_000)
SILENCE = 0.3
#: What must hold for every version, except at 8 kHz, where half of the band is gone.
AGREEMENT, DIFFERENCE = 99.0, 0.02

#: Writes a version of (file, its samples, their rate) into a folder and says where it lies.
Version = Callable[[Path, np.ndarray, int, Path], Path]


def stored(samples: np.ndarray, rate: int, path: Path, subtype: str | None = None) -> Path:
    """The file, written by soundfile."""
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def by_soxr(to: int) -> Version:
    """Resampled by soxr, 16 bits."""
    return lambda source, samples, rate, folder: stored(
        soxr.resample(samples, rate, to), to, folder / "a.wav", "PCM_16"
    )


def by_torchaudio(to: int) -> Version:
    """Resampled by torchaudio, 16 bits."""

    def version(source: Path, samples: np.ndarray, rate: int, folder: Path) -> Path:
        moved = torchaudio.functional.resample(torch.from_numpy(samples), rate, to)
        return stored(moved.numpy(), to, folder / "a.wav", "PCM_16")

    return version


def by_ffmpeg(name: str, *options: str) -> Version:
    """Converted by ffmpeg with these options."""

    def version(source: Path, samples: np.ndarray, rate: int, folder: Path) -> Path:
        quiet = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", str(source)]
        subprocess.run([*quiet, *options, str(folder / name)], check=True)
        return folder / name

    return version


def changed(change: Callable[[np.ndarray, int], np.ndarray], name: str = "a.wav") -> Version:
    """With its samples changed, and stored as the file's name says; wav as floats."""
    subtype = "FLOAT" if name.endswith("wav") else None
    return lambda source, samples, rate, folder: stored(
        change(samples, rate), rate, folder / name, subtype
    )


def _gain(decibels: float) -> Version:
    return changed(lambda samples, rate: samples * np.float32(10 ** (decibels / 20)))


def _padded(before: bool, after: bool) -> Version:
    def change(samples: np.ndarray, rate: int) -> np.ndarray:
        gap = round(SILENCE * rate)
        return np.pad(samples, (before * gap, after * gap))

    return changed(change)


VERSIONS: dict[str, Version] = {
    **{f"{rate} Hz by soxr": by_soxr(rate) for rate in RATES},
    **{f"{rate} Hz by torchaudio": by_torchaudio(rate) for rate in RATES},
    **{f"{rate} Hz by ffmpeg": by_ffmpeg("a.wav", "-ar", str(rate)) for rate in RATES},
    "flac": changed(lambda samples, rate: samples, "a.flac"),
    "ogg": changed(lambda samples, rate: samples, "a.ogg"),
    "mp3, 128 kbit/s": by_ffmpeg("a.mp3", "-b:a", "128k"),
    "12 dB louder": _gain(12),
    "12 dB softer": _gain(-12),
    "300 ms of silence before": _padded(True, False),
    "300 ms of silence after": _padded(False, True),
    "300 ms of silence at both ends": _padded(True, True),
}


def measure(paths: list[str], scorer: Any, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Score every version of every recording."""
    labels = list(scorer.labels)
    originals = _answers(paths, scorer, labels)
    told: dict[str, Any] = {}
    for name, version in VERSIONS.items():
        with tempfile.TemporaryDirectory() as scratch:
            made = []
            for number, path in enumerate(paths):
                samples, rate = soundfile.read(path, dtype="float32")
                folder = Path(scratch) / str(number)
                folder.mkdir()
                made.append(str(version(Path(path), samples, rate, folder)))
            answers = _answers(made, scorer, labels)
        gaps = np.abs(answers - originals)
        told[name] = {
            "same_label_percent": round(
                100 * float(np.mean(answers.argmax(1) == originals.argmax(1))), 2
            ),
            "mean_difference": round(float(gaps.mean()), 5),
            "mean_largest_difference": round(float(gaps.max(1).mean()), 5),
        }
        say(f"{name}: {told[name]}")
    return told


def _answers(paths: list[str], scorer: Any, labels: list[str]) -> np.ndarray:
    predictions = list(predict_recordings(paths, scorer))
    if failed := [one.error for one in predictions if one.error]:
        sys.exit(f"{len(failed)} recordings could not be scored: {failed[0]}")
    return np.array([[one.scores[label] for label in labels] for one in predictions])


def short_of(versions_told: dict[str, Any]) -> list[str]:
    """The versions that must and do not get the same answer."""
    return [
        name
        for name, told in versions_told.items()
        if not name.startswith("8000")
        and (told["same_label_percent"] < AGREEMENT or told["mean_difference"] > DIFFERENCE)
    ]


def main() -> None:
    """Measure on a corpus and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--corpus", default="emodb")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each Nth recording")
    parser.add_argument("--model", default="timnet-emodb", choices=["timnet-emodb", "timnet-multi"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = list(load_corpus(options.corpus, options.data_dir)["path"])[:: options.every]
    model, extractor = load_model(options.model)
    record = json.loads((CHECKPOINTS / options.model / "training_record.json").read_text())
    told = measure(paths, TorchScorer(model, extractor))
    write_json(
        options.output,
        {
            "corpus": options.corpus,
            "n_files": len(paths),
            "model": options.model,
            "learned": options.corpus in record["corpus"].split("-"),
            "model_trained": record["started"],
            "must": {"same_label_percent": AGREEMENT, "mean_difference": DIFFERENCE},
            "falls_short": short_of(told),
            "versions": told,
            "command": f"python scripts/channels.py --corpus {options.corpus} "
            f"--data-dir {options.data_dir.name} --every {options.every} --model {options.model}",
            "software": versions(),
        },
    )


if __name__ == "__main__":
    main()
