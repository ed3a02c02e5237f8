# SPDX-License-Identifier: Apache-2.0
"""Configuration of the TIM-Net speech-emotion network."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

#: The paper's four ablations, as keyword arguments of :class:`TimNetConfig`.
ABLATIONS: dict[str, dict[str, bool]] = {
    "no-backward": {"bidirectional": False},
    "no-multi-scale": {"multi_scale": False},
    "no-dynamic-fusion": {"dynamic_fusion": False},
    "plain-tcn": {"bidirectional": False, "multi_scale": False, "dynamic_fusion": False},
}


class TimNetConfig(PreTrainedConfig):
    """Shape and switches of a TIM-Net.

    The defaults are the network as published (Ye et al., ICASSP 2023, arXiv 2211.08233): 39 MFCCs
    in, two streams of eight temporal-aware blocks, 104,496 trainable parameters with seven labels.

    Args:
        input_size: Coefficients in each input frame.
        hidden_size: Channels of each stream.
        num_hidden_layers: Temporal-aware blocks in each stream; block *j* has dilation 2^(j-1).
        kernel_size: Taps of the causal convolutions (at least 1).
        hidden_dropout_prob: Whole-channel (spatial) dropout behind each convolution, 0 to 1.
        classifier_dropout: Dropout on the fused vector before the classifier, 0 to 1.
        bidirectional: Use the stream that reads the recording backwards.
        multi_scale: Pool every block; otherwise only the last one.
        dynamic_fusion: Learn one weight a scale; otherwise take the plain mean of the scales.
        pooling: How a scale's frames become one vector. ``"mean"``: mean over time of the sum of
            the streams, as published. ``"statistics"``: mean, standard deviation and mean absolute
            difference of neighbouring frames, for each stream, side by side.
        pool_input: Pool the input of the first block as a scale of its own.
        fusion_init: Where the fusion weights start. ``"uniform"``: in ±0.05, as published;
            ``"mean"``: at one over the number of scales.
        batch_norm_eps: Added to the variance in batch normalisation.
        batch_norm_momentum: Weight of the new batch in the running statistics.
        temperature: Divisor that calibrates the logits, above 0. Fitted on held-out speakers.
        apply_temperature: Let the classification head divide its logits by ``temperature``.
        **kwargs: Passed to :class:`transformers.PreTrainedConfig` (``id2label``, ``num_labels``, …).

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> from timnet_hf import TimNetConfig
        >>> TimNetConfig(num_labels=7).num_scales
        8
    """

    model_type = "timnet"
    attribute_map: ClassVar[dict[str, str]] = {}

    input_size: int = 39
    hidden_size: int = 39
    num_hidden_layers: int = 8
    kernel_size: int = 2
    hidden_dropout_prob: float | int = 0.1
    classifier_dropout: float | int = 0.0
    bidirectional: bool = True
    multi_scale: bool = True
    dynamic_fusion: bool = True
    pooling: str = "mean"
    pool_input: bool = False
    fusion_init: str = "uniform"
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    temperature: float | int = 1.0
    apply_temperature: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the ranges that a type cannot express."""
        for name in ("input_size", "hidden_size", "num_hidden_layers", "kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("hidden_dropout_prob", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.pooling not in ("mean", "statistics"):
            raise ValueError(f"pooling must be 'mean' or 'statistics', not {self.pooling!r}.")
        if self.fusion_init not in ("uniform", "mean"):
            raise ValueError(f"fusion_init must be 'uniform' or 'mean', not {self.fusion_init!r}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}.")
        super().__post_init__(**kwargs)

    @property
    def num_streams(self) -> int:
        """Streams of blocks: 2, or 1 without the backward stream."""
        return 2 if self.bidirectional else 1

    @property
    def num_scales(self) -> int:
        """Vectors that are fused: one a pooled block, and one for the input if it is pooled."""
        return (self.num_hidden_layers if self.multi_scale else 1) + int(self.pool_input)

    @property
    def pooled_size(self) -> int:
        """Length of a scale's vector, which is also that of the fused vector."""
        return self.hidden_size * (3 * self.num_streams if self.pooling == "statistics" else 1)


__all__ = ["ABLATIONS", "TimNetConfig"]
