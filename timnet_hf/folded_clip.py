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
from .kernels import activate, compiled, gate, pool

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
        _read(clip.contiguous().numpy(), *self.weights, pooled.squeeze(3).numpy())


@compiled
def _read(
    clip, members, centered, embed, embed_bias, newest, older, biases, dilations, places, pooled
):
    """Put a clip through every stream; two layers are a block.

    Arrays are clip (frames, inputs), embed (streams, inputs, size) and its bias (streams, size),
    taps (layers, streams, size, size), biases (layers, streams, rows · size), dilations (layers,),
    and the place of each state in pooled (scales, 3, streams, size), -1 for none.
    """
    frames, inputs = clip.shape
    streams, size = embed_bias.shape
    runs = np.empty((frames, 3), np.uint64)
    for frame in range(frames):
        runs[frame] = (frame, 0, size)
    frames_of = np.full(size, frames, np.float32)
    mean = np.empty((1, size), np.float32)
    squares, changes = np.empty_like(mean), np.empty_like(mean)
    middle = np.zeros(inputs, np.float32)
    for frame in range(frames):
        for channel in range(inputs):
            middle[channel] += clip[frame, channel]
    for channel in range(inputs):
        middle[channel] /= frames
    view = np.empty((frames, inputs), np.float32)
    hidden = np.empty((frames, size), np.float32)
    for stream in range(streams):
        taken = np.float32(1 if stream % members < centered else 0)
        for frame in range(frames):
            read = frame if stream < members else frames - 1 - frame
            for channel in range(inputs):
                view[frame, channel] = clip[read, channel] - taken * middle[channel]
        np.dot(view, embed[stream], hidden)
        for frame in range(frames):
            for channel in range(size):
                hidden[frame, channel] += embed_bias[stream, channel]
        for state in range(len(places)):
            if state > 0:
                active = hidden
                for layer in range(2 * state - 2, 2 * state):
                    shift = min(dilations[layer], frames)
                    product = np.dot(active, newest[layer, stream])
                    before = np.dot(active[: frames - shift], older[layer, stream])
                    activate(
                        product.reshape(1, -1),
                        before.reshape(1, -1),
                        biases[layer, stream].reshape(1, -1),
                    )
                    active = product
                gate(active.reshape(-1), hidden.reshape(-1))
            scale = places[state]
            if scale >= 0:
                pool(hidden.reshape(1, frames, size), runs, frames_of, mean, squares, changes)
                for channel in range(size):
                    pooled[scale, 0, stream, channel] = mean[0, channel]
                    pooled[scale, 1, stream, channel] = squares[0, channel]
                    pooled[scale, 2, stream, channel] = changes[0, channel]


__all__ = ["ClipReader"]
