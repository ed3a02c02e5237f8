# SPDX-License-Identifier: Apache-2.0
"""What a visitor uploads → one mono waveform, or a sentence that says why not.

Nothing that a header claims is believed: the file is decoded block by block, every sample is
looked at, and a recording that goes on for too long is left where the limit is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

#: Minutes of sound that are accepted.
MAX_MINUTES = 60

#: Samples a second that a recording may have, in Hz.
SAMPLING_RATES = (1_000, 768_000)

#: Values beyond this are unscaled integers or garbage: 40 dB over full scale.
MAX_AMPLITUDE = 100.0

_BLOCK_VALUES = 2**18
_FORMATS = frozenset("WAV WAVEX RF64 W64 AIFF AU CAF FLAC OGG MP3".split())
_REMEDY = "Convert it to wav, flac, ogg or mp3."


class RecordingError(ValueError):
    """A recording that cannot be used; the message names it and says what to do."""


def load_recording(path: str, sampling_rate: int, max_minutes: float = MAX_MINUTES) -> np.ndarray:
    """Decode a file into one mono waveform: mean of the channels, resampled with soxr HQ.

    Args:
        path: The uploaded file.
        sampling_rate: Of the result, in Hz.
        max_minutes: Longest recording accepted.

    Returns:
        float32 of shape (samples,), full scale ±1, at least one sample.

    Raises:
        RecordingError: The file is gone, is no recording, is damaged, empty or too long.
    """
    # Resampled as it is decoded: an hour at 768 kHz would take 11 GB before it shrinks.
    stream: Any = None
    pieces: list[np.ndarray] = []
    taken, rate = 0, sampling_rate
    for rate, block in decode_recording(path, max_minutes):
        if rate != sampling_rate:
            if stream is None:
                stream = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
            taken += len(block)
            block = stream.resample_chunk(block)
        pieces.append(block)
    if stream is not None:
        pieces.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
        # soxr rounds the length, to nothing for a sample or two; `timnet` rounds it up.
        length = math.ceil(taken * (sampling_rate / rate))
        missing = length - sum(map(len, pieces))
        pieces.append(np.zeros(max(0, missing), dtype=np.float32))
        return np.concatenate(pieces)[:length]
    return np.concatenate(pieces)


def decode_recording(path: str, max_minutes: float) -> Iterator[tuple[int, np.ndarray]]:
    """Decode a file at its own rate, block by block.

    Args:
        path: The uploaded file.
        max_minutes: Longest recording accepted.

    Yields:
        The rate in Hz, again and again, and the next mono samples (samples,); at least one.

    Raises:
        RecordingError: As for :func:`load_recording`.
    """
    name = shown_name(path)
    if not Path(path).is_file():
        raise RecordingError(f"{name} is no longer here. Upload it again.")
    count = 0
    try:
        # By file object: the content decides what a file is, not its extension.
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
            rate, channels = sound.samplerate, sound.channels
            if sound.format not in _FORMATS:
                raise RecordingError(f"{name} is not a recording that can be read. {_REMEDY}")
            if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1] or channels < 1:
                raise RecordingError(
                    f"{name} claims {channels} channels at {rate} Hz. Repair its header."
                )
            while len(block := _read(sound, _BLOCK_VALUES // channels + 1)):
                if not np.abs(block).max() <= MAX_AMPLITUDE:  # "not <=": NaN compares false
                    raise RecordingError(
                        f"{name} holds values that no recording has (NaN, infinite, or far beyond "
                        "full scale). Export it again as 16-bit wav."
                    )
                count += len(block)
                if count > max_minutes * 60 * rate:
                    raise RecordingError(
                        f"{name} is longer than {max_minutes:g} minutes. Cut it into parts."
                    )
                yield rate, block.mean(axis=1)
    except (soundfile.LibsndfileError, TypeError, OSError) as error:
        raise RecordingError(f"{name} cannot be decoded. {_REMEDY}") from error
    if not count:
        raise RecordingError(f"{name} holds no sound. Record it again.")


def shown_name(path: str) -> str:
    """The file's name for a message: one line, and not too long."""
    name = Path(path).name
    name = name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def _read(sound: soundfile.SoundFile, frames: int) -> np.ndarray:
    """The next frames (frames, channels); none where the file ends or is damaged."""
    try:
        return sound.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return np.zeros((0, sound.channels), dtype=np.float32)


__all__ = [
    "MAX_MINUTES",
    "RecordingError",
    "decode_recording",
    "load_recording",
    "shown_name",
]
