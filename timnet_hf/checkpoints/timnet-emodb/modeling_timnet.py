# SPDX-License-Identifier: Apache-2.0
"""TIM-Net: a temporal-aware bi-directional multi-scale network for speech emotion.

Written from the description of Ye, Wen, Wei, Xu, Liu and Shan, "Temporal Modeling Matters: A Novel
Temporal Emotional Modeling Approach for Speech Emotion Recognition", ICASSP 2023, arXiv 2211.08233.

The two streams share no weights but have the same shape, so they run side by side as the two
groups of one grouped convolution. Inside the network a batch is laid out as ::

    (batch, streams · hidden_size, frames)      streams = [past → future, future → past]

Padding never reaches an answer. Each clip's valid frames are first moved to the front of its row,
in time order for one stream and in reverse order for the other. A causal convolution looks only
to the left, so what stands behind the last valid frame cannot leak into it; pooling and batch
statistics are taken over valid frames alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_timnet import TimNetConfig


@dataclass
class TimNetModelOutput(ModelOutput):
    """What :class:`TimNetModel` returns.

    Attributes:
        last_hidden_state: (batch, frames, streams · hidden_size), the last block's output, both
            streams in the time order of the input, zero where the input is padding.
        pooler_output: (batch, pooled_size), the fused vector z = Σ_j w_j g_j.
        scale_vectors: (batch, num_scales, pooled_size), the vectors g_j, finest scale first.
        fusion_weights: (num_scales,), the weights w_j.
        hidden_states: With ``output_hidden_states=True``: the first block's input and each block's
            output, every one shaped like ``last_hidden_state``.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    scale_vectors: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class TimNetBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over (batch, frames) whose batch statistics leave padding out."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise (batch, channels, frames); mask (batch, 1, frames): 1 valid, 0 padding."""
        if not self.training:
            return super().forward(hidden)
        # Gradient checkpointing runs a block again inside the backward pass: the same batch must
        # not count twice in the running statistics.
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if mask is None and not again:
            return super().forward(hidden)
        if mask is None:
            weights = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(hidden, *weights, training=True, momentum=0.0, eps=self.eps)
        # Plain sums over the valid frames, in float32: a reduction over two axes at once is slow on
        # a CPU, and bfloat16 cannot count past 256.
        values = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        count = mask.sum(dtype=values.dtype).clamp(min=1)
        valid = values * mask
        mean = valid.sum(-1).sum(0) / count
        variance = ((valid * values).sum(-1).sum(0) / count - mean.square()).clamp(min=0)
        if not again:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None], values, scale[:, None]).to(hidden.dtype)


class TimNetCausalLayer(nn.Module):
    """Causal dilated convolution → batch norm → ReLU → whole-channel dropout.

    With two taps and dilation d the output at frame t sees frames t - d and t: ::

        zeros  x0  x1  x2  x3
          └─d──┴─→ y   y   y        frames before the first count as zero
    """

    def __init__(self, config: TimNetConfig, dilation: int):
        super().__init__()
        channels = config.num_streams * config.hidden_size
        self.reach = (config.kernel_size - 1) * dilation
        self.conv = nn.Conv1d(
            channels, channels, config.kernel_size, dilation=dilation, groups=config.num_streams
        )
        self.norm = TimNetBatchNorm(
            channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )
        self.dropout = nn.Dropout1d(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map (batch, channels, frames) to the same shape."""
        hidden = self.conv(F.pad(hidden, (self.reach, 0)))
        return self.dropout(F.relu(self.norm(hidden, mask)))


class TimNetBlock(GradientCheckpointingLayer):
    """Temporal-aware block: two causal layers make a gate in (0, 1) for the block's input."""

    def __init__(self, config: TimNetConfig, dilation: int):
        super().__init__()
        self.layer1 = TimNetCausalLayer(config, dilation)
        self.layer2 = TimNetCausalLayer(config, dilation)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map (batch, channels, frames) to the same shape."""
        return hidden * torch.sigmoid(self.layer2(self.layer1(hidden, mask), mask))


class TimNetPooling(nn.Module):
    """A scale's frames → one vector, over valid frames only."""

    def __init__(self, config: TimNetConfig):
        super().__init__()
        self.num_streams = config.num_streams
        self.statistics = config.pooling == "statistics"

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool (batch, streams · hidden_size, frames) to (batch, pooled_size)."""
        mean = _masked_mean(hidden, mask)
        if not self.statistics:
            return mean.unflatten(1, (self.num_streams, -1)).sum(1)
        # The small constant keeps the gradient of the root finite where a channel is constant.
        centred = hidden - mean.unsqueeze(-1)
        deviation = torch.sqrt(_masked_mean(centred.square(), mask) + 1e-6)
        if hidden.shape[-1] == 1:
            change = torch.zeros_like(mean)
        else:
            pairs = None if mask is None else mask[..., 1:]
            change = _masked_mean((hidden[..., 1:] - hidden[..., :-1]).abs(), pairs)
        return torch.cat((mean, deviation, change), dim=1)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of (batch, channels, frames) over the frames where mask (batch, 1, frames) is 1."""
    if mask is None:
        return values.mean(-1)
    # Mean over all frames, then put right: a sum would overflow float16, and a count bfloat16.
    excess = mask.shape[-1] / mask.sum(-1, dtype=torch.float32).clamp(min=1)
    return (values * mask).mean(-1) * excess.to(values.dtype)


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


class TimNetPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading shared by the TIM-Net models."""

    config_class = TimNetConfig
    base_model_prefix = "timnet"
    main_input_name = "input_values"
    input_modalities = ("audio",)  # type: ignore[assignment]  # a tuple, as the library itself has
    supports_gradient_checkpointing = True
    _no_split_modules = ["TimNetBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keras' defaults, as the published network has them: Glorot-uniform kernels, no bias."""
        if isinstance(module, nn.Conv1d):
            # Each group is a layer of its own, so its fans are counted alone.
            fans = (module.in_channels + module.out_channels) / module.groups
            bound = math.sqrt(6 / (fans * module.kernel_size[0]))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TimNetBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, TimNetFusion) and module.learned:
            if self.config.fusion_init == "mean":
                init.constant_(module.weight, 1 / module.num_scales)
            else:
                init.uniform_(module.weight, -0.05, 0.05)


class TimNetModel(TimNetPreTrainedModel):
    """The TIM-Net without a head: MFCC frames → one vector a time scale → the fused vector."""

    def __init__(self, config: TimNetConfig):
        super().__init__(config)
        channels = config.num_streams * config.hidden_size
        self.embed = nn.Conv1d(
            config.num_streams * config.input_size, channels, 1, groups=config.num_streams
        )
        self.blocks = nn.ModuleList(
            TimNetBlock(config, 2**index) for index in range(config.num_hidden_layers)
        )
        self.pooling = TimNetPooling(config)
        if config.normalize_scales:
            self.scale_norm = TimNetScaleNorm(
                config.num_scales * config.pooled_size,
                eps=config.batch_norm_eps,
                momentum=config.batch_norm_momentum,
            )
        self.fusion = TimNetFusion(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The 1×1 convolution that every frame enters through."""
        return self.embed

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> TimNetModelOutput:
        """Run the network.

        Args:
            input_values: (batch, frames, input_size), the feature extractor's MFCCs.
            attention_mask: (batch, frames), 1 at valid frames, 0 at padding on either side.
            output_hidden_states: Also return every block's output.
            **kwargs: ``return_dict=False`` for a tuple; anything else is ignored.

        Returns:
            The output of every stage, see :class:`TimNetModelOutput`.

        Raises:
            ValueError: The input is not (batch, frames, input_size), or has no frame.
        """
        if input_values.ndim != 3 or input_values.shape[-1] != self.config.input_size:
            raise ValueError(
                f"input_values must have shape (batch, frames, {self.config.input_size}), "
                f"not {tuple(input_values.shape)}. Make them with TimNetFeatureExtractor."
            )
        if input_values.shape[1] == 0:
            raise ValueError("input_values has no frame. Pass at least one.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        streams = self.config.num_streams
        order, mask = _reading_orders(attention_mask, input_values, streams)
        views = _read([input_values] * streams, order).transpose(1, 2)
        if mask is not None:
            # Whatever stands in the padding, even NaN, is gone before anything is multiplied by 0.
            views = views.masked_fill(~mask, 0)
            mask = mask.to(views.dtype)
        states: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            # A state that is handed out lies on the way to the answer, so that its gradient can be
            # asked for. Nothing is kept, and nothing detours, where it is not.
            if not output_hidden_states:
                return hidden
            states.append(_restore(hidden, order, mask, streams))
            return _read(states[-1].chunk(streams, dim=-1), order).transpose(1, 2).contiguous()

        hidden = keep(self.embed(views))
        scales = [self.pooling(hidden, mask)] if self.config.pool_input else []
        for index, block in enumerate(self.blocks):
            hidden = keep(block(hidden, mask))
            if self.config.multi_scale or index == len(self.blocks) - 1:
                scales.append(self.pooling(hidden, mask))
        scale_vectors = torch.stack(scales, dim=1)
        if self.config.normalize_scales:
            scale_vectors = self.scale_norm(scale_vectors.flatten(1)).view_as(scale_vectors)
        fused, weights = self.fusion(scale_vectors)

        return TimNetModelOutput(
            last_hidden_state=states[-1] if states else _restore(hidden, order, mask, streams),
            pooler_output=fused,
            scale_vectors=scale_vectors,
            fusion_weights=weights,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


def _reading_orders(
    attention_mask: torch.Tensor | None, values: torch.Tensor, num_streams: int
) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
    """Where each stream reads its frames from: valid ones first, forwards and backwards.

    Returns:
        For each stream the frame indices (batch, frames) in reading order, and the mask
        (batch, 1, frames) of the valid frames in that order. Both None where nothing is padded.
    """
    if attention_mask is None:
        return None, None
    if attention_mask.shape != values.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but input_values has "
            f"(batch, frames) {tuple(values.shape[:2])}."
        )
    valid = attention_mask != 0
    length = valid.sum(1, keepdim=True)
    forward = torch.argsort((~valid).to(torch.int32), dim=1, stable=True)
    position = torch.arange(valid.shape[1], device=valid.device).expand_as(forward)
    within = position < length
    orders = [forward]
    if num_streams == 2:
        mirrored = torch.where(within, length - 1 - position, position)
        orders.append(forward.gather(1, mirrored))
    return orders, within.unsqueeze(1)


def _read(parts: Sequence[torch.Tensor], order: list[torch.Tensor] | None) -> torch.Tensor:
    """Take each stream's frames (batch, frames, size) in its reading order, side by side."""
    if order is None:
        return torch.cat([parts[0], *(part.flip(1) for part in parts[1:])], dim=-1)
    pairs = zip(parts, order, strict=True)
    taken = [part.gather(1, index.unsqueeze(-1).expand_as(part)) for part, index in pairs]
    return torch.cat(taken, dim=-1)


def _restore(
    hidden: torch.Tensor,
    order: list[torch.Tensor] | None,
    mask: torch.Tensor | None,
    num_streams: int,
) -> torch.Tensor:
    """Undo the reading order: (batch, channels, frames) → time order (batch, frames, channels)."""
    if order is not None and mask is not None:
        hidden = hidden * mask
        order = [torch.argsort(index, dim=1) for index in order]
    return _read(hidden.transpose(1, 2).chunk(num_streams, dim=-1), order)


class TimNetForAudioClassification(TimNetPreTrainedModel):
    """TIM-Net with a linear classifier on the fused vector."""

    def __init__(self, config: TimNetConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.timnet = TimNetModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.pooled_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        apply_temperature: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Score a batch of clips.

        Args:
            input_values: (batch, frames, input_size), the feature extractor's MFCCs.
            attention_mask: (batch, frames), 1 at valid frames, 0 at padding.
            labels: Class indices (batch,), or values (batch, num_labels) for the regression and
                multi-label problem types; then the loss is returned too.
            output_hidden_states: Also return every block's output.
            apply_temperature: Divide the logits by ``config.temperature``; by default as
                ``config.apply_temperature`` says. The loss is taken on the logits as returned.
            **kwargs: Passed on to the loss function.

        Returns:
            ``logits`` (batch, num_labels), and ``loss`` and ``hidden_states`` where asked for.
        """
        outputs = self.timnet(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if apply_temperature is None:
            apply_temperature = self.config.apply_temperature
        if apply_temperature:
            logits = logits / self.config.temperature
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states
        )


__all__ = [
    "TimNetForAudioClassification",
    "TimNetModel",
    "TimNetModelOutput",
    "TimNetPreTrainedModel",
]
