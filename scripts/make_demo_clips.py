# SPDX-License-Identifier: Apache-2.0
"""Synthesise the clips that `make demo` listens to, with espeak-ng.

No recording of a person may travel with the project, so the demo has to make do with a synthetic
voice. Each clip caricatures an emotion by what a synthesiser can turn: pitch, pitch range, rate,
loudness and timbre. The voice feels nothing, and what the model answers to it proves nothing; the
clips show that the program runs and what its output looks like.

The same version of espeak-ng gives the same clips, sample for sample:

    python scripts/make_demo_clips.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from timnet_hf.audio import load_audio

__all__ = ["CLIPS", "ESPEAK_VERSION", "Clip", "espeak_version", "main", "make_clips"]

SAMPLING_RATE = 16_000
ESPEAK_VERSION = "1.51"
"""The version the committed clips were made with."""

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "timnet_hf" / "demo_clips"


@dataclass(frozen=True)
class Clip:
    """One clip: what is said, and how.

    Attributes:
        name: Stem of the file; the emotion that is caricatured.
        text: A German sentence of our own (the model ships trained on German).
        voice: espeak-ng's voice with a variant.
        pitch: 0 to 99; espeak-ng's middle is 50.
        pitch_range: Change of the pitch range, as SSML writes it.
        rate: Words a minute; espeak-ng's own is 175.
        amplitude: 0 to 200; espeak-ng's own is 100.
    """

    name: str
    text: str
    voice: str
    pitch: int
    pitch_range: str
    rate: int
    amplitude: int


CLIPS = (
    Clip("angry", "Nein! Das habe ich jetzt schon dreimal gesagt!", "de+m3", 95, "+60%", 205, 130),
    Clip("bored", "Und dann kam noch eine Folie, und noch eine.", "de+m1", 45, "-60%", 125, 60),
    Clip("fearful", "Hörst du das? Da ist jemand an der Tür.", "de+f4", 90, "+20%", 225, 55),
    Clip("happy", "Stell dir vor, wir haben gewonnen!", "de+f2", 80, "+80%", 185, 110),
    Clip("neutral", "Der Zug nach Bremen fährt von Gleis vier.", "de+f3", 45, "+0%", 165, 85),
    Clip("sad", "Seit er fort ist, ist es hier still.", "de+f5", 20, "-50%", 120, 45),
)


def espeak_version(program: str = "espeak-ng") -> str | None:
    """Return the version of espeak-ng, such as `1.51`, or None where it is not installed."""
    if shutil.which(program) is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.partition(": ")[2].split()[0]


def synthesise(clip: Clip) -> np.ndarray:
    """Speak one clip.

    Returns:
        Mono float32 waveform (samples,) at 16 kHz, loudness as espeak-ng made it.
    """
    speech = f'<speak><prosody range="{clip.pitch_range}">{clip.text}</prosody></speak>'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-m", "-w", str(path), "-v", clip.voice]
        command += ["-p", str(clip.pitch), "-s", str(clip.rate), "-a", str(clip.amplitude)]
        subprocess.run([*command, speech], check=True)
        return load_audio(path, SAMPLING_RATE)


def make_clips(folder: Path) -> list[Path]:
    """Write every clip into a folder, as 16-bit FLAC.

    Args:
        folder: Made where it does not exist; clips of the same name are replaced.

    Returns:
        The files, in the order of `CLIPS`.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    if espeak_version() is None:
        raise FileNotFoundError("espeak-ng is not installed; get it from your system's packages")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for clip in CLIPS:
        path = folder / f"{clip.name}.flac"
        waveform = np.clip(synthesise(clip), -1.0, 1.0)
        soundfile.write(path, waveform, SAMPLING_RATE, subtype="PCM_16")
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Synthesise the demo clips with espeak-ng.")
    parser.add_argument("--output-dir", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args(arguments).output_dir
    try:
        paths = make_clips(folder)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if espeak_version() != ESPEAK_VERSION:
        print(
            f"note: espeak-ng {espeak_version()} may sound unlike {ESPEAK_VERSION}, which the "
            "committed clips were made with",
            file=sys.stderr,
        )
    for path in paths:
        print(f"{path}  {path.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
