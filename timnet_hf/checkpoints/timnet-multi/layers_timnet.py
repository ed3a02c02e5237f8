# SPDX-License-Identifier: Apache-2.0
"""What TIM-Net is made of: convolution, normalisation, both as one layer, pooling and fusion.

All of them work on (streams, frames, batch, size), frames in the stream's own reading order, and a
mask (frames, batch, 1) of the valid frames. With frames before the batch, a shift in time is a
slice of whole rows. See :mod:`timnet_hf.modeling_timnet` for the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch import nn

from .configuration_timnet import TimNetConfig
from .fused_timnet import FusedStatistics, is_plain
from .passes_timnet import VARIANCE_FLOOR, moments


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
        rows = torch.cat((*seen, hidden), dim=-1) if seen else hidden
        rows = rows.reshape(streams, frames * batch, taps * size)
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
        mean, variance = (moment.flatten() for moment in moments(values, mask))
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

    def can_fuse(self, hidden: torch.Tensor) -> bool:
        """Whether :func:`timnet_hf.fused_timnet.fused_block` can do this layer's part.

        It does not call the layer, so not where somebody waits for a call, nor where the running
        statistics are frozen.
        """
        learns = self.training and self.norm.training
        same = hidden.dtype == self.conv.weight.dtype and self.conv.kernel_size == (2,)
        return learns and same and is_plain(hidden) and not _is_watched(self)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map (streams, frames, batch, hidden_size) to the same shape."""
        if self.norm.training:
            normed = self.norm(self.conv(hidden), mask)
        else:
            statistics = (self.norm.running_mean, self.norm.running_var)
            normed = self.conv(hidden, *self.norm.scale_and_shift(*statistics, len(hidden)))
        output = F.relu(normed).to(hidden.dtype)
        return output * self.draw_dropout(hidden) if self.training else output

    def draw_dropout(self, hidden: torch.Tensor) -> torch.Tensor:
        """Factors (streams, 1, batch, size) that silence whole channels of a clip at random."""
        streams, _, batch, _ = hidden.shape
        size = self.conv.out_channels // streams
        return F.dropout(hidden.new_ones(streams, 1, batch, size), self.dropout)


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


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
        if self.training and is_plain(hidden):
            statistics = FusedStatistics.apply(hidden, mask)
        else:
            statistics = _statistics(hidden, mask)
        return statistics[..., : self.size].permute(2, 0, 1, 3).flatten(1)


class TimNetScaleNorm(nn.BatchNorm1d):
    """Batch normalisation of the scales' vectors; a batch of one is left to the running ones."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Normalise (batch, num_scales · pooled_size)."""
        if self.training and vectors.shape[0] == 1:
            weights = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(vectors, *weights, training=False, eps=self.eps)
        return super().forward(vectors)


class TimNetFusion(nn.Module):
    """Dynamic fusion: the scales' vectors summed with learned weights, no softmax on them."""

    def __init__(self, config: TimNetConfig):
        super().__init__()
        self.num_scales = config.num_scales
        self.learned = config.dynamic_fusion and config.num_scales > 1
        if self.learned:
            self.weight = nn.Parameter(torch.empty(config.num_scales))

    def forward(self, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuse (batch, num_scales, size) to (batch, size); return the weights (num_scales,) too."""
        weights: torch.Tensor
        if self.learned:
            weights = self.weight
        else:
            weights = scales.new_full((self.num_scales,), 1 / self.num_scales)
        return torch.einsum("bsc,s->bc", scales, weights.to(scales.dtype)), weights


def _statistics(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean, deviation and mean absolute change (3, streams, batch, size)."""
    mean = _masked_mean(hidden, mask)
    variance = _masked_mean((hidden - mean.unsqueeze(1)).square(), mask)
    deviation = torch.sqrt(variance + VARIANCE_FLOOR)
    if hidden.shape[1] == 1:
        change = torch.zeros_like(mean)
    else:
        pairs = None if mask is None else mask[1:]
        change = _masked_mean((hidden[:, 1:] - hidden[:, :-1]).abs(), pairs)
    return torch.stack((mean, deviation, change))


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of (streams, frames, batch, size) over the frames where mask (frames, batch, 1) is 1."""
    # A sum's gradient is a view of what comes in, a mean's is written out for every frame. In
    # float32 at least: a sum would overflow float16, and a count bfloat16.
    exact = torch.promote_types(values.dtype, torch.float32)
    if mask is None:
        return (values.sum(1, dtype=exact) / values.shape[1]).to(values.dtype)
    frames = mask.sum(0, dtype=exact).clamp(min=1)
    return ((values * mask).sum(1, dtype=exact) / frames).to(values.dtype)


def _delay(values: torch.Tensor, distance: int) -> torch.Tensor:
    """Move frames (dimension 1) later by a distance; zeros come in at the start."""
    return F.pad(values, (0, 0, 0, 0, distance, 0))[:, : values.shape[1]]


__all__ = [
    "TimNetBatchNorm",
    "TimNetCausalLayer",
    "TimNetConv",
    "TimNetFusion",
    "TimNetPooling",
    "TimNetScaleNorm",
    "centered",
]
