# SPDX-License-Identifier: Apache-2.0
"""What this machine could do at best on one thread: multiply, transform, read.

A limit is the time of the arithmetic alone at the rate of a large matrix product, of the bare
Fourier transform, and of reading the file from the system's cache. Nothing reaches it; it says how
much there is left to win. Rates are measured anew for every row, for the machine's speed changes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from timnet_hf import TimNetFeatureExtractor


def _seconds(action: Callable[[], Any], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times[2:])


@lru_cache
def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second in a large matrix product."""
    size = 768
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out))


@lru_cache
def fft_seconds(n_fft: int, frames: int) -> float:
    """Seconds of one real Fourier transform a frame, with nothing around it."""
    values = torch.randn(frames, n_fft)
    return _seconds(lambda: torch.fft.rfft(values))


def measure_anew() -> None:
    """Forget the rates, so that the next row measures its own."""
    gemm_rate.cache_clear()
    fft_seconds.cache_clear()


def read_seconds(path: Path) -> float:
    """Seconds to read a file that the system holds in its cache."""
    return _seconds(path.read_bytes)


def network_flops(model: torch.nn.Module, frames: int) -> float:
    """Multiplications and additions of one clip's forward pass in convolutions and classifier."""
    flops = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            flops += 2 * module.weight.numel() * frames
        elif isinstance(module, torch.nn.Linear):
            flops += 2 * module.weight.numel()
    return flops


def features_seconds(extractor: TimNetFeatureExtractor, samples: int) -> float:
    """Seconds of the transforms and of the two matrix products of one clip's MFCCs."""
    if extractor.num_samples is not None:
        samples = extractor.num_samples
    frames = samples // extractor.hop_length + 1
    bins, bands = extractor.n_fft // 2 + 1, extractor.num_mel_bins
    # Each bin lies in two triangles, the one that rises and the one that falls.
    flops = 2 * frames * (2 * bins + bands * extractor.feature_size)
    return fft_seconds(extractor.n_fft, frames) + flops / gemm_rate()


__all__ = [
    "features_seconds",
    "fft_seconds",
    "gemm_rate",
    "measure_anew",
    "network_flops",
    "read_seconds",
]
