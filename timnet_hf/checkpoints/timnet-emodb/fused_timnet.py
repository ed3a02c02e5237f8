# SPDX-License-Identifier: Apache-2.0
"""A block and a pooling in training, with their gradients written out.

The same numbers as the plain forms, up to rounding, from fewer passes over the frames: at these
widths a step of training waits for memory more than it computes. What a pass makes that is not
needed later goes where something else has just been, and what can be computed again is not kept.

All work on (streams, frames, batch, size) and a mask (frames, batch, 1), as the layers do. See
:mod:`timnet_hf.layers_timnet` for the plain forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from .layers_timnet import TimNetCausalLayer

#: Added to a variance that is pooled: the root's gradient stays finite where a channel is constant.
VARIANCE_FLOOR = 1e-6


def is_plain(hidden: torch.Tensor) -> bool:
    """Whether hand-written gradients apply: not where a compiler rewrites the operations."""
    return hidden.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


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


def fused_block(
    layers: tuple[TimNetCausalLayer, TimNetCausalLayer],
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """A temporal-aware block in training; the layers' running statistics are updated.

    Args:
        layers: The block's two; their convolutions have two taps and one dilation.
        hidden: (streams, frames, batch, size or more): channels beyond size are, and stay, zero.
        mask: (frames, batch, 1), or None.

    Returns:
        The block's output, shaped like ``hidden``.
    """
    streams = len(hidden)
    size = layers[0].conv.out_channels // streams
    spare = hidden.shape[-1] - size
    given = []
    for layer in layers:
        assert layer.conv.bias is not None
        # The convolution's bias cancels in the normalisation; its gradient is zero, not absent.
        beta = layer.norm.bias + 0 * layer.conv.bias
        given += [
            F.pad(layer.conv.matrices(), (0, spare, 0, spare)),
            F.pad(layer.norm.weight.view(streams, 1, size), (0, spare)),
            F.pad(beta.view(streams, 1, size), (0, spare)),
            F.pad(layer.draw_dropout(hidden), (0, spare)),
        ]
    conv, eps = layers[0].conv, layers[0].norm.eps
    output, *statistics = _FusedBlock.apply(hidden, mask, conv.dilation[0], eps, *given)
    for layer, *pair in zip(layers, statistics[::2], statistics[1::2], strict=True):
        mean, variance = (moment[..., :size].flatten() for moment in pair)
        layer.norm.update(mean + layer.conv.bias, variance, hidden, mask)
    return output


class _FusedBlock(torch.autograd.Function):
    """Two causal layers and the gate that they make.

    With x a layer's input, x' the input d frames earlier, k the dropout's factors and n the number
    of valid frames, a layer is ::

        y = x' W₀ + x W₁     ŷ = (y - mean) / deviation     h = k · relu(γ ŷ + β)
        ∂y = γ / deviation · (∂z - Σ∂z / n - ŷ Σ(∂z ŷ) / n)     with ∂z = k · ∂h where h > 0

    and the block, with h of the second layer ::

        s = sigmoid(h)     output = x s     ∂h = s (1 - s) · x · ∂output     ∂x = s ∂output + …
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        dilation: int,
        eps: float,
        *layers: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the output, and each layer's mean and variance before its bias.

        ``layers`` are weight (2, streams, size, size), γ and β (streams, 1, size) and k (streams,
        1, batch, size) of the first, then those of the second.
        """
        precision, device = hidden.dtype, hidden.device.type
        # As the library does, which leaves float64 alone.
        if precision == torch.float32 and torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        ctx.reach = dilation * hidden.shape[2]
        state, kept, statistics = hidden, [], []
        for weight, gamma, beta, factors in (layers[:4], layers[4:]):
            rows, weight = state.flatten(1, 2).to(precision), weight.to(precision)
            with torch.autocast(device, enabled=False):
                product = torch.bmm(rows, weight[1])
                if ctx.reach < rows.shape[1]:
                    product[:, ctx.reach :].baddbmm_(rows[:, : -ctx.reach], weight[0])
            values = product.to(hidden.dtype)
            mean, variance = moments(values, mask)
            deviation = torch.sqrt(variance + eps)
            scale = gamma / deviation
            shift = beta - mean * scale
            # The factors are not negative, so they may go through the ReLU.
            scale, shift = scale.unsqueeze(1) * factors, shift.unsqueeze(1) * factors
            state = torch.addcmul(shift, values.view_as(hidden), scale).relu_()
            kept += [rows, weight, gamma, values, mean, deviation, factors]
            statistics += [mean, variance]
        gate = state.sigmoid_()
        ctx.save_for_backward(hidden, mask, gate, *kept)
        ctx.mark_non_differentiable(*statistics)
        return hidden * gate, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, and of each layer's weight, γ and β."""
        hidden, mask, gate, *kept = ctx.saved_tensors
        count = gate[0, ..., 0].numel() if mask is None else mask.sum().clamp(min=1)
        # Whoever asks for gradients under autocast gets them in the types of the way there.
        with torch.autocast(gate.device.type, enabled=False):
            active = gradient * hidden
            torch.ops.aten.sigmoid_backward.grad_input(active, gate, grad_input=active)
            # Where the ReLU let nothing through, the gate is one half.
            active = _threshold(active, gate, 0.5)
            d_rows, *second = _layer_gradients(active, kept[7:], mask, count, ctx.reach)
            active = _threshold(d_rows.view_as(active), kept[7].view_as(active), 0.0)
            d_rows, *first = _layer_gradients(active, kept[:7], mask, count, ctx.reach)
            d_hidden = d_rows.view_as(active).addcmul_(gradient, gate)
        return d_hidden, None, None, None, *first, None, *second, None


def _threshold(gradient: torch.Tensor, values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Set a gradient to zero, in its place, where the values are at the threshold or below."""
    apply = torch.ops.aten.threshold_backward.grad_input
    return apply(gradient, values.to(gradient.dtype), threshold, grad_input=gradient)


def _layer_gradients(
    active: torch.Tensor,
    kept: list[torch.Tensor],
    mask: torch.Tensor | None,
    count: torch.Tensor | int,
    reach: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a layer's rows, weight, γ and β; ``active`` is ∂h where h > 0."""
    rows, weight, gamma, values, mean, deviation, factors = kept
    values = values.view_as(active)
    d_beta = (active.sum(1, keepdim=True) * factors).sum(2)
    errors = active * values
    with_values = (errors.sum(1, keepdim=True) * factors).sum(2)
    d_gamma = (with_values - mean * d_beta) / deviation
    scale = gamma / deviation
    slope = -scale / deviation * d_gamma / count
    constant = -scale * d_beta / count - slope * mean
    torch.addcmul(constant.unsqueeze(1), values, slope.unsqueeze(1), out=errors)
    errors.addcmul_(active, scale.unsqueeze(1) * factors)
    if mask is not None:
        errors.mul_(mask)
    rounded = errors.flatten(1, 2).to(rows.dtype)
    turned = weight.transpose(2, 3).contiguous()  # small, and products with it are faster
    d_rows = torch.bmm(rounded, turned[1])
    d_now = torch.bmm(rows.transpose(1, 2), rounded)
    d_before = torch.zeros_like(d_now)
    if reach < rows.shape[1]:
        later = rounded[:, reach:]
        d_rows[:, :-reach].baddbmm_(later, turned[0])
        d_before = torch.bmm(rows[:, :-reach].transpose(1, 2), later)
    d_weight = torch.stack((d_before, d_now))
    return d_rows.to(active.dtype), d_weight.to(active.dtype), d_gamma, d_beta


class FusedStatistics(torch.autograd.Function):
    """Mean, deviation and mean absolute change of (streams, frames, batch, size) over the frames.

    With w the weight of a frame in the mean and v that of a pair of neighbours in the change::

        ∂x = w (∂mean + ∂deviation (x - mean) / deviation) + ∂change · D(v sign(change of x))

    where D hands each pair's share to its later frame and takes it from its earlier one. One stream
    at a time: what it needs beside the input stays in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return (3, streams, batch, size)."""
        statistics = hidden.new_empty(3, len(hidden), *hidden.shape[2:])
        frames, pairs = _counts(hidden, mask)
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
        ctx.save_for_backward(hidden, statistics, mask)
        return statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient of ``hidden``."""
        hidden, (mean, deviation, _), mask = ctx.saved_tensors
        frames, pairs = _counts(hidden, mask)
        slope = (gradient[1] / deviation / frames).unsqueeze(1)
        constant = (gradient[0] / frames).unsqueeze(1) - slope * mean.unsqueeze(1)
        share = (gradient[2] / pairs).unsqueeze(1)
        d_hidden = torch.empty_like(hidden)
        part = _part(hidden)
        spare = torch.empty_like(hidden[:part, 1:])
        everything = (hidden, constant, slope, share, d_hidden)
        for values, *factors, handed, d_values in zip(
            *(one.split(part) for one in everything), strict=True
        ):
            torch.addcmul(factors[0], values, factors[1], out=d_values)
            steps = torch.sub(values[:, 1:], values[:, :-1], out=spare).sign_().mul_(handed)
            if mask is not None:
                d_values.mul_(mask)
                steps.mul_(mask[1:])
            d_values[:, 1:] += steps
            d_values[:, :-1] -= steps
        return d_hidden, None


def _part(hidden: torch.Tensor) -> int:
    """Streams at a time: what is not a CPU would rather have them all at once."""
    return 1 if hidden.device.type == "cpu" else len(hidden)


def _counts(
    hidden: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """Valid frames of each clip, and pairs of neighbours among them, at least one: (batch, 1)."""
    if mask is None:
        return hidden.shape[1], max(1, hidden.shape[1] - 1)
    return mask.sum(0).clamp(min=1), mask[1:].sum(0).clamp(min=1)


__all__ = ["VARIANCE_FLOOR", "FusedStatistics", "fused_block", "is_plain", "moments"]
