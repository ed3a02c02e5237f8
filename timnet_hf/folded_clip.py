# SPDX-License-Identifier: Apache-2.0
"""One clip through :mod:`timnet_hf.folded_network` in one compiled call.

A clip's frames, stream by stream, fit into the processor's innermost cache, so what counts is
the number of calls, and here it is one. Products are those of SciPy's BLAS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .folded_network import BIAS_ROWS
from .kernels import read_clip

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
        inner = [network.multi_scale] * (len(network.blocks) - 1)
        is_scale = np.array([network.pool_input, *inner, True])
        self.weights: tuple[Any, ...] = (
            network.members,
            network.centered,
            embed.numpy(),
            embed_bias.flatten(1).numpy(),
            np.stack([taps[1].numpy() for _, (taps, _) in layers]),
            np.stack([taps[0].numpy() for _, (taps, _) in layers]),
            np.stack([bias.repeat(1, BIAS_ROWS, 1).flatten(1).numpy() for _, (_, bias) in layers]),
            np.array([dilation for dilation, _ in layers]),
            np.where(is_scale, np.cumsum(is_scale) - 1, -1),
        )

    def __call__(self, clip: torch.Tensor, pooled: torch.Tensor) -> None:
        """Read normalised features (frames, input_size).

        Writes what `FoldedTimNet._pool` does, (scales, 3, streams, 1, channels), into ``pooled``.
        """
        read_clip(clip.contiguous().numpy(), *self.weights, pooled.squeeze(3).numpy())


__all__ = ["ClipReader"]
