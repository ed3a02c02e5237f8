# SPDX-License-Identifier: Apache-2.0
"""Passes over the frames that do several operations each, compiled by numba (extra ``fast``).

At TIM-Net's widths both training and scoring wait for memory more than they compute. These keep
the numbers in the processor's registers from one operation to the next, so the frames are read and
written about half as often as by PyTorch's operations one by one. They are for float32 on a CPU,
run on one thread, and are equal to those up to rounding. The compiler runs once for each kind of
array, for some seconds, and keeps what it made on disk: as long as this file does not change, so
all loops that call one another stand in it.

The loops work on C-contiguous arrays (streams, frames, lanes), a lane being a channel of a clip, of
which there are batch · size. Values of a channel are (streams, size). What is found goes into the
arrays that come last. The inner loops run over lanes, counted without a sign where they do not
start at zero, and arrays do not overlap: of such loops the compiler makes vectors.
:mod:`timnet_hf.compiled_passes` and :mod:`timnet_hf.folded_network` call them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called; sums may be reordered, but NaN stays NaN."""
    exact = {"contract", "nsz", "reassoc"}
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": exact}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place on disk where what was compiled could be kept
        return numba.njit(**options)(function)


@compiled
def runs_of(valid, size):
    """Runs of neighbouring clips that have a frame: the frame, the first lane, the one behind."""
    frames, batch = valid.shape
    found = np.empty((frames * (batch + 1) // 2 + frames, 3), np.uint64)
    count = 0
    for frame in range(frames):
        clip = 0
        while clip < batch:
            start = clip
            while clip < batch and valid[frame, clip]:
                clip += 1
            if clip > start:
                found[count] = (frame, start * size, clip * size)
                count += 1
            clip += 1
    return found[:count]


@compiled
def normalize(values, runs, count, gamma, beta, factors, eps, mean, variance, output):
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
            frame, start, stop = runs[run, 0], runs[run, 1], runs[run, 2]
            for lane in range(start, stop):
                value = values[stream, frame, lane]
                total[lane] += value
                square[lane] += value * value
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


@compiled
def gate_gradient(gradient, hidden, gate, values, factors, d_beta, with_values, active):
    """From the gradient of hidden · gate: ∂h where h > 0, Σ k ∂h and Σ k ∂h y."""
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


@compiled
def relu_gradient(active, output, values, factors, d_beta, with_values):
    """In the place of ∂h: ∂h where h > 0; Σ k ∂h and Σ k ∂h y."""
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


@compiled
def _sum_channels(lanes, factors, sums):
    """Over the clips, each with its dropout factor."""
    size = len(sums)
    for channel in range(size):
        total = 0.0
        for lane in range(channel, len(lanes), size):
            total += lanes[lane] * factors[lane]
        sums[channel] = total


@compiled
def norm_gradient(active, values, padding, factors, scale, slope, constant):
    """In the place of ∂h: constant + slope · y + scale · k · ∂h, zero in the padding."""
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


@compiled
def _clear(values, runs):
    for run in range(len(runs)):
        frame, start, stop = runs[run, 0], runs[run, 1], runs[run, 2]
        for lane in range(start, stop):
            values[frame, lane] = 0


@compiled
def pool(values, runs, frames_of, mean, squares, changes):
    """Mean, sum of squared distances from it, and sum of absolute changes: (streams, lanes).

    ``frames_of`` (lanes,) is what the mean is divided by.
    """
    streams, _, lanes = values.shape
    total, other = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for stream in range(streams):
        total[:] = 0
        other[:] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run, 0], runs[run, 1], runs[run, 2]
            if frame == 0:
                for lane in range(start, stop):
                    total[lane] += values[stream, frame, lane]
            else:
                before = frame - np.uint64(1)
                for lane in range(start, stop):
                    value = values[stream, frame, lane]
                    total[lane] += value
                    other[lane] += abs(value - values[stream, before, lane])
        for lane in range(lanes):
            total[lane] /= frames_of[lane]
            mean[stream, lane] = total[lane]
            changes[stream, lane] = other[lane]
            other[lane] = 0
        for run in range(len(runs)):
            frame, start, stop = runs[run, 0], runs[run, 1], runs[run, 2]
            for lane in range(start, stop):
                distance = values[stream, frame, lane] - total[lane]
                other[lane] += distance * distance
        squares[stream] = other


@compiled
def pool_gradient(values, runs, padding, slope, constant, share, d_values):
    """``slope · x + constant``, and each neighbours' share by the sign of the change."""
    for stream in range(len(values)):
        _clear(d_values[stream], padding)
        for run in range(len(runs)):
            frame, start, stop = runs[run, 0], runs[run, 1], runs[run, 2]
            for lane in range(start, stop):
                change = values[stream, frame, lane] * slope[stream, lane]
                d_values[stream, frame, lane] = change + constant[stream, lane]
            if frame > 0:
                before = frame - np.uint64(1)
                for lane in range(start, stop):
                    step = values[stream, frame, lane] - values[stream, before, lane]
                    moved = np.sign(step) * share[stream, lane]
                    d_values[stream, frame, lane] += moved
                    d_values[stream, before, lane] -= moved


@compiled
def activate(newest, older, bias):
    """In the place of ``newest``: relu(newest + older + bias), over (streams, frames · lanes).

    ``older`` is the same some frames earlier, so it is shorter. ``bias`` is repeated for some rows,
    (streams, rows · size), that the inner loops are long.
    """
    streams, numbers = newest.shape
    shift, size = numbers - older.shape[1], bias.shape[1]
    zero = np.float32(0)
    for stream in range(streams):
        for start in range(0, shift, size):
            row = newest[stream, start : min(start + size, shift)]
            for lane in range(len(row)):
                value = row[lane] + bias[stream, lane]
                row[lane] = zero if value <= zero else value
        for start in range(shift, numbers, size):
            row = newest[stream, start : min(start + size, numbers)]
            before = older[stream, start - shift : start - shift + len(row)]
            for lane in range(len(row)):
                value = row[lane] + before[lane] + bias[stream, lane]
                row[lane] = zero if value <= zero else value


@compiled
def gate(active, hidden):
    """In the place of ``hidden``: hidden · sigmoid(active), in one row; ``active`` ≥ 0."""
    one = np.float32(1)
    for lane in range(len(active)):
        hidden[lane] /= one + _exponential(-active[lane])


@compiled
def gate_apart(active, hidden, output):
    """In the place of ``active`` its sigmoid, and the product of that and ``hidden``."""
    one = np.float32(1)
    for lane in range(len(active)):
        share = one / (one + _exponential(-active[lane]))
        active[lane] = share
        output[lane] = hidden[lane] * share


@compiled
def _exponential(power):
    """Exponential of what is not positive, in float32: Cephes' expf, exact to its last digits.

    Numba calls the C library for it, number by number; this becomes vectors.
    """
    power = np.float32(-87) if power < np.float32(-87) else power
    whole = np.floor(power * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = power - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    value = np.float32(1.9875691500e-4)
    value = value * rest + np.float32(1.3981999507e-3)
    value = value * rest + np.float32(8.3334519073e-3)
    value = value * rest + np.float32(4.1665795894e-2)
    value = value * rest + np.float32(1.6666665459e-1)
    value = value * rest + np.float32(5.0000001201e-1)
    value = value * rest * rest + rest + np.float32(1)
    exponent = (np.int32(whole) + np.int32(127)) << np.int32(23)
    return value * np.int32(exponent).view(np.float32)


@compiled
def read_clip(
    views, members, centered, embed, embed_bias, taps, biases, dilations, places, floor, pooled
):
    """Put one clip through every stream of a folded network; two layers are a block.

    Here a lane is a frame: a state is (size, frames), small enough for the innermost cache. Above
    the rows that a layer reads stands what they were one dilation ago, so a layer is one product.

    Arrays are views (directions, inputs, frames), the clip as each direction reads it; embed
    (streams, size, inputs) and its bias (streams, size); taps (layers, streams, size, 2 · size),
    biases (layers, streams, size) and dilations (layers,); and the place of each state in pooled
    (scales, 3, streams, size), -1 for none. ``floor`` is added to variances.
    """
    frames = views.shape[2]
    streams, size = embed_bias.shape
    states = np.empty((2 * size, frames), np.float32)
    middle = np.empty((2 * size, frames), np.float32)
    active = np.empty((size, frames), np.float32)
    hidden = states[size:]
    for stream in range(streams):
        np.dot(embed[stream], views[stream // members], hidden)
        _shift_rows(hidden, embed_bias[stream], stream % members < centered)
        for state in range(len(places)):
            if state > 0:
                first, second = 2 * state - 2, 2 * state - 1
                _delay_rows(states, dilations[first])
                np.dot(taps[first, stream], states, middle[size:])
                _activate_rows(middle[size:], biases[first, stream])
                _delay_rows(middle, dilations[second])
                np.dot(taps[second, stream], middle, active)
                _activate_rows(active, biases[second, stream])
                gate(active.reshape(-1), hidden.reshape(-1))
            if places[state] >= 0:
                _pool_rows(hidden, floor, pooled[places[state]], stream)


@compiled
def _shift_rows(rows, bias, from_mean):
    """Add a bias to each row, in the place of its mean if ``from_mean``."""
    size, frames = rows.shape
    for channel in range(size):
        mean = np.float32(0)
        if from_mean:
            for frame in range(frames):
                mean += rows[channel, frame]
            mean /= np.float32(frames)
        change = bias[channel] - mean
        for frame in range(frames):
            rows[channel, frame] += change


@compiled
def _delay_rows(rows, dilation):
    """Into the upper half of the rows: the lower ones, later; zeros come in at the start."""
    size, frames = len(rows) // 2, rows.shape[1]
    shift = np.uint64(min(dilation, frames))
    left = np.uint64(frames) - shift
    for channel in range(size):
        for frame in range(shift):
            rows[channel, frame] = 0
        for frame in range(left):
            rows[channel, frame + shift] = rows[size + channel, frame]


@compiled
def _activate_rows(rows, bias):
    """Add a bias to each row, and ReLU."""
    zero = np.float32(0)
    for channel in range(rows.shape[0]):
        for frame in range(rows.shape[1]):
            value = rows[channel, frame] + bias[channel]
            rows[channel, frame] = zero if value <= zero else value


@compiled
def _pool_rows(rows, floor, pooled, stream):
    """Mean, deviation and mean absolute change of each row, into (3, streams, size)."""
    size, frames = rows.shape
    last = np.uint64(frames - 1)
    for channel in range(size):
        mean, squares, changes = np.float32(0), np.float32(0), np.float32(0)
        for frame in range(last):
            mean += rows[channel, frame]
            changes += abs(rows[channel, frame + np.uint64(1)] - rows[channel, frame])
        mean = (mean + rows[channel, last]) / np.float32(frames)
        for frame in range(frames):
            distance = rows[channel, frame] - mean
            squares += distance * distance
        pooled[0, stream, channel] = mean
        pooled[1, stream, channel] = np.sqrt(squares / np.float32(frames) + floor)
        pooled[2, stream, channel] = changes / np.float32(max(frames - 1, 1))
