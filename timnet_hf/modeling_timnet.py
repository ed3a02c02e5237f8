# SPDX-License-Identifier: Apache-2.0
"""TIM-Net: a temporal-aware bi-directional multi-scale network for speech emotion.

Written from the description of Ye, Wen, Wei, Xu, Liu and Shan, "Temporal Modeling Matters: A Novel
Temporal Emotional Modeling Approach for Speech Emotion Recognition", ICASSP 2023, arXiv 2211.08233.

The two streams share no weights but have the same shape, so they run side by side. Inside the
network a batch is laid out as ::

    (streams, frames, batch, hidden_size)      streams = [past → future, future → past]

so that a causal shift is a slice of whole rows, and a convolution one matrix product a stream.
Several members (``num_members``) are so many more streams: all that read forwards, then all that
read backwards. Some of them (``num_centered_members``) do not see a recording's mean.

Padding never reaches an answer. Each clip's valid frames are first moved to the front of its row,
in time order for one stream and in reverse order for the other. A causal convolution looks only
to the left, so what stands behind the last valid frame cannot leak into it; pooling and batch
statistics are taken over valid frames alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_timnet import TimNetConfig
from .fused_timnet import fused_block
from .layers_timnet import (
    TimNetCausalLayer,
    TimNetConv,
    TimNetFusion,
    TimNetPooling,
    TimNetScaleNorm,
    centered,
)
from .reading_timnet import in_reading_order, in_time_order, reading_orders
from .speaker_timnet import SpeakerError, SpeakerProfile, logit_offset


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


@dataclass
class TimNetClassifierOutput(SequenceClassifierOutput):
    """What :class:`TimNetForAudioClassification` returns.

    Attributes:
        loss: Where labels were given.
        logits: (batch, num_labels).
        hidden_states: See :class:`TimNetModelOutput`.
        attentions: None, there are none.
        member_logits: In training with several members: what each answers alone, (batch,
            num_members, num_labels). Each learns from its own; their mean is ``logits``.
    """

    member_logits: torch.Tensor | None = None


class TimNetBlock(GradientCheckpointingLayer):
    """Temporal-aware block: two causal layers make a gate in (0, 1) for the block's input."""

    def __init__(self, config: TimNetConfig, dilation: int):
        super().__init__()
        self.layer1 = TimNetCausalLayer(config, dilation)
        self.layer2 = TimNetCausalLayer(config, dilation)

    def fuses(self, hidden: torch.Tensor) -> bool:
        """Whether the gradients written out are used: in training, with two taps a layer."""
        return self.layer1.can_fuse(hidden) and self.layer2.can_fuse(hidden)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map (streams, frames, batch, hidden_size), aligned or not, to the same shape."""
        if self.fuses(hidden):
            return fused_block((self.layer1, self.layer2), hidden, mask)
        return hidden * torch.sigmoid(self.layer2(self.layer1(hidden, mask), mask))


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
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, buffer in module.named_buffers():
                (init.ones_ if name == "running_var" else init.zeros_)(buffer)
        elif isinstance(module, TimNetFusion) and module.learned:
            if self.config.fusion_init == "mean":
                init.constant_(module.weight, 1 / module.num_scales)
            else:
                init.uniform_(module.weight, -0.05, 0.05)


class TimNetModel(TimNetPreTrainedModel):
    """The TIM-Net without a head: MFCC frames → one vector a time scale → the fused vector."""

    def __init__(self, config: TimNetConfig):
        super().__init__(config)
        self.embed = TimNetConv(config.input_size, config.hidden_size, config.num_streams)
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

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.embed = value  # type: ignore[assignment]

    def _aligned(self, hidden: torch.Tensor) -> torch.Tensor:
        """In training, add channels of zeros up to a multiple of eight; blocks leave them zero.

        Products of whole vectors are two to three times as fast as those of 39 channels. A block
        that is compiled, or wrapped in something else, goes without.
        """
        spare = -hidden.shape[-1] % 8
        wanted = bool(spare) and all(
            isinstance(block, TimNetBlock)
            and getattr(block, "_compiled_call_impl", None) is None
            and block.fuses(hidden)
            for block in self.blocks
        )
        return F.pad(hidden, (0, spare)) if wanted else hidden

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
        if not input_values.numel():
            raise ValueError("input_values has no clip or no frame. Pass at least one.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        directions, members = self.config.num_directions, self.config.num_members
        order, mask = reading_orders(attention_mask, input_values, directions)
        # A copy: what follows wants its rows side by side in memory.
        views = (
            in_reading_order([input_values] * directions, order)
            .repeat_interleave(members, 0)
            .contiguous()
        )
        if mask is not None:
            # Whatever stands in the padding, even NaN, is gone before anything is multiplied by 0.
            views = views.masked_fill(~mask, 0)
            mask = mask.to(views.dtype)
        states: list[torch.Tensor] = []

        def in_time(hidden: torch.Tensor) -> torch.Tensor:
            return in_time_order(hidden[..., : self.config.hidden_size], order, mask, members)

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            # A state that is handed out lies on the way to the answer, so that its gradient can be
            # asked for. Nothing is kept, and nothing detours, where it is not.
            if not output_hidden_states:
                return hidden
            states.append(in_time(hidden))
            parts = states[-1].chunk(directions * members, dim=-1)
            return in_reading_order(parts, order, members).contiguous()

        hidden = self.embed(views)
        if count := self.config.num_centered_members:
            assert self.embed.bias is not None
            hidden = centered(hidden, mask, self.embed.bias, members, count)
        hidden = keep(hidden)
        hidden = self._aligned(hidden)
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
            last_hidden_state=states[-1] if states else in_time(hidden),
            pooler_output=fused,
            scale_vectors=scale_vectors,
            fusion_weights=weights,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class TimNetForAudioClassification(TimNetPreTrainedModel):
    """TIM-Net with a linear classifier on the fused vector."""

    #: The classifier's bias before it was adapted to a voice; never saved.
    _trained_bias: torch.Tensor | None = None

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
    ) -> TimNetClassifierOutput:
        """Score a batch of clips.

        Args:
            input_values: (batch, frames, input_size), the feature extractor's MFCCs.
            attention_mask: (batch, frames), 1 at valid frames, 0 at padding.
            labels: Class indices (batch,), or values (batch, num_labels) for the regression and
                multi-label problem types; then the loss is returned too.
            output_hidden_states: Also return every block's output.
            apply_temperature: Divide the logits by ``config.temperature``; by default as
                ``config.apply_temperature`` says, and never in training. The loss is taken on the
                logits as returned.
            **kwargs: Passed on to the loss function.

        Returns:
            ``logits`` (batch, num_labels), and ``loss`` and ``hidden_states`` where asked for,
            see :class:`TimNetClassifierOutput`.
        """
        outputs = self.timnet(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        fused = self.dropout(outputs.pooler_output)
        logits = self.classifier(fused)
        member_logits = None
        if self.training and self.config.num_members > 1:
            member_logits = self._member_logits(fused)
        if apply_temperature is None:
            apply_temperature = self.config.apply_temperature and not self.training
        if apply_temperature:
            logits = logits / self.config.temperature
        loss = None
        if labels is not None:
            answers = [logits] if member_logits is None else member_logits.unbind(1)
            losses = [self.loss_function(labels, one, self.config, **kwargs) for one in answers]
            loss = torch.stack(losses).mean()
            # The Trainer accumulates sums over all labels of a step; the library's losses of these
            # kinds are means over one batch, whatever it says.
            items = kwargs.get("num_items_in_batch")
            if items is not None and self.config.problem_type != "single_label_classification":
                loss = loss * labels.numel() / items
        return TimNetClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            member_logits=member_logits,
        )

    def _member_logits(self, fused: torch.Tensor) -> torch.Tensor:
        """Each member's own answer (batch, num_members, num_labels); their mean is the logits."""
        members, size = self.config.num_members, self.config.hidden_size
        own = fused.view(len(fused), -1, members, size)  # see TimNetPooling
        weight = self.classifier.weight.view(self.num_labels, -1, members, size)
        return members * torch.einsum("bkmh,lkmh->bml", own, weight) + self.classifier.bias

    def fingerprint(self) -> str:
        """Short checksum of the classifier, which tells one trained model from another.

        Of its weights as bfloat16, so that a model loaded in that type is still the same one.
        """
        weight = self.classifier.weight.detach().cpu().to(torch.bfloat16).contiguous()
        return hashlib.sha256(weight.view(torch.int16).numpy().tobytes()).hexdigest()[:16]

    @torch.inference_mode()
    def describe_speaker(
        self, name: str, waveforms: Sequence[np.ndarray], extractor: Any
    ) -> SpeakerProfile:
        """What is kept of a voice that is enrolled: its features, and what the model answers to it.

        Args:
            name: The speaker's name.
            waveforms: Recordings of this voice alone, each (samples,) at the extractor's rate; the
                more of them, and the more moods they are spoken in, the better.
            extractor: The model's feature extractor.

        Raises:
            ValueError: There is no waveform, or one that the extractor refuses.
        """
        profile = extractor.describe_speaker(name, waveforms)
        if self.config.problem_type in ("regression", "multi_label_classification"):
            return profile  # no label there stands against another
        adapted, rate = extractor.adapted_to(profile), extractor.sampling_rate
        asked = copy.deepcopy(self).eval()  # layers of this one may be frozen one by one
        inputs = [adapted(one, sampling_rate=rate, return_tensors="pt") for one in waveforms]
        inputs = [one.to(self.device, self.dtype) for one in inputs]
        logits = [asked(**one, apply_temperature=False).logits[0] for one in inputs]
        usual = torch.stack(logits).double().mean(0)
        return replace(profile, usual_logits=usual.tolist(), model=self.fingerprint())

    def adapted_to(
        self, speaker: SpeakerProfile | dict[str, Any] | str | os.PathLike[str]
    ) -> TimNetForAudioClassification:
        """A copy that takes what it usually answers to an enrolled voice off its logits.

        It wants its features from the extractor's ``adapted_to`` with the same profile. A copy of a
        copy knows the last voice alone.

        Args:
            speaker: A profile, or the JSON file that ``timnet enroll`` wrote; one without answers
                changes nothing.

        Raises:
            SpeakerError: It is no profile, the answers in it are another model's, or this model was
                saved adapted, and what it was before is not known.
            OSError: The file cannot be read.
        """
        profile = SpeakerProfile.load(speaker)
        trained = self._trained_bias
        if trained is None and getattr(self.config, "adapted_to_speaker", False):
            raise SpeakerError(
                "This model was saved adapted to a voice. Adapt the model as it was trained."
            )
        adapted = copy.deepcopy(self)
        bias = adapted.classifier.bias.detach()
        if trained is not None:
            bias.copy_(trained)
        adapted._trained_bias = bias.clone()
        adapted.config.adapted_to_speaker = True
        if profile.usual_logits is not None:
            same = profile.model == self.fingerprint()
            if not same or len(profile.usual_logits) != self.num_labels:
                raise SpeakerError(
                    f"{profile.name}: enrolled with another model. Enrol the voice again with this "
                    "one."
                )
            offset = logit_offset(profile.usual_logits, profile.recordings)
            bias += torch.from_numpy(offset).to(bias)
        return adapted


__all__ = [
    "TimNetClassifierOutput",
    "TimNetForAudioClassification",
    "TimNetModel",
    "TimNetModelOutput",
    "TimNetPreTrainedModel",
]
