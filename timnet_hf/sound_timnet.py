# SPDX-License-Identifier: Apache-2.0
"""From a recording to blocks of sound at the model's rate, and where in them there is speech.

These files also travel without the rest of the package. Where it is installed its decoder is used,
so a recording gives the same samples on every way in; without it soundfile decodes and soxr
resamples just the same, and torchaudio stands in for soxr. Whatever is optional is imported inside
a ``try``, which the Hub's check of custom code takes as optional too. torch is imported where it is
needed: a timeline by ONNX Runtime does without.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

#: Far beyond full scale, even of unscaled 16-bit samples; the power spectrum stays finite.
MAX_AMPLITUDE = 1e5


def as_array(waveform: Any) -> np.ndarray:
    """An array of an array, a list or a tensor; numpy knows neither gradients nor bfloat16."""
    if hasattr(waveform, "detach"):
        waveform = waveform.detach().cpu()
        waveform = waveform.float() if waveform.is_floating_point() else waveform
    return np.asarray(waveform)


def check_samples(waveform: np.ndarray) -> None:
    """Refuse what is no recording.

    Raises:
        ValueError: The waveform is empty, not one-dimensional, holds integers, or has samples that
            are NaN, infinite or beyond ±`MAX_AMPLITUDE`.
    """
    if waveform.ndim != 1:
        raise ValueError(
            f"Expected a mono waveform (samples,), got shape {waveform.shape}. "
            "Mix the channels down first."
        )
    if not waveform.size:
        raise ValueError("The waveform is empty. Pass at least one sample.")
    if waveform.dtype.kind != "f":
        raise ValueError(
            f"The waveform holds {waveform.dtype} values. Pass floating-point samples within ±1: "
            "16-bit integers divided by 32768."
        )
    peak = max(-float(waveform.min()), float(waveform.max()))  # a NaN makes both NaN
    if not math.isfinite(peak):
        raise ValueError("The waveform has NaN or infinite samples. Repair or leave out the clip.")
    if peak > MAX_AMPLITUDE:
        raise ValueError(f"The waveform reaches {peak:g}. Scale it to lie within ±1.")


def decode_blocks(
    source: str | os.PathLike[str] | bytes, sampling_rate: int
) -> Iterator[np.ndarray]:
    """Decode a file, or the content of one, without ever holding all of it.

    Args:
        source: A path, or the content of a file as bytes.
        sampling_rate: Of the blocks, in Hz.

    Yields:
        Mono float32 waveforms (samples,), full scale ±1.

    Raises:
        ValueError: The recording cannot be read or decoded.
        ImportError: Neither timnet-hf nor soundfile is installed.
    """
    try:
        from timnet_hf.audio import stream_audio
    except ImportError:
        blocks = _soundfile_blocks(source, sampling_rate)
    else:
        blocks = stream_audio(source, sampling_rate)
    yield from blocks


def _soundfile_blocks(
    source: str | os.PathLike[str] | bytes, sampling_rate: int
) -> Iterator[np.ndarray]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            "Decoding a recording needs timnet-hf or soundfile: pip install soundfile, or pass "
            "the waveform."
        ) from error
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with soundfile.SoundFile(file) as recording:
            resampler = None
            if recording.samplerate != sampling_rate:
                resampler = StreamResampler(recording.samplerate, sampling_rate)
            for block in recording.blocks(recording.samplerate, dtype="float32", always_2d=True):
                mono = block.mean(axis=1)
                yield resampler.feed(mono) if resampler else mono
            if resampler:
                yield resampler.finish()
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{name}: cannot be decoded ({error.error_string}); convert it to wav, flac, ogg or "
            "mp3, or install timnet-hf, which also reads what ffmpeg does"
        ) from error


class StreamResampler:
    """Resamples block by block to what resampling in one piece gives.

    soxr at quality "HQ" does it, as everywhere else in the project; torchaudio where soxr is not
    installed.

    Args:
        orig_rate: Rate of the blocks, in Hz, at least 1,000.
        rate: Rate of the result, in Hz.

    Raises:
        ValueError: A rate is too low.
    """

    def __init__(self, orig_rate: int, rate: int):
        if min(orig_rate, rate) < 1_000:
            raise ValueError(f"A sampling rate of {min(orig_rate, rate)} Hz is under 1,000 Hz.")
        #: Seconds of sound that may be held back: soxr's are measured, with a margin.
        self.delay = 0.1 + 1_000 / orig_rate
        self._ratio = rate / orig_rate
        self._taken = self._given = 0
        try:
            import soxr

            self._soxr = soxr.ResampleStream(orig_rate, rate, 1, dtype="float32", quality="HQ")
        except ImportError:
            self._soxr = None
        divisor = math.gcd(orig_rate, rate)
        self._orig, self._new = orig_rate // divisor, rate // divisor
        # torchaudio's filter sees this far to either side; its phases repeat every _orig samples.
        reach = 70 * self._orig / min(self._orig, self._new)
        self._margin = self._orig * math.ceil(reach / self._orig)
        self._held = np.zeros(self._margin, dtype=np.float32)

    def feed(self, block: np.ndarray) -> np.ndarray:
        """Take samples (n,); return the resampled ones that are ready."""
        self._taken += len(block)
        ready = self._run(block) if self._soxr is None else self._soxr.resample_chunk(block)
        self._given += len(ready)
        return ready

    def finish(self) -> np.ndarray:
        """Return the rest, so that there are ceil(samples · ratio) in all."""
        if self._soxr is None:
            tail = self._run(np.zeros(2 * self._margin + self._orig, dtype=np.float32))
        else:
            tail = self._soxr.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        missing = max(0, math.ceil(self._taken * self._ratio) - self._given)
        return np.pad(tail, (0, max(0, missing - len(tail))))[:missing]

    def _run(self, block: np.ndarray) -> np.ndarray:
        """Resample with torchaudio what lies between one margin behind and one margin ahead."""
        import torch
        from torchaudio.functional import resample

        held = np.concatenate((self._held, block))
        body = max(0, (len(held) - 2 * self._margin) // self._orig * self._orig)
        self._held = held[body:].copy()
        if not body:
            return np.zeros(0, dtype=np.float32)
        piece = torch.from_numpy(held[: body + 2 * self._margin])
        done = resample(piece, self._orig, self._new, lowpass_filter_width=64).numpy()
        first = self._margin // self._orig * self._new
        return done[first : first + body // self._orig * self._new]


class EnergyDetector:
    """Tells sound from silence by the level of each frame, against what was heard around it.

    Silence is whatever lies less than 10 dB over the quietest frame, or more than 40 dB under the
    loudest; but whatever lies within 15 dB of the loudest is sound, however steady it is. Both are
    followed half a second ahead, and forgotten by and by: the quietest rises by 2 dB a second, the
    loudest falls by a quarter of one. The loudest counts as -30 dBFS at least, so nothing under
    -70 dBFS is sound.

    Args:
        sampling_rate: Of the frames, in Hz.
    """

    lookahead = 0.5

    def __init__(self, sampling_rate: int):
        self.frame_length = max(1, round(0.02 * sampling_rate))
        self._ahead = round(self.lookahead * sampling_rate / self.frame_length)
        self._step = self.frame_length / sampling_rate
        self._levels: deque[float] = deque()
        self._quietest = math.inf
        self._loudest = -30.0

    def feed(self, frames: np.ndarray) -> list[bool]:
        """Take frames (n, frame_length); decide on those that the lookahead has passed."""
        steady = frames - frames.mean(1, keepdims=True)  # an offset of the converter is no sound
        power = np.square(steady, dtype=np.float64).mean(1)
        decisions = []
        for level in (10 * np.log10(np.maximum(power, 1e-7))).tolist():
            self._levels.append(level)
            self._quietest = min(self._quietest + 2 * self._step, level)
            self._loudest = max(self._loudest - self._step / 4, level, -30.0)
            if len(self._levels) > self._ahead:
                decisions.append(self._decide())
        return decisions

    def finish(self) -> list[bool]:
        """Decide on the frames that are left."""
        return [self._decide() for _ in range(len(self._levels))]

    def _decide(self) -> bool:
        noise = min(self._quietest + 10, self._loudest - 15)
        return self._levels.popleft() > max(noise, self._loudest - 40)


class SileroDetector:
    """Tells speech from everything else with the silero-vad network.

    Music, traffic and a tone are sound to :class:`EnergyDetector`, and get a label like a voice
    does; here they are left out. The network hears 32 ms at a time and calls speech what it gives
    a probability of at least one half.

    Args:
        sampling_rate: Of the frames, in Hz; the network hears them at 16 kHz.

    Raises:
        ImportError: silero-vad is not installed.
    """

    lookahead = 0.0

    def __init__(self, sampling_rate: int):
        try:
            from silero_vad import load_silero_vad  # type: ignore
        except ImportError as error:
            raise ImportError(
                'vad="silero" needs silero-vad: pip install silero-vad, or use vad="energy".'
            ) from error
        self.frame_length = round(512 / 16_000 * sampling_rate)
        self._rate = sampling_rate
        import torch
        from torchaudio.functional import resample

        self._torch, self._resample = torch, resample
        self._network = load_silero_vad()  # it remembers what it heard: one for each stream
        self._before = np.zeros(self.frame_length, dtype=np.float32)

    def feed(self, frames: np.ndarray) -> list[bool]:
        """Take frames (n, frame_length) and decide on them."""
        return [self._is_speech(frame) for frame in frames]

    def finish(self) -> list[bool]:
        """Nothing is left to decide on."""
        return []

    def _is_speech(self, frame: np.ndarray) -> bool:
        torch = self._torch
        samples = torch.from_numpy(frame.astype(np.float32))
        if self._rate != 16_000:
            pair = np.concatenate((self._before, frame)).astype(np.float32)
            self._before = frame
            samples = self._resample(torch.from_numpy(pair), self._rate, 16_000)
            samples = torch.nn.functional.pad(samples, (512, 0))[-512:]
        with torch.no_grad():
            return float(self._network(samples, 16_000)) >= 0.5


DETECTORS: dict[str, Callable[[int], EnergyDetector | SileroDetector]] = {
    "energy": EnergyDetector,
    "silero": SileroDetector,
}

__all__ = [
    "DETECTORS",
    "MAX_AMPLITUDE",
    "EnergyDetector",
    "SileroDetector",
    "StreamResampler",
    "as_array",
    "check_samples",
    "decode_blocks",
]
