# SPDX-License-Identifier: Apache-2.0
"""What the network looked at when it named a recording's emotion.

Two views, both exact for this network and neither a reason: *when* (each frame's gradient times
its features, which says how far the answer hangs on that moment) and *at what scale* (the network
fuses one vector a time scale, so an answer's logit is a sum of one part a scale).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from checkpoints import Checkpoint

#: Seconds at the start of a recording that are explained.
MAX_DURATION = 60


@dataclass(frozen=True)
class Explanation:
    """Why this label.

    Attributes:
        label: The most probable emotion of what is explained.
        times: Seconds at which the frames lie, (frames,).
        saliency: How much each frame speaks for the label (above 0) or against it, (frames,);
            the largest is ±1.
        scales: How far each scale sees, as text, finest first.
        weights: The fusion weight of each scale, which is the same for every recording.
        contributions: What each scale adds to the label's logit in this recording.
    """

    label: str
    times: np.ndarray
    saliency: np.ndarray
    scales: list[str]
    weights: np.ndarray
    contributions: np.ndarray


def explain(checkpoint: Checkpoint, waveform: np.ndarray) -> Explanation:
    """Explain the answer to the first minute of a recording.

    Args:
        checkpoint: The model.
        waveform: (samples,) at the checkpoint's rate.
    """
    rate = checkpoint.sampling_rate
    waveform = waveform[: MAX_DURATION * rate]
    model = checkpoint.timeline.model
    features = checkpoint.inputs(waveform)["input_values"].clone().requires_grad_()
    with torch.enable_grad():
        outputs = model.base_model(features)
        logits = model.classifier(outputs.pooler_output)[0]
        winner = int(logits.argmax())
        # Against the other labels: what raises all logits alike says nothing.
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[winner], features)
    saliency = (gradient * features).detach()[0].sum(-1).numpy().astype(np.float64)
    saliency /= np.abs(saliency).max() or 1.0

    weights = outputs.fusion_weights.detach()
    parts = outputs.scale_vectors.detach()[0] @ model.classifier.weight.detach()[winner]
    extractor = checkpoint.timeline.feature_extractor
    times = _first_frame(checkpoint, waveform, features.detach()[0])
    times = times + np.arange(len(saliency)) * extractor.hop_length / rate
    return Explanation(
        label=checkpoint.labels[winner],
        times=times,
        saliency=saliency,
        scales=_scales(checkpoint),
        weights=weights.numpy(),
        contributions=(weights * parts).numpy(),
    )


def _first_frame(checkpoint: Checkpoint, waveform: np.ndarray, features: torch.Tensor) -> float:
    """Second at which the first frame lies: extractors pad, crop, and leave out silent ends."""
    extractor, rate = checkpoint.timeline.feature_extractor, checkpoint.sampling_rate
    start = 0.0
    if extractor.num_samples is not None:
        start = (len(waveform) - extractor.num_samples) // 2 / rate
    if extractor.trim_db is None:
        return start
    whole_extractor = copy.copy(extractor)
    whole_extractor.trim_db = None
    whole = whole_extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_values"][0]
    # The frames are a slice of all frames, so its first frame is found in them.
    offsets = range(len(whole) - len(features) + 1)
    distance = [float((whole[offset] - features[0]).abs().sum()) for offset in offsets]
    return start + int(np.argmin(distance)) * extractor.hop_length / rate


def _scales(checkpoint: Checkpoint) -> list[str]:
    """How much sound, in seconds, one output frame of each block has in view."""
    config = checkpoint.timeline.model.config
    extractor = checkpoint.timeline.feature_extractor
    hop = extractor.hop_length / checkpoint.sampling_rate
    blocks = range(1, config.num_hidden_layers + 1)
    # Two causal layers a block, with dilation 1, 2, 4 …; the other direction sees as much again.
    seconds = [(1 + 2 * (config.kernel_size - 1) * (2**block - 1)) * hop for block in blocks]
    names = [f"{view:.2g} s" if view < 10 else f"{view:.0f} s" for view in seconds]
    names = names if config.multi_scale else names[-1:]
    return ["input", *names] if config.pool_input else names


__all__ = ["MAX_DURATION", "Explanation", "explain"]
