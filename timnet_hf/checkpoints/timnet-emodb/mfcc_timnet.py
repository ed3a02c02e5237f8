# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of MFCCs: samples → power in mel bands → log → cepstral coefficients.

Written to pass over memory as few times as it can: a recording's spectrum is larger than the
processor's nearest cache, and a clip is done in a third of a millisecond. ::

    samples ──frames · window──▶ real FFT ──magnitude²──▶ bins ──mel filters──▶ bands ──log, DCT──▶

A mel filter is zero almost everywhere. Neighbours share their bins, so the filters are applied in
groups, each to the few bins that it sees: a third of the multiplications of one large product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torchaudio.functional import create_dct, melscale_fbanks

from .sound_timnet import as_array, check_samples

#: Decibels in one unit of the natural logarithm of a power.
DECIBEL = 10 / math.log(10)

#: Spectra held at a time, so that a long recording needs no more memory than its waveform does.
_BLOCK_FRAMES = 512

#: Filters applied at a time: fewer, and calling costs more than multiplying by zeros.
_GROUP_BANDS = 16

#: Bins that a group of filters sees, the bands it makes, and its weights (bins, bands).
MelGroup: TypeAlias = tuple[slice, slice, torch.Tensor]


def as_samples(waveform: Any) -> np.ndarray:
    """Check a waveform, an array, tensor or list: (samples,) float32.

    Raises:
        ValueError: It is no recording, see :func:`timnet_hf.sound_timnet.check_samples`.
    """
    waveform = as_array(waveform)
    check_samples(waveform)
    return waveform.astype(np.float32, copy=False)


def centre(samples: np.ndarray, length: int) -> np.ndarray:
    """Pad with zeros, or crop, to ``length``, the odd sample of a pad at the end."""
    excess = len(samples) - length
    if excess >= 0:
        return samples[excess // 2 : excess // 2 + length]
    before = -excess // 2
    return np.pad(samples, (before, -excess - before))


@torch.inference_mode()
def band_power(
    samples: np.ndarray, window: torch.Tensor, hop_length: int, mel: tuple[MelGroup, ...]
) -> np.ndarray:
    """Power in each mel band of each frame.

    Args:
        samples: (samples,) float32.
        window: (n_fft,); frames are centred on every ``hop_length``-th sample, zeros around.
        hop_length: Samples between neighbouring frames.
        mel: The filters, from :func:`mel_filters`.

    Returns:
        (frames, bands) float32.
    """
    n_fft = window.numel()
    padded = np.empty(n_fft // 2 * 2 + len(samples), np.float32)
    start, end = n_fft // 2, n_fft // 2 + len(samples)
    padded[:start] = padded[end:] = 0
    padded[start:end] = samples
    frames = torch.from_numpy(padded).unfold(0, n_fft, hop_length)
    shape = frames.shape[0], mel[-1][1].stop
    power = torch.empty(shape, dtype=torch.float32, device="cpu")
    for start in range(0, frames.shape[0], _BLOCK_FRAMES):
        block = slice(start, start + _BLOCK_FRAMES)
        # numpy's magnitude takes a tenth of the time of torch's.
        magnitude = np.abs(torch.fft.rfft(frames[block] * window).numpy())
        spectrum = torch.from_numpy(np.square(magnitude, out=magnitude))
        for bins, bands, weights in mel:
            torch.mm(spectrum[:, bins], weights, out=power[block, bands])
    return power.numpy()


@contextmanager
def _plain() -> Iterator[None]:
    """Make float32 tensors on the CPU, whatever is the default where a constant is first asked for.

    What is made is kept: it must not be of the kind that one caller's model happened to have.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


@lru_cache(maxsize=16)
@_plain()
def analysis_window(win_length: int, n_fft: int) -> torch.Tensor:
    """Periodic Hann window (n_fft,), zeros on both sides of its ``win_length`` samples."""
    window = torch.zeros(n_fft)
    start = (n_fft - win_length) // 2
    window[start : start + win_length] = torch.hann_window(win_length, periodic=True)
    return window


@lru_cache(maxsize=16)
@_plain()
def mel_filters(
    sampling_rate: int,
    n_fft: int,
    num_mel_bins: int,
    min_frequency: float,
    max_frequency: float,
) -> tuple[MelGroup, ...]:
    """Triangular filters of unit area on the Slaney mel scale, in groups of neighbours."""
    filters = melscale_fbanks(
        n_fft // 2 + 1,
        min_frequency,
        max_frequency,
        num_mel_bins,
        sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    groups = []
    for first in range(0, num_mel_bins, _GROUP_BANDS):
        bands = slice(first, min(first + _GROUP_BANDS, num_mel_bins))
        seen = filters[:, bands].any(1).nonzero()
        # Filters narrower than a bin see none; one bin, then, with weights of zero.
        bins = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 1)
        groups.append((bins, bands, filters[bins, bands].contiguous()))
    return tuple(groups)


@lru_cache(maxsize=16)
@_plain()
def cosine_transform(feature_size: int, num_mel_bins: int) -> torch.Tensor:
    """Natural logarithms of power → coefficients: orthonormal DCT-II (num_mel_bins, feature_size).

    The coefficients are those of decibels, so it multiplies by 10 / ln 10 too: numpy's natural
    logarithm takes a third of the time of its decimal one.
    """
    return create_dct(feature_size, num_mel_bins, norm="ortho") * DECIBEL


__all__ = [
    "DECIBEL",
    "MelGroup",
    "analysis_window",
    "as_samples",
    "band_power",
    "centre",
    "cosine_transform",
    "mel_filters",
]
