# SPDX-License-Identifier: Apache-2.0
"""Gives the benchmark's Keras network our weights, and prints how far their answers differ."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

# First: triton, which this loads, crashes behind TensorFlow.
from timnet_hf import TimNetConfig, TimNetForAudioClassification  # noqa: E402


def main() -> None:
    """Print the parameters of the paper's network, and how two twins differ."""
    torch.manual_seed(0)
    ours = TimNetForAudioClassification(TimNetConfig(num_labels=7, num_hidden_layers=3)).eval()
    with torch.no_grad():
        for values in [*ours.parameters(), *ours.buffers()]:
            if values.is_floating_point():
                values.add_(0.2 * torch.rand_like(values))
    from keras_timnet import build_keras_timnet

    theirs = build_keras_timnet(7, num_blocks=3)
    copy_weights(ours, theirs)
    features = np.random.default_rng(0).standard_normal((2, 30, 39)).astype(np.float32)
    with torch.no_grad():
        wanted = ours(torch.from_numpy(features)).logits.numpy()
    found = {
        "difference": float(np.abs(theirs(features).numpy() - wanted).max()),
        "spread": float(wanted.std()),
        "parameters": sum(
            int(np.prod(values.shape)) for values in build_keras_timnet(7).trainable_variables
        ),
    }
    print(json.dumps(found))


def copy_weights(ours: torch.nn.Module, theirs: Any) -> None:
    """Our parameters into Keras' layers: in the order they were made, a block's streams in turn."""

    def kind(name: str) -> list[Any]:
        return [layer for layer in theirs.layers if type(layer).__name__ == name]

    network, size = ours.timnet, ours.config.hidden_size
    convolutions, norms = (
        iter(_by_number(kind("Conv1D"))),
        iter(_by_number(kind("BatchNormalization"))),
    )

    def convolve(module: torch.nn.Conv1d, stream: int) -> None:
        part = slice(stream * size, (stream + 1) * size)
        kernel = module.weight[part].detach().permute(2, 1, 0).numpy()
        next(convolutions).set_weights([kernel, module.bias[part].detach().numpy()])

    for stream in (0, 1):
        convolve(network.embed, stream)
    for block in network.blocks:
        for stream in (0, 1):
            for layer in (block.layer1, block.layer2):
                convolve(layer.conv, stream)
                part = slice(stream * size, (stream + 1) * size)
                norm = layer.norm
                values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                next(norms).set_weights([value[part].detach().numpy() for value in values])
    kind("WeightedScales")[0].set_weights([network.fusion.weight.detach().numpy()[:, None]])
    classifier = ours.classifier
    kind("Dense")[0].set_weights(
        [classifier.weight.detach().numpy().T, classifier.bias.detach().numpy()]
    )


def _by_number(layers: list[Any]) -> list[Any]:
    """Keras numbers the layers of a kind in the order in which they were made."""
    numbers = [layer.name.rpartition("_")[2] for layer in layers]
    return [
        layer
        for _, layer in sorted(
            zip(numbers, layers, strict=True),
            key=lambda pair: int(pair[0]) if pair[0].isdecimal() else 0,
        )
    ]


if __name__ == "__main__":
    main()
