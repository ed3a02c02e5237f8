# SPDX-License-Identifier: Apache-2.0
"""From any recording to one mono float32 waveform at the rate the model wants.

The features depend on the last decibel of the waveform, so there is one way in: `decoding` opens
the recording and checks every sample, the channels are averaged, soxr "HQ" resamples. The result
equals ``librosa.load(path, sr=…)``. What is accepted and what is refused is told in `decoding`.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from .decoding import (
    MAX_SAMPLING_RATE,
    MIN_SAMPLING_RATE,
    AudioError,
    AudioSource,
    Recording,
    open_recording,
)
from .sound_timnet import as_array

__all__ = [
    "AUDIO_EXTENSIONS",
    "MAX_DURATION",
    "AudioError",
    "AudioInfo",
    "AudioSource",
    "audio_info",
    "find_audio_files",
    "load_audio",
    "mono_blocks",
    "natural_key",
    "resample",
    "stream_audio",
]

logger = logging.getLogger(__name__)

AUDIO_EXTENSIONS: tuple[str, ...] = tuple(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .m4b .mp4 .aac .wma .aif .aiff .aifc .au .snd .caf .w64 "
    ".rf64 .sph .mp2 .mka .mkv .webm .mov .avi .wmv .flv .3gp .amr .ac3 .wv .ape .tta".split()
)
"""What `find_audio_files` picks from a folder. A file named explicitly may be called anything."""

MAX_DURATION = 4 * 3600.0


@dataclass(frozen=True)
class AudioInfo:
    """What a recording really holds.

    Attributes:
        path: The file, as it was named.
        sampling_rate: In Hz, before any resampling.
        channels: At least 1.
        frames: Samples per channel, at least 1.
        duration: In seconds.
        format: libsndfile's name of the container ("WAV", "FLAC", "OGG", "MP3" …), or "ffmpeg"
            for what only that program reads.
    """

    path: str
    sampling_rate: int
    channels: int
    frames: int
    duration: float
    format: str


def load_audio(
    source: AudioSource,
    sampling_rate: int,
    *,
    name: str | None = None,
    max_duration: float | None = MAX_DURATION,
) -> np.ndarray:
    """Decode a recording into one mono waveform.

    Args:
        source: A path, the content of a file as bytes, or a binary file object.
        sampling_rate: Of the result, in Hz, 1,000 to 768,000.
        name: How errors call the source; by default its path.
        max_duration: Longest recording accepted, in seconds; None for no limit. The default is
            4 hours (1.3 GB at 22,050 Hz): beyond it `stream_audio` is the right tool.

    Returns:
        float32 of shape (samples,), full scale ±1, with
        samples = ceil(frames × sampling_rate / rate of the file).

    Raises:
        AudioError: The source cannot be read, decoded or trusted (see the module's text).
        TypeError: The source is neither path nor bytes nor a binary file object.
        ValueError: ``sampling_rate`` is out of range.

    Example:
        >>> import io, numpy, soundfile
        >>> wav = io.BytesIO()
        >>> soundfile.write(wav, numpy.zeros((48_000, 2)), 48_000, format="WAV")
        >>> load_audio(wav.getvalue(), 22_050).shape
        (22050,)
    """
    rate = _checked_rate(sampling_rate)
    longest = math.inf if max_duration is None else max_duration
    pieces: list[np.ndarray] = []
    count = 0
    with open_recording(source, name) as recording:
        if recording.frames is not None and recording.frames > longest * recording.sampling_rate:
            raise _too_long(recording, longest)
        for piece in mono_blocks(recording, rate):
            pieces.append(piece)
            count += len(piece)
            if count > longest * rate + 1:  # the ceiling of the length may add one sample
                raise _too_long(recording, longest)
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def stream_audio(
    source: AudioSource,
    sampling_rate: int,
    block_duration: float = 10.0,
    *,
    name: str | None = None,
) -> Iterator[np.ndarray]:
    """Decode a recording of any length in bounded memory.

    The file is opened when the first block is asked for. Blocks before a bad sample are delivered
    before the error is raised.

    Args:
        source: As for `load_audio`.
        sampling_rate: Of the blocks, in Hz, 1,000 to 768,000.
        block_duration: Seconds in a block, more than 0.
        name: As for `load_audio`.

    Yields:
        float32 waveforms of shape (round(block_duration × sampling_rate),), the last one shorter
        (never empty). Joined, they are what `load_audio` returns, bit for bit.

    Raises:
        AudioError: As for `load_audio`, while iterating. There is no limit of duration.
        ValueError: At the call: ``sampling_rate`` or ``block_duration`` is out of range.
    """
    rate = _checked_rate(sampling_rate)
    if not 0 < block_duration < math.inf:
        raise ValueError(f"block_duration is {block_duration}; give a positive number of seconds")
    return _stream(source, name, rate, max(1, round(block_duration * rate)))


def mono_blocks(recording: Recording, sampling_rate: int) -> Iterator[np.ndarray]:
    """Decode an opened recording as `load_audio` does, in the blocks that come.

    Args:
        recording: From `timnet_hf.decoding.open_recording`.
        sampling_rate: Of the blocks, in Hz, 1,000 to 768,000.

    Returns:
        float32 waveforms of any length, empty ones too. Joined, they are what `load_audio` returns.

    Raises:
        AudioError: While iterating, at a bad sample.
        ValueError: ``sampling_rate`` is out of range.
    """
    rate = _checked_rate(sampling_rate)
    return _resampled(_mono(recording.blocks), recording.sampling_rate, rate)


def audio_info(path: AudioSource, *, name: str | None = None) -> AudioInfo:
    """Describe a recording by what it holds, not by what its header claims.

    The recording is decoded to be counted, in bounded memory: a second or so for an hour.

    Args:
        path: A path, or what else `load_audio` takes.
        name: As for `load_audio`.

    Returns:
        Rate, channels, frames, duration and format.

    Raises:
        AudioError: As for `load_audio`. There is no limit of duration.
    """
    with open_recording(path, name) as recording:
        frames = sum(len(block) for block in recording.blocks)
        return AudioInfo(
            path=recording.name,
            sampling_rate=recording.sampling_rate,
            channels=recording.channels,
            frames=frames,
            duration=frames / recording.sampling_rate,
            format=recording.format,
        )


def resample(
    waveform: np.ndarray, orig_sampling_rate: int, target_sampling_rate: int
) -> np.ndarray:
    """Resample one waveform with soxr "HQ".

    Args:
        waveform: Floats of shape (samples,), full scale ±1, at least one sample, all finite.
        orig_sampling_rate: Of the waveform, in Hz, 1,000 to 768,000.
        target_sampling_rate: Of the result, in Hz, 1,000 to 768,000.

    Returns:
        float32 of shape (ceil(samples × target / orig),); a copy when the rates are equal.

    Raises:
        ValueError: The shape, the type, a value or a rate is not as said above.

    Example:
        >>> import numpy
        >>> resample(numpy.zeros(16_000, dtype=numpy.float32), 16_000, 22_050).shape
        (22050,)
    """
    orig, target = _checked_rate(orig_sampling_rate), _checked_rate(target_sampling_rate)
    waveform = as_array(waveform)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"waveform has shape {waveform.shape}; give one channel of at least one sample, "
            "for example waveform.mean(axis=-1) of (samples, channels)"
        )
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"waveform holds {waveform.dtype}; divide integers by their full scale first, "
            "for example waveform / 32768 for int16"
        )
    with np.errstate(over="ignore"):  # a float64 too large becomes inf, and is refused as such
        waveform = waveform.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise ValueError("waveform holds NaN or infinity; remove or replace those samples first")
    return np.concatenate(list(_resampled(iter([waveform]), orig, target)))


def find_audio_files(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the recordings that files and folders stand for.

    A folder stands for every file below it with a name ending in one of `AUDIO_EXTENSIONS`, in
    natural order ("2.wav" before "10.wav"). Hidden files and folders are left out and links to
    folders are not followed. Anything else is passed on as given, missing files too, so that the
    one who opens it can report it. A file that is named twice is listed once.

    Args:
        inputs: Files and folders.

    Returns:
        Paths in the order of the inputs; empty when the folders hold no recordings.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        path = Path(given)
        for file in _recordings_below(path) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def natural_key(path: str | os.PathLike[str]) -> list[tuple[list[tuple[int, str]], str]]:
    """Sort key that reads the digits in each part of a path as a number, and ignores case.

    Example:
        >>> sorted(["b/10.wav", "B/9.wav", "a/11.wav"], key=natural_key)
        ['a/11.wav', 'B/9.wav', 'b/10.wav']
    """
    return [
        (
            [
                (int(piece), "") if piece.isdecimal() else (-1, piece.lower())
                for piece in re.split("([0-9]+)", part)
            ],
            part,
        )
        for part in Path(path).parts
    ]


def _recordings_below(folder: Path) -> list[Path]:
    def report(error: OSError) -> None:
        logger.warning("%r: cannot be listed (%s); left out", error.filename, error.strerror)

    files = []
    for root, folders, names in os.walk(folder, onerror=report):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(root, name)
            for name in names
            if name.lower().endswith(AUDIO_EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(files, key=natural_key)


def _stream(source: AudioSource, name: str | None, rate: int, size: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    count = 0
    with open_recording(source, name) as recording:
        for piece in mono_blocks(recording, rate):
            held.append(piece)
            count += len(piece)
            if count >= size:
                joined = np.concatenate(held)
                whole = count - count % size
                yield from joined[:whole].reshape(-1, size)
                held, count = [joined[whole:].copy()], count % size
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def _mono(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    return (block[:, 0] if block.shape[1] == 1 else block.mean(axis=1) for block in blocks)


def _resampled(blocks: Iterator[np.ndarray], orig: int, target: int) -> Iterator[np.ndarray]:
    """Resample mono blocks; soxr gives the same samples however the input is cut."""
    if orig == target:
        yield from blocks
        return
    stream = soxr.ResampleStream(orig, target, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        piece = stream.resample_chunk(block)
        taken, given = taken + len(block), given + len(piece)
        yield piece
    tail = stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
    # soxr rounds the length, librosa rounds it up: the same expression, rounding errors included.
    missing = math.ceil(taken * (float(target) / orig)) - given
    yield np.pad(tail, (0, max(0, missing - len(tail))))[: max(0, missing)]


def _checked_rate(sampling_rate: int) -> int:
    rate = operator.index(sampling_rate)
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"sampling rate {rate} Hz is outside {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}"
        )
    return rate


def _too_long(recording: Recording, longest: float) -> AudioError:
    return recording.error(
        f"is longer than {longest:g} seconds",
        "cut it, ask for a timeline of it (segments), or read it with stream_audio",
    )
