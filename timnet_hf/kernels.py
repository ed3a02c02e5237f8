# SPDX-License-Identifier: Apache-2.0
"""The passes of :mod:`timnet_hf.passes_timnet`, compiled by numba (extra `fast`).

Each does several operations while the frames are in the processor's registers, so the frames are
read and written about half as often. For float32 on one thread of a CPU, equal up to rounding. The
compiler runs once, for some seconds, and keeps what it made on disk.

The loops work on arrays (streams, frames, lanes), a lane being a channel of a clip, of which there
are batch · size. Values of a channel are (streams, size). What is found goes into the arrays that
come last. With one lane behind the other, and as slices, the compiler makes vectors of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from .passes_timnet import VARIANCE_FLOOR, Passes


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called; sums may be reordered, but NaN stays NaN."""
    exact = {"contract", "nsz", "reassoc"}
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": exact}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place on disk where what was compiled could be kept
        return numba.njit(**options)(function)


@_compiled
def _runs(valid, size):
    """Runs of neighbouring clips that have a frame: the frame, the first lane, the one behind."""
    frames, batch = valid.shape
    found = np.empty((frames * (batch + 1) // 2 + frames, 3), np.int64)
    count = 0
    for frame in range(frames):
        clip = 0
        while clip < batch:
            start = clip
            while clip < batch and valid[frame, clip] != 0:
                clip += 1
            if clip > start:
                found[count] = (frame, start * size, clip * size)
                count += 1
            clip += 1
    return found[:count]


@_compiled
def _normalize_loop(values, runs, count, gamma, beta, factors, eps, mean, variance, output):
    """Sums over the valid frames; then scale, shift and ReLU."""
    streams, frames, lanes = values.shape
    size = gamma.shape[1]
    total = np.empty(lanes, np.float32)
    square = np.empty(lanes, np.float32)
    zero = np.float32(0)
    for stream in range(streams):
        total[:] = 0
        square[:] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run]
            row = values[stream, frame, start:stop]
            totals, squares = total[start:stop], square[start:stop]
            for lane in range(len(row)):
                totals[lane] += row[lane]
                squares[lane] += row[lane] * row[lane]
        for channel in range(size):
            first, second = 0.0, 0.0
            for lane in range(channel, lanes, size):
                first += total[lane]
                second += square[lane]
            first /= count
            second = second / count - first * first
            second = 0.0 if second < 0.0 else second
            mean[stream, channel] = first
            variance[stream, channel] = second
            scale = gamma[stream, channel] / np.sqrt(second + eps)
            shift = beta[stream, channel] - first * scale
            for lane in range(channel, lanes, size):
                total[lane] = scale * factors[stream, lane]
                square[lane] = shift * factors[stream, lane]
        for frame in range(frames):
            for lane in range(lanes):
                normed = values[stream, frame, lane] * total[lane] + square[lane]
                output[stream, frame, lane] = zero if normed <= zero else normed


@_compiled
def _gate_gradient_loop(gradient, hidden, gate, values, factors, d_beta, with_values, active):
    streams, frames, lanes = values.shape
    total = np.empty(lanes, np.float32)
    scaled = np.empty(lanes, np.float32)
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    for stream in range(streams):
        total[:] = 0
        scaled[:] = 0
        for frame in range(frames):
            for lane in range(lanes):
                at = gate[stream, frame, lane]
                slope = zero if at <= half else at * (one - at)
                change = gradient[stream, frame, lane] * hidden[stream, frame, lane] * slope
                active[stream, frame, lane] = change
                total[lane] += change
                scaled[lane] += change * values[stream, frame, lane]
        _sum_channels(total, factors[stream], d_beta[stream])
        _sum_channels(scaled, factors[stream], with_values[stream])


@_compiled
def _relu_gradient_loop(active, output, values, factors, d_beta, with_values):
    streams, frames, lanes = values.shape
    total = np.empty(lanes, np.float32)
    scaled = np.empty(lanes, np.float32)
    zero = np.float32(0)
    for stream in range(streams):
        total[:] = 0
        scaled[:] = 0
        for frame in range(frames):
            for lane in range(lanes):
                change = active[stream, frame, lane]
                change = zero if output[stream, frame, lane] <= zero else change
                active[stream, frame, lane] = change
                total[lane] += change
                scaled[lane] += change * values[stream, frame, lane]
        _sum_channels(total, factors[stream], d_beta[stream])
        _sum_channels(scaled, factors[stream], with_values[stream])


@_compiled
def _sum_channels(lanes, factors, sums):
    """Over the clips, each with its dropout factor."""
    size = len(sums)
    for channel in range(size):
        total = 0.0
        for lane in range(channel, len(lanes), size):
            total += lanes[lane] * factors[lane]
        sums[channel] = total


@_compiled
def _norm_gradient_loop(active, values, padding, factors, scale, slope, constant):
    streams, frames, lanes = values.shape
    size = scale.shape[1]
    slopes, constants, scales = np.empty((3, lanes), np.float32)
    for stream in range(streams):
        for channel in range(size):
            for lane in range(channel, lanes, size):
                slopes[lane] = slope[stream, channel]
                constants[lane] = constant[stream, channel]
                scales[lane] = scale[stream, channel] * factors[stream, lane]
        for frame in range(frames):
            for lane in range(lanes):
                value = values[stream, frame, lane] * slopes[lane] + constants[lane]
                active[stream, frame, lane] = value + active[stream, frame, lane] * scales[lane]
        _clear(active[stream], padding)


@_compiled
def _clear(values, runs):
    for run in range(len(runs)):
        frame, start, stop = runs[run]
        values[frame, start:stop] = 0


@_compiled
def _pool_loop(values, runs, frames_of, pairs_of, floor, mean, deviation, change):
    """Means and changes; then deviations from the means."""
    streams, _, lanes = values.shape
    total, steps = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for stream in range(streams):
        total[:] = 0
        steps[:] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run]
            row = values[stream, frame, start:stop]
            sums, moves = total[start:stop], steps[start:stop]
            if frame == 0:
                for lane in range(len(row)):
                    sums[lane] += row[lane]
            else:
                before = values[stream, frame - 1, start:stop]
                for lane in range(len(row)):
                    sums[lane] += row[lane]
                    moves[lane] += abs(row[lane] - before[lane])
        for lane in range(lanes):
            total[lane] /= frames_of[lane]
            mean[stream, lane] = total[lane]
            change[stream, lane] = steps[lane] / pairs_of[lane]
            steps[lane] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run]
            row = values[stream, frame, start:stop]
            means, sums = total[start:stop], steps[start:stop]
            for lane in range(len(row)):
                sums[lane] += (row[lane] - means[lane]) * (row[lane] - means[lane])
        for lane in range(lanes):
            deviation[stream, lane] = np.sqrt(steps[lane] / frames_of[lane] + floor)


@_compiled
def _pool_gradient_loop(values, runs, padding, slope, constant, share, d_values):
    for stream in range(len(values)):
        for run in range(len(padding)):
            frame, start, stop = padding[run]
            d_values[stream, frame, start:stop] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run]
            row, d_row = values[stream, frame, start:stop], d_values[stream, frame, start:stop]
            by, plus = slope[stream, start:stop], constant[stream, start:stop]
            handed = share[stream, start:stop]
            if frame == 0:
                for lane in range(len(row)):
                    d_row[lane] = row[lane] * by[lane] + plus[lane]
            else:
                before = values[stream, frame - 1, start:stop]
                d_before = d_values[stream, frame - 1, start:stop]
                for lane in range(len(row)):
                    moved = np.sign(row[lane] - before[lane]) * handed[lane]
                    d_row[lane] = row[lane] * by[lane] + plus[lane] + moved
                    d_before[lane] -= moved


def _normalize(
    values: torch.Tensor,
    mask: torch.Tensor | None,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    factors: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    runs, _ = _spans(values, mask)
    count = max(1.0, values[0, ..., 0].numel() if mask is None else float(mask.sum()))
    output, mean, variance = values.new_empty(values.shape), *_channel_values(values)
    given = (*map(_channels, (gamma, beta)), _channels(factors), eps)
    _normalize_loop(
        _lanes(values), runs, count, *given, *map(_channels, (mean, variance)), _lanes(output)
    )
    return output, mean, variance


def _gate_gradient(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    gate: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    active, d_beta, with_values = gate.new_empty(gate.shape), *_channel_values(values)
    given = (*map(_lanes, (gradient, hidden, gate, values)), _channels(factors))
    _gate_gradient_loop(*given, *map(_channels, (d_beta, with_values)), _lanes(active))
    return active, d_beta, with_values


def _relu_gradient(
    gradient: torch.Tensor, output: torch.Tensor, values: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    active, d_beta, with_values = gradient.contiguous(), *_channel_values(values)
    given = (*map(_lanes, (active, output.to(active.dtype), values)), _channels(factors))
    _relu_gradient_loop(*given, *map(_channels, (d_beta, with_values)))
    return active, d_beta, with_values


def _norm_gradient(
    active: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    factors: torch.Tensor,
    scale: torch.Tensor,
    slope: torch.Tensor,
    constant: torch.Tensor,
) -> torch.Tensor:
    active, (_, padding) = active.contiguous(), _spans(values, mask)
    given = (_channels(factors), *map(_channels, (scale, slope, constant)))
    _norm_gradient_loop(_lanes(active), _lanes(values), padding, *given)
    return active


def _pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    frames: torch.Tensor | int,
    pairs: torch.Tensor | int,
) -> torch.Tensor:
    runs, _ = _spans(hidden, mask)
    statistics = hidden.new_empty(3, len(hidden), *hidden.shape[2:])
    counts = [
        (hidden.new_ones(hidden.shape[2:]) * count).flatten().numpy() for count in (frames, pairs)
    ]
    _pool_loop(_lanes(hidden), runs, *counts, VARIANCE_FLOOR, *_lanes(statistics))
    return statistics


def _pool_gradient(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    slope: torch.Tensor,
    constant: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    d_hidden = hidden.new_empty(hidden.shape)
    given = (*_spans(hidden, mask), *(_channels(one) for one in (slope, constant, share)))
    _pool_gradient_loop(_lanes(hidden), *given, _lanes(d_hidden))
    return d_hidden


def _lanes(values: torch.Tensor) -> Any:
    """(…, batch, size) as (…, batch · size); without a copy where the numbers lie so already."""
    return values.detach().contiguous().flatten(-2).numpy()


def _channels(values: torch.Tensor) -> Any:
    """(streams, …) as (streams, the rest)."""
    return values.detach().contiguous().flatten(1).numpy()


def _channel_values(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    streams, _, _, size = values.shape
    return values.new_empty(streams, 1, size), values.new_empty(streams, 1, size)


def _spans(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[Any, Any]:
    """Lanes of the valid frames, and of the padding, see `_runs`."""
    _, frames, batch, size = values.shape
    if mask is None:
        whole = np.stack((np.arange(frames), np.zeros(frames), np.full(frames, batch * size)), 1)
        return whole.astype(np.int64), np.empty((0, 3), np.int64)
    valid = mask.detach().view(frames, batch).numpy()
    return _runs(valid, size), _runs(1 - valid, size)


#: For float32 on the CPU.
COMPILED = Passes(_normalize, _gate_gradient, _relu_gradient, _norm_gradient, _pool, _pool_gradient)


__all__ = ["COMPILED"]
