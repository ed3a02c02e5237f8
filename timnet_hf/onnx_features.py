# SPDX-License-Identifier: Apache-2.0
"""From a waveform to the log power of its mel bands, as ONNX operators.

The Fourier transform takes two steps, as any fast one does. With n = N₂·n₁ + n₂ and
k = k₁ + N₁·k₂ ::

    X[k] = Σ_n₂ exp(-2πi·n₂k₂/N₂) · ( Σ_n₁ x[n] · exp(-2πi·n·k₁/N) )
           one matrix product for k₁   a strided convolution for n₂

The convolution multiplies by the window too. As x is real, k₁ = 0 … N₁/2 give all bins, as they are
or mirrored, and the power of both is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .onnx_graph import Graph


@dataclass(frozen=True)
class Analysis:
    """How a waveform becomes bands, see ``TimNetFeatureExtractor``.

    Attributes:
        window: (win_length,) what samples are multiplied by.
        filters: (n_fft // 2 + 1, bands) what bins are summed with.
        n_fft: Length of the Fourier transform, in samples.
        hop_length: Samples between frames.
        num_samples: Length to pad or crop to, or None.
        normalize_level: Set the mean power of speech to 0 dB.
        trim_db: Leave out frames at both ends this far under the loudest, or None.
        top_db: Depth of the log spectrum, or None.
        silence_power: Power of the loudest frame up to which a clip is silence.
    """

    window: np.ndarray
    filters: np.ndarray
    n_fft: int
    hop_length: int
    num_samples: int | None
    normalize_level: bool
    trim_db: float | None
    top_db: float | None
    silence_power: float


def checked_samples(graph: Graph, analysis: Analysis) -> tuple[str, str, str]:
    """Samples (batch, samples), zero behind each clip; lengths (batch, 1); whether they can be.

    The mask has a column for every sample, or one for all of them, which costs a sixteenth less.
    """
    mask = "attention_mask"
    samples = graph.op("Mul", "waveform", graph.cast(mask, "FLOAT"))
    # ONNX Runtime sums doubles several times faster than integers, and they count as exactly.
    lengths = graph.op("ReduceSum", graph.cast(mask, "DOUBLE"), graph.integers(1))
    lengths = graph.cast(lengths, "INT64")
    each = graph.op("Div", graph.size("waveform", 1), graph.size(mask, 1))
    lengths = graph.op("Mul", lengths, each)
    # A mask without holes: the first 0 stands where the clip ends, or there is none.
    gap = graph.op("ArgMin", mask, axis=1)
    whole = graph.op("Equal", lengths, graph.size("waveform", 1))
    sound = graph.op("Or", whole, graph.op("Equal", gap, lengths))
    sound = graph.op("And", sound, graph.op("Greater", lengths, graph.integers(0)))
    if analysis.num_samples is None:
        return samples, lengths, sound
    # Cut out the middle, or put zeros around; division rounds towards zero, as it should.
    count = analysis.num_samples
    around = graph.op("Pad", samples, graph.integers(0, count, 0, count))
    excess = graph.op("Sub", lengths, graph.integers(count))
    offset = graph.op("Div", excess, graph.integers(2))
    start = graph.op("Add", offset, graph.integers(count))
    place = graph.op("Add", start, graph.count_to(graph.integers(count)))
    samples = graph.op("GatherElements", around, place, axis=1)
    lengths = graph.op("Add", graph.op("Mul", lengths, graph.integers(0)), graph.integers(count))
    return samples, lengths, sound


def log_bands(
    graph: Graph, analysis: Analysis, samples: str, lengths: str
) -> tuple[str, str, str, str]:
    """Log power of the bands, and which frames of it stay.

    Returns:
        Bands (batch, bands, frames); first frame and number of frames, (batch, 1); and whether the
        power is a number: where a sample is NaN or infinite, or its square is, it is none.
    """
    reach = 2 * (analysis.n_fft // 2) - analysis.n_fft
    hop = graph.integers(analysis.hop_length)

    def frame_count(samples: str) -> str:
        whole = graph.op("Div", graph.op("Add", samples, graph.integers(reach)), hop)
        return graph.op("Add", whole, graph.integers(1))

    total = frame_count(graph.size(samples, 1))
    power = _power(graph, analysis, samples, total)
    step = graph.count_to(total)
    frames = frame_count(lengths)
    kept = graph.op("Less", step, frames)
    first = graph.op("Mul", frames, graph.integers(0))

    nothing = graph.number(0)
    loudness = graph.op("ReduceSum", power, graph.integers(1), keepdims=0)
    loudness = graph.op("Where", kept, loudness, nothing)
    # A maximum may pass over NaN; a sum does not.
    whole = graph.op("ReduceSum", loudness, graph.integers(1))
    finite = graph.op("Less", whole, graph.number(3e38))
    if analysis.trim_db is not None or analysis.normalize_level:
        loudest = graph.op("ReduceMax", loudness, graph.integers(1))
        heard = graph.op("Greater", loudest, graph.number(analysis.silence_power))
        depth = analysis.trim_db or 40.0
        threshold = graph.op("Mul", loudest, graph.number(10 ** (-depth / 10)))
        speech = graph.op("And", heard, graph.op("Greater", loudness, threshold))
        silence = graph.op("And", graph.op("Not", heard), kept)  # of which all frames stay
        speech = graph.op("Or", speech, silence)
        if analysis.normalize_level:
            count = graph.op("ReduceSum", graph.cast(speech, "FLOAT"), graph.integers(1))
            level = graph.op("Where", speech, loudness, nothing)
            level = graph.op("Div", graph.op("ReduceSum", level, graph.integers(1)), count)
            level = graph.op("Div", level, graph.number(analysis.filters.shape[1]))
            level = graph.op("Where", heard, level, graph.number(1))
            power = graph.op("Div", power, graph.op("Unsqueeze", level, graph.integers(2)))
        if analysis.trim_db is not None:
            here = graph.cast(speech, "INT32")
            first = graph.op("ArgMax", here, axis=1)
            last = graph.op("ArgMax", here, axis=1, select_last_index=1)
            frames = graph.op("Add", graph.op("Sub", last, first), graph.integers(1))
            kept = graph.op("And", kept, graph.op("GreaterOrEqual", step, first))
            kept = graph.op("And", kept, graph.op("LessOrEqual", step, last))

    bands = graph.op("Log", graph.op("Max", power, graph.number(1e-10)))
    if analysis.top_db is not None:
        highest = graph.op("ReduceMax", bands, graph.integers(1), keepdims=0)
        highest = graph.op("Where", kept, highest, graph.number(-1e9))
        highest = graph.op("ReduceMax", highest, graph.integers(1))
        floor = graph.op("Sub", highest, graph.number(analysis.top_db * math.log(10) / 10))
        bands = graph.op("Max", bands, graph.op("Unsqueeze", floor, graph.integers(2)))
    return bands, first, frames, finite


def _power(graph: Graph, analysis: Analysis, samples: str, total: str) -> str:
    """Power (batch, bands, frames) of samples (batch, samples), by the two steps told above."""
    n_fft, hop, length = analysis.n_fft, analysis.hop_length, len(analysis.window)
    phases = _phases(n_fft, hop, length)
    rows = n_fft // phases  # N₁
    half = rows // 2 + 1
    taps = -(-length // phases)

    # The window's first sample lies this far before the middle of a frame.
    before = n_fft // 2 - (n_fft - length) // 2
    needed = graph.op("Mul", graph.op("Sub", total, graph.integers(1)), graph.integers(hop))
    needed = graph.op("Add", needed, graph.integers(taps * phases - before))
    after = graph.op("Sub", needed, graph.size(samples, 1))
    ends = graph.op("Concat", graph.integers(0, before, 0), after, axis=0)
    padded = graph.op("Pad", samples, ends)
    padded = graph.op("Reshape", padded, graph.integers(0, -1, phases))
    padded = graph.op("Transpose", padded, perm=[0, 2, 1])

    position = np.arange(taps * phases)
    window = np.zeros(taps * phases)
    window[:length] = analysis.window
    wave = np.exp(-2j * np.pi * np.outer(position, np.arange(half)) / n_fft)
    wave = (window[:, None] * wave).reshape(taps, phases, half).transpose(1, 2, 0)
    kernel = np.stack([wave.real, wave.imag], axis=2).reshape(2 * phases * half, 1, taps)
    spectrum = graph.op("Conv", padded, graph.number(kernel), group=phases, strides=[hop // phases])
    if phases > 1:
        # (phase, k₁, part) → (k₁, phase, part): one product for each k₁
        spectrum = graph.op("Reshape", spectrum, graph.integers(0, phases, half, -1))
        spectrum = graph.op("Transpose", spectrum, perm=[0, 2, 1, 3])
        spectrum = graph.op("Reshape", spectrum, graph.integers(0, half, 2 * phases, -1))
        turn = np.exp(-2j * np.pi * np.outer(np.arange(phases), np.arange(phases)) / phases)
        real = np.stack([turn.real, -turn.imag], axis=2).reshape(phases, -1)
        imaginary = np.stack([turn.imag, turn.real], axis=2).reshape(phases, -1)
        second = graph.number(np.concatenate([real, imaginary]))  # (part · k₂, phase · part)
        spectrum = graph.op("MatMul", second, spectrum)
        squares = graph.op("Mul", spectrum, spectrum)
        squares = graph.op("Reshape", squares, graph.integers(0, half, 2, phases, -1))
    else:
        squares = graph.op("Mul", spectrum, spectrum)
        squares = graph.op("Reshape", squares, graph.integers(0, half, 2, 1, -1))
    squares = graph.op("ReduceSum", squares, graph.integers(2), keepdims=0)
    squares = graph.op("Reshape", squares, graph.integers(0, half * phases, -1))

    bins = (np.arange(half)[:, None] + rows * np.arange(phases)).flatten()
    bins = np.where(bins > n_fft // 2, n_fft - bins, bins)
    _, chosen = np.unique(bins, return_index=True)  # some bins come twice, mirrored
    filters = np.zeros((len(bins), analysis.filters.shape[1]))
    filters[chosen] = analysis.filters[bins[chosen]]
    return graph.op("MatMul", graph.number(filters.T), squares)


def _phases(n_fft: int, hop_length: int, win_length: int) -> int:
    """The N₂ of the fewest multiplications a frame; it divides the transform and the hop."""

    def cost(phases: int) -> int:
        half = n_fft // phases // 2 + 1
        taps = -(-win_length // phases)
        second = half * (2 * phases) ** 2 if phases > 1 else 0
        return 2 * half * taps * phases + second

    common = math.gcd(n_fft, hop_length)
    return min((n for n in range(1, common + 1) if common % n == 0), key=cost)


__all__ = ["Analysis", "checked_samples", "log_bands"]
