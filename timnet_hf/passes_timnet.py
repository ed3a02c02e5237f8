# SPDX-License-Identifier: Apache-2.0
"""Passes over the frames in training, as PyTorch does them.

At these widths a step of training waits for memory more than it computes, so what counts is how
often the frames are read and written. :mod:`timnet_hf.fused_timnet` is made of these passes and of
matrix products; :mod:`timnet_hf.compiled_passes` has the same for a CPU of few threads.

Frames are (streams, frames, batch, size), a mask is (frames, batch, 1) or None, and what belongs to
a channel is (streams, 1, size). ``factors`` are those of the dropout, (streams, 1, batch, size).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

#: Added to a variance that is pooled: the root's gradient stays finite where a channel is constant.
VARIANCE_FLOOR = 1e-6

Count = torch.Tensor | int


class Passes(NamedTuple):
    """One way to do them all; :data:`PLAIN` says what each does."""

    normalize: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    gate: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    gate_gradient: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    relu_gradient: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    norm_gradient: Callable[..., torch.Tensor]
    pool: Callable[..., torch.Tensor]
    pool_gradient: Callable[..., torch.Tensor]


def moments(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (streams, 1, size) over rows (streams, frames · batch, size)."""
    if mask is None:
        mean, square = values.mean(1, keepdim=True), values.square().mean(1, keepdim=True)
    else:
        weights = mask.to(values.dtype).flatten()
        count = weights.sum().clamp(min=1)
        squares = values.square()
        mean = torch.stack([rows.t().mv(weights) for rows in values]).unsqueeze(1) / count
        square = torch.stack([rows.t().mv(weights) for rows in squares]).unsqueeze(1) / count
    return mean, (square - mean.square()).clamp(min=0)


def _normalize(
    values: torch.Tensor,
    mask: torch.Tensor | None,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    factors: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch norm, dropout and ReLU: k · relu(γ ŷ + β), and the mean and biased variance of y."""
    mean, variance = moments(values.flatten(1, 2), mask)
    scale = gamma / torch.sqrt(variance + eps)
    shift = beta - mean * scale
    # The factors are not negative, so they may go through the ReLU.
    scale, shift = scale.unsqueeze(1) * factors, shift.unsqueeze(1) * factors
    return torch.addcmul(shift, values, scale).relu_(), mean, variance


def _gate(active: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoid of what is not negative, in its place, and its product with ``hidden``."""
    gate = active.sigmoid_()
    return gate, hidden * gate


def _gate_gradient(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    gate: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From the gradient of ``hidden · gate``: ∂h where h > 0, Σ k ∂h and Σ k ∂h y."""
    active = gradient * hidden
    torch.ops.aten.sigmoid_backward.grad_input(active, gate, grad_input=active)
    # Where the ReLU let nothing through, the gate is one half.
    return _cut(active, gate, 0.5, values, factors)


def _relu_gradient(
    gradient: torch.Tensor, output: torch.Tensor, values: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same from ∂h, in its place."""
    return _cut(gradient, output, 0.0, values, factors)


def _cut(
    gradient: torch.Tensor,
    output: torch.Tensor,
    threshold: float,
    values: torch.Tensor,
    factors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zero where the output is at the threshold or below, and both sums."""
    apply = torch.ops.aten.threshold_backward.grad_input
    active = apply(gradient, output.to(gradient.dtype), threshold, grad_input=gradient)
    d_beta = (active.sum(1, keepdim=True) * factors).sum(2)
    with_values = ((active * values).sum(1, keepdim=True) * factors).sum(2)
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
    """``constant + slope · y + scale · k · ∂h``, zero in the padding; may use ∂h's place."""
    errors = torch.addcmul(constant.unsqueeze(1), values, slope.unsqueeze(1))
    errors.addcmul_(active, scale.unsqueeze(1) * factors)
    return errors if mask is None else errors.mul_(mask)


def _pool(
    hidden: torch.Tensor, mask: torch.Tensor | None, frames: Count, pairs: Count
) -> torch.Tensor:
    """Mean, deviation and mean absolute change over the frames: (3, streams, batch, size).

    ``frames`` and ``pairs`` of neighbours are how many there are, (batch, 1) or one number.
    """
    statistics = hidden.new_empty(3, len(hidden), *hidden.shape[2:])
    part = _part(hidden)
    spare = torch.empty_like(hidden[:part])
    for values, pooled in zip(hidden.split(part), statistics.split(part, 1), strict=True):
        mean, deviation, change = pooled
        valid = values if mask is None else torch.mul(values, mask, out=spare)
        torch.sum(valid, 1, out=mean).div_(frames)
        centred = torch.sub(values, mean.unsqueeze(1), out=spare)
        if mask is not None:
            centred.mul_(mask)
        torch.sum(centred.square_(), 1, out=deviation).div_(frames)
        deviation.add_(VARIANCE_FLOOR).sqrt_()
        steps = torch.sub(values[:, 1:], values[:, :-1], out=spare[:, 1:]).abs_()
        if mask is not None:
            steps.mul_(mask[1:])
        torch.sum(steps, 1, out=change).div_(pairs)
    return statistics


def _pool_gradient(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    slope: torch.Tensor,
    constant: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """``slope · x + constant + D(share · sign(change of x))``, of (streams, batch, size) each.

    D hands each pair's share to its later frame and takes it from its earlier one.
    """
    d_hidden = torch.empty_like(hidden)
    part = _part(hidden)
    spare = torch.empty_like(hidden[:part, 1:])
    factors = (one.unsqueeze(1) for one in (slope, constant, share))
    for values, by, plus, handed, d_values in zip(
        *(one.split(part) for one in (hidden, *factors, d_hidden)), strict=True
    ):
        torch.addcmul(plus, values, by, out=d_values)
        steps = torch.sub(values[:, 1:], values[:, :-1], out=spare).sign_().mul_(handed)
        if mask is not None:
            d_values.mul_(mask)
            steps.mul_(mask[1:])
        d_values[:, 1:] += steps
        d_values[:, :-1] -= steps
    return d_hidden


def _part(hidden: torch.Tensor) -> int:
    """Streams at a time: a CPU keeps one in its cache, others would rather have them all."""
    return 1 if hidden.device.type == "cpu" else len(hidden)


#: By PyTorch's operations, on any device and in any precision.
PLAIN = Passes(
    _normalize, _gate, _gate_gradient, _relu_gradient, _norm_gradient, _pool, _pool_gradient
)


__all__ = ["PLAIN", "VARIANCE_FLOOR", "Passes", "moments"]
