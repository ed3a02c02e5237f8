# SPDX-License-Identifier: Apache-2.0
"""The layers TIM-Net is made of: convolution, batch normalisation, both as one layer, and pooling.

All of them work on (streams, frames, batch, size), frames in the stream's own reading order, and a
mask (frames, batch, 1) of the valid frames. With frames before the batch, a shift in time is a
slice of whole rows. See :mod:`timnet_hf.modeling_timnet` for the network.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch import nn
from torch.autograd.function import once_differentiable

from .configuration_timnet import TimNetConfig


class TimNetConv(nn.Conv1d):
    """Causal dilated convolution of both streams, each with weights of its own.

    With two taps and dilation d the output at frame t sees frames t - d and t: ::

        zeros  x0  x1  x2  x3
          └─d──┴─→ y   y   y        frames before the first count as zero

    The parameters are those of a convolution with one group a stream.
    """

    def __init__(self, in_size: int, out_size: int, streams: int, taps: int = 1, dilation: int = 1):
        super().__init__(streams * in_size, streams * out_size, taps, 1, 0, dilation, streams)

    def matrices(self) -> torch.Tensor:
        """The weights as (taps, streams, in_size, out_size), the tap that looks back first."""
        in_size, (taps,) = self.in_channels // self.groups, self.kernel_size
        return self.weight.view(self.groups, -1, in_size, taps).permute(3, 0, 2, 1)

    def forward(
        self,
        hidden: torch.Tensor,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Convolve (streams, frames, batch, in_size), then scale and shift the output channels.

        ``scale`` and ``shift``, both (streams, 1, out_size), go into the weights, not over the
        frames: this is how batch normalisation costs nothing at inference.
        """
        streams, frames, batch, size = hidden.shape
        (taps,), (dilation,) = self.kernel_size, self.dilation
        reaches = [(taps - 1 - tap) * dilation for tap in range(taps)]
        seen = [_delay(hidden, reach) for reach in reaches[:-1]]
        rows = torch.cat((*seen, hidden), dim=-1).view(streams, frames * batch, taps * size)
        weight = torch.cat(self.matrices().unbind(), dim=1)
        assert self.bias is not None
        bias = self.bias.view(streams, 1, -1)
        if scale is not None and shift is not None:
            weight, bias = weight * scale, torch.addcmul(shift, bias, scale)
        # Under autocast the product is taken in bfloat16; what stands between products stays as
        # exact as the input.
        product = torch.baddbmm(bias, rows, weight).to(hidden.dtype)
        return product.view(streams, frames, batch, -1)


class TimNetBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over frames and batch whose batch statistics leave padding out."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def scale_and_shift(
        self, mean: torch.Tensor, variance: torch.Tensor, streams: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, both (streams, 1, size), that normalise with these statistics."""
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = torch.addcmul(self.bias, mean, scale, value=-1)
        return scale.view(streams, 1, -1), shift.view(streams, 1, -1)

    @torch.no_grad()
    def update(
        self,
        mean: torch.Tensor,
        variance: torch.Tensor,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        """Take a batch's mean and biased variance, both (channels,), into the running ones."""
        # Gradient checkpointing runs a block again inside the backward pass: the same batch must
        # not count twice.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        rows = hidden.shape[1] * hidden.shape[2]
        count = mean.new_tensor(rows) if mask is None else mask.sum(dtype=mean.dtype)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise (streams, frames, batch, size) by the statistics of this batch.

        ``mask`` is (frames, batch, 1): 1 valid, 0 padding.
        """
        streams = hidden.shape[0]
        # In float32: bfloat16 cannot count past 256.
        values = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).flatten(1, 2)
        mean, variance = (moment.flatten() for moment in _moments(values, mask))
        self.update(mean, variance, hidden, mask)
        scale, shift = self.scale_and_shift(mean, variance, streams)
        return torch.addcmul(shift, values, scale).view_as(hidden)


class TimNetCausalLayer(nn.Module):
    """Causal dilated convolution → batch norm → ReLU → whole-channel dropout."""

    def __init__(self, config: TimNetConfig, dilation: int):
        super().__init__()
        size, streams = config.hidden_size, config.num_streams
        self.conv = TimNetConv(size, size, streams, config.kernel_size, dilation)
        self.norm = TimNetBatchNorm(
            streams * size, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )
        self.dropout = config.hidden_dropout_prob

    def align(self, hidden: torch.Tensor) -> torch.Tensor:
        """In training, add channels of zeros up to a multiple of eight.

        Products of whole vectors are two to three times as fast as those of 39 channels. The
        layers leave such channels at zero.
        """
        spare = -hidden.shape[-1] % 8
        wanted = spare and self.training and _can_fuse(self.conv, hidden)
        return F.pad(hidden, (0, spare)) if wanted else hidden

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map (streams, frames, batch, hidden_size), aligned or not, to the same shape."""
        streams, _, batch, width = hidden.shape
        size = self.conv.out_channels // streams
        spare = width - size
        if not self.training:
            statistics = (self.norm.running_mean, self.norm.running_var)
            return F.relu(self.conv(hidden, *self.norm.scale_and_shift(*statistics, streams)))
        kept = F.dropout(hidden.new_ones(streams, 1, batch, size), self.dropout)
        if _can_fuse(self.conv, hidden):
            assert self.conv.bias is not None
            # The convolution's bias cancels in the normalisation; its gradient is zero, not absent.
            beta = self.norm.bias + 0 * self.conv.bias
            output, *moments = _FusedLayer.apply(
                hidden,
                F.pad(self.conv.matrices(), (0, spare, 0, spare)),
                F.pad(self.norm.weight.view(streams, 1, size), (0, spare)),
                F.pad(beta.view(streams, 1, size), (0, spare)),
                mask,
                F.pad(kept, (0, spare)),
                self.conv.dilation[0],
                self.norm.eps,
            )
            mean, variance = (moment[..., :size].flatten() for moment in moments)
            self.norm.update(mean + self.conv.bias, variance, hidden, mask)
            return output
        return F.relu(self.norm(self.conv(hidden), mask)).to(hidden.dtype) * kept


def _can_fuse(conv: TimNetConv, hidden: torch.Tensor) -> bool:
    return conv.kernel_size == (2,) and hidden.dtype == conv.weight.dtype and _is_plain(hidden)


def _is_plain(hidden: torch.Tensor) -> bool:
    """Whether hand-written gradients apply: not where a compiler rewrites the operations."""
    return hidden.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


class _FusedLayer(torch.autograd.Function):
    """The causal layer in training, with its gradient written out.

    The same numbers as the plain form above, up to rounding, from fewer passes over the frames.
    With x the input, x' the input d frames earlier, k the dropout's factors and n the number of
    valid frames::

        y = x' W₀ + x W₁     ŷ = (y - mean) / deviation     h = k · relu(γ ŷ + β)
        ∂y = γ / deviation · (∂z - Σ∂z / n - ŷ Σ(∂z ŷ) / n)     with ∂z = k · ∂h where h > 0
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        mask: torch.Tensor | None,
        kept: torch.Tensor,
        dilation: int,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the output, and the mean and variance of the convolution without its bias."""
        streams, _, batch, size = hidden.shape
        precision, device = hidden.dtype, hidden.device.type
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        rows = hidden.reshape(streams, -1, size).to(precision)
        weight = weight.to(precision)
        reach = dilation * batch
        with torch.autocast(device, enabled=False):
            values = torch.bmm(rows, weight[1])
            if reach < rows.shape[1]:
                values[:, reach:].baddbmm_(rows[:, :-reach], weight[0])
        values = values.to(hidden.dtype)
        mean, variance = _moments(values, mask)
        deviation = torch.sqrt(variance + eps)
        scale = gamma / deviation
        shift = beta - mean * scale
        values = values.view_as(hidden)
        # The factors are not negative, so they may go through the ReLU.
        output = torch.addcmul(shift.unsqueeze(1) * kept, values, scale.unsqueeze(1) * kept).relu_()
        ctx.save_for_backward(rows, weight, gamma, values, output, mean, deviation, kept, mask)
        ctx.reach = reach
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, ``weight``, ``gamma`` and ``beta``."""
        rows, weight, gamma, values, output, mean, deviation, kept, mask = ctx.saved_tensors
        _, frames, batch, _ = output.shape
        count = frames * batch if mask is None else mask.sum().clamp(min=1)
        active = torch.ops.aten.threshold_backward(gradient, output, 0)
        d_beta = (active.sum(1, keepdim=True) * kept).sum(2)
        with_values = ((active * values).sum(1, keepdim=True) * kept).sum(2)
        d_gamma = (with_values - mean * d_beta) / deviation
        scale = gamma / deviation
        slope = -scale / deviation * d_gamma / count
        constant = -scale * d_beta / count - slope * mean
        d_values = torch.addcmul(constant.unsqueeze(1), values, slope.unsqueeze(1))
        d_values.addcmul_(active, scale.unsqueeze(1) * kept)
        if mask is not None:
            d_values.mul_(mask)
        errors = d_values.view_as(rows).to(rows.dtype)
        d_now = torch.bmm(rows.transpose(1, 2), errors)
        d_before = torch.zeros_like(d_now)
        d_rows = torch.bmm(errors, weight[1].transpose(1, 2))
        if (reach := ctx.reach) < rows.shape[1]:
            d_before = torch.bmm(rows[:, :-reach].transpose(1, 2), errors[:, reach:])
            d_rows[:, :-reach].baddbmm_(errors[:, reach:], weight[0].transpose(1, 2))
        d_hidden = d_rows.view_as(output).to(output.dtype)
        d_weight = torch.stack((d_before, d_now)).to(output.dtype)
        return d_hidden, d_weight, d_gamma, d_beta, None, None, None, None


def centered(
    hidden: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor, members: int, count: int
) -> torch.Tensor:
    """Take each clip's mean off what the first members of every direction read.

    Done behind the first layer, which is linear: it leaves its bias in place of the mean.

    Args:
        hidden: (streams, frames, batch, size).
        mask: (frames, batch, 1), or None.
        bias: The first layer's, (streams · size,).
        members: Streams of a direction.
        count: How many of them are centred.
    """
    mean = _masked_mean(hidden, mask) - bias.view(len(hidden), 1, -1)
    chosen = torch.arange(len(hidden), device=hidden.device) % members < count
    return hidden - (mean * chosen.view(-1, 1, 1)).unsqueeze(1)


class TimNetPooling(nn.Module):
    """A scale's frames → one vector, over valid frames only."""

    def __init__(self, config: TimNetConfig):
        super().__init__()
        self.statistics = config.pooling == "statistics"
        self.size = config.hidden_size
        self.directions = config.num_directions

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool (streams, frames, batch, hidden_size), aligned or not, to (batch, pooled_size).

        The vector lies as (kinds, members, hidden_size), kinds being statistics and directions.
        """
        if not self.statistics:
            mean = _masked_mean(hidden, mask)[..., : self.size]
            directions = mean.unflatten(0, (self.directions, -1))
            return directions.sum(0).transpose(0, 1).flatten(1)
        if self.training and _is_plain(hidden):
            statistics = _FusedStatistics.apply(hidden, mask)
        else:
            statistics = _statistics(hidden, mask)[0]
        return statistics[..., : self.size].permute(2, 0, 1, 3).flatten(1)


def _statistics(
    hidden: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, deviation and mean absolute change (3, streams, batch, size), and hidden - mean."""
    mean = _masked_mean(hidden, mask)
    # The small constant keeps the gradient of the root finite where a channel is constant.
    centred = hidden - mean.unsqueeze(1)
    deviation = torch.sqrt(_masked_mean(centred.square(), mask) + 1e-6)
    if hidden.shape[1] == 1:
        change = torch.zeros_like(mean)
    else:
        pairs = None if mask is None else mask[1:]
        change = _masked_mean((hidden[:, 1:] - hidden[:, :-1]).abs(), pairs)
    return torch.stack((mean, deviation, change)), centred


class _FusedStatistics(torch.autograd.Function):
    """The same with its gradient written out, for the sake of fewer passes over the frames.

    With w the weight of a frame in the mean and v that of a pair of neighbours in the change::

        ∂x = w (∂mean + ∂deviation (x - mean) / deviation) + ∂change · D(v sign(change of x))

    where D hands each pair's share to its later frame and takes it from its earlier one.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return (3, streams, batch, size)."""
        statistics, centred = _statistics(hidden, mask)
        ctx.save_for_backward(hidden, centred, statistics[1], mask)
        return statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient of ``hidden``."""
        hidden, centred, deviation, mask = ctx.saved_tensors
        frames = hidden.shape[1]
        d_mean, d_deviation, d_change = gradient.unsqueeze(2)
        slope = d_deviation / deviation.unsqueeze(1)
        if mask is None:
            d_hidden = torch.addcmul(d_mean / frames, centred, slope / frames)
        else:
            length = mask.sum(0).clamp(min=1)
            d_hidden = torch.addcmul(d_mean / length, centred, slope / length).mul_(mask)
        if frames > 1:
            share = (hidden[:, 1:] - hidden[:, :-1]).sign_()
            if mask is None:
                share.mul_(d_change / (frames - 1))
            else:
                share.mul_(d_change / mask[1:].sum(0).clamp(min=1)).mul_(mask[1:])
            d_hidden[:, 1:] += share
            d_hidden[:, :-1] -= share
        return d_hidden, None


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of (streams, frames, batch, size) over the frames where mask (frames, batch, 1) is 1."""
    if mask is None:
        return values.mean(1)
    # Mean over all frames, then put right: a sum would overflow float16, and a count bfloat16.
    excess = mask.shape[0] / mask.sum(0, dtype=torch.float32).clamp(min=1)
    return (values * mask).mean(1) * excess.to(values.dtype)


def _moments(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
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


def _delay(values: torch.Tensor, distance: int) -> torch.Tensor:
    """Move frames (dimension 1) later by a distance; zeros come in at the start."""
    return F.pad(values, (0, 0, 0, 0, distance, 0))[:, : values.shape[1]]


__all__ = ["TimNetBatchNorm", "TimNetCausalLayer", "TimNetConv", "TimNetPooling", "centered"]
