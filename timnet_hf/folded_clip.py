# SPDX-License-Identifier: Apache-2.0
"""One clip through :mod:`timnet_hf.folded_network` in one compiled call.

A clip's frames, stream by stream, fit into the processor's innermost cache, so what counts is
the number of calls, and here it is one. Products are those of SciPy's BLAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .kernels import read_clip
from .passes_timnet import VARIANCE_FLOOR

if TYPE_CHECKING:
    from .folded_network import FoldedTimNet


class ClipReader:
    """A network's weights as arrays.

    Args:
        network: With two taps a layer; mean, deviation and change are pooled.
    """

    def __init__(self, network: FoldedTimNet):
        (embed,), embed_bias = network.embed
        layers = [layer for block in network.blocks for layer in block]
        taps = torch.stack([torch.cat(matrices, dim=1) for _, (matrices, _) in layers])
        inner = [network.multi_scale] * (len(network.blocks) - 1)
        is_scale = np.array([network.pool_input, *inner, True])
        self.directions = network.directions
        self.pooled = (int(is_scale.sum()), 3, *embed_bias.shape[::2])
        self.weights: tuple[Any, ...] = (
            network.members,
            network.centered,
            embed.mT.contiguous().numpy(),
            embed_bias.flatten(1).numpy(),
            taps.mT.contiguous().numpy(),
            np.stack([bias.flatten(1).numpy() for _, (_, bias) in layers]),
            np.array([dilation for dilation, _ in layers]),
            np.where(is_scale, np.cumsum(is_scale) - 1, -1),
            np.float32(VARIANCE_FLOOR),
        )

    def __call__(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `FoldedTimNet._statistics` makes of normalised features (frames, input_size) each.

        Returns:
            (clips, scales · pooled_size).
        """
        pooled = np.empty((len(clips), *self.pooled), np.float32)
        for clip, own in zip(clips, pooled, strict=True):
            rows = clip.numpy().T
            views = np.empty((self.directions, *rows.shape), np.float32)
            views[0], views[1:] = rows, rows[:, ::-1]
            read_clip(views, *self.weights, own)
        return torch.from_numpy(pooled).flatten(1)


__all__ = ["ClipReader"]
