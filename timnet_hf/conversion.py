# SPDX-License-Identifier: Apache-2.0
"""A TIM-Net that was trained with Keras → our model and feature extractor, with h5py alone.

Keras numbers layers of a kind in the order they were made, and a TIM-Net is made block by block,
the forward stream's two layers first: ::

    conv1d               embedding of the forward stream      (1, input, C)
    conv1d_1             embedding of the backward stream     (1, input, C)
    conv1d_2  conv1d_3   block 1, forward stream              (k, C, C)
    conv1d_4  conv1d_5   block 1, backward stream             (k, C, C)
    conv1d_6  …          block 2
    batch_normalization… one behind each convolution of a block, numbered likewise from 0
    weight_layer         fusion weights                       (blocks, 1)
    dense                classifier                           (C, classes)

Only the order of the numbers counts: they start above 0 where a Keras session made several models.

A weights file may come from anyone. So nothing in it is executed, no link out of a group is
followed, no attribute is read, sizes are bounded before memory is taken, and whatever is not
exactly a TIM-Net is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification

#: The network published for IEMOCAP is the only one with this many blocks a direction.
IEMOCAP_BLOCKS = 10

#: Far above any TIM-Net (the largest published one has 0.13 M values in 175 arrays).
MAX_VALUES = 50_000_000
#: Groups and arrays; Keras writes an empty group for every layer without weights.
MAX_OBJECTS = 20_000
MAX_DEPTH = 6

#: Kind of layer, as Keras names it → its weights and the number of their dimensions.
_KINDS = {
    "conv1d": {"kernel": 3, "bias": 1},
    "batch_normalization": {"gamma": 1, "beta": 1, "moving_mean": 1, "moving_variance": 1},
    "weight_layer": {"kernel": 2},
    "dense": {"kernel": 2, "bias": 1},
}
_LAYER_NAME = re.compile(r"(.*?)(?:_(\d{1,9}))?", re.DOTALL)
_SAFE_FILTERS = {1, 2, 3}  # HDF5's own deflate, shuffle and Fletcher-32; others load plug-ins

_HINT = (
    "pass the .hdf5 or .h5 file that Keras' save_weights (or save, in HDF5 format) wrote for a "
    "two-stream TIM-Net"
)

Layer = dict[str, np.ndarray]


class ConversionError(ValueError):
    """A file is no Keras TIM-Net; the message names it, what is wrong and what to do."""


def convert_keras_checkpoint(
    weights: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    num_samples: int | None = None,
) -> tuple[TimNetForAudioClassification, TimNetFeatureExtractor]:
    """Read a Keras TIM-Net checkpoint.

    Input size, width, kernel size, number of blocks and number of classes follow from the arrays.
    What the file does not hold is taken from the paper: dilations 2^(j-1), batch-norm ε 0.001,
    dropout 0.1.

    Args:
        weights: The HDF5 file.
        labels: Name of each class, in the order the network was trained with (the paper's code:
            alphabetical).
        num_samples: Samples at 22,050 Hz that the network's training clips were padded or cropped
            to. The file does not hold it: by default IEMOCAP's 310,000 for a network of ten blocks,
            which only that corpus has in the paper, and EMO-DB's 96,000 for any other.

    Returns:
        The model in evaluation mode, float32, and the paper's feature extractor (with as many
        coefficients as the network reads).

    Raises:
        ConversionError: The file is missing, unreadable or not a two-stream TIM-Net, or the labels
            do not fit it.
    """
    path = Path(weights)
    layers = _read_layers(path)
    network = _check_network(path, layers)
    names = _check_labels(path, labels, network.num_labels)

    from .configuration_timnet import TimNetConfig
    from .feature_extraction_timnet import PAPER_NUM_SAMPLES, TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification

    if num_samples is None:
        corpus = "iemocap" if network.num_blocks == IEMOCAP_BLOCKS else "emodb"
        num_samples = PAPER_NUM_SAMPLES[corpus]
    try:
        config = TimNetConfig(
            input_size=network.input_size,
            hidden_size=network.hidden_size,
            num_hidden_layers=network.num_blocks,
            kernel_size=network.kernel_size,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        extractor = TimNetFeatureExtractor.from_preset(
            "paper", feature_size=network.input_size, num_samples=num_samples
        )
    except ValueError as error:
        raise _refuse(path, f"no TIM-Net can have its shape: {error}", _HINT) from error
    model = TimNetForAudioClassification(config)
    model.load_state_dict(_state_dict(network))
    return model.eval(), extractor


def _refuse(path: Path, problem: str, remedy: str) -> ConversionError:
    return ConversionError(f"{path}: {problem}; {remedy}.")


# --- the file -----------------------------------------------------------------------------------


def _read_layers(path: Path) -> dict[str, Layer]:
    """Every array of the file: layer name → weight name → values, float32."""
    import h5py

    if not path.exists():
        raise _refuse(path, "there is no such file", "check the path")
    if not path.is_file():
        raise _refuse(path, "it is not a regular file", _HINT)
    try:
        if not h5py.is_hdf5(path):
            raise _refuse(path, "it is not an HDF5 file", _HINT)
        with h5py.File(path, "r") as file:
            # `save` puts the weights beside the optimizer's; `save_weights` writes nothing else.
            root = file
            if isinstance(file.get("model_weights", getlink=True), h5py.HardLink):
                root = file["model_weights"]
            if not isinstance(root, h5py.Group):
                raise _refuse(path, "its 'model_weights' is not a group", _HINT)
            return _collect(path, root)
    except ConversionError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        # h5py has no error of its own for a damaged file: it raises any of these.
        problem = f"it cannot be read as HDF5 ({_one_line(error)})"
        raise _refuse(path, problem, "copy or download it again, it may be damaged") from error


def _collect(path: Path, root: Any) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    values = 0
    for parts, dataset in _datasets(path, root):
        where = "/".join(parts)
        if len(parts) < 2:
            raise _refuse(path, f"the array {where!r} belongs to no layer", _HINT)
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8 or dataset.shape is None:
            raise _refuse(path, f"{where!r} does not hold floating-point numbers", _HINT)
        values += dataset.size
        if values > MAX_VALUES:
            raise _refuse(path, f"it claims more than {MAX_VALUES:,} weights", _HINT)
        if dataset.external or dataset.is_virtual:
            raise _refuse(path, f"the values of {where!r} lie in another file", _HINT)
        pipeline = dataset.id.get_create_plist()
        filters = {pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())}
        if not filters <= _SAFE_FILTERS:
            raise _refuse(path, f"{where!r} needs an HDF5 plug-in", "repack it with h5repack")
        layer = layers.setdefault(parts[0], {})
        weight = parts[-1].removesuffix(":0")
        if weight in layer:
            raise _refuse(path, f"the layer {parts[0]!r} has {weight!r} twice", _HINT)
        with np.errstate(over="ignore"):  # a float64 beyond float32 is caught as infinite
            layer[weight] = dataset[()].astype(np.float32)
        if not np.isfinite(layer[weight]).all():
            remedy = "the training diverged: convert an earlier checkpoint"
            raise _refuse(path, f"{where!r} has NaN or infinite weights", remedy)
    return layers


def _datasets(path: Path, root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every array below a group with its path in it; hard links only, in bounded number."""
    import h5py

    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen = 0
    while pending:
        parts, group = pending.pop()
        if len(parts) > MAX_DEPTH:
            raise _refuse(path, f"its groups are nested more than {MAX_DEPTH} deep", _HINT)
        for name in group:
            seen += 1
            if seen > MAX_OBJECTS:
                raise _refuse(path, f"it holds more than {MAX_OBJECTS} objects", _HINT)
            below = (*parts, name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _refuse(path, f"{'/'.join(below)!r} is a link, not data", _HINT)
            item = group[name]
            if isinstance(item, h5py.Group):
                pending.append((below, item))
            elif isinstance(item, h5py.Dataset):
                yield below, item
            else:
                raise _refuse(path, f"{'/'.join(below)!r} is neither group nor array", _HINT)


# --- the network --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """The layers in their places; `convs` and `norms` are (block, layer, stream)."""

    embeds: list[Layer]
    convs: list[list[list[Layer]]]
    norms: list[list[list[Layer]]]
    fusion: np.ndarray
    classifier: Layer

    @property
    def input_size(self) -> int:
        return int(self.embeds[0]["kernel"].shape[1])

    @property
    def hidden_size(self) -> int:
        return int(self.embeds[0]["kernel"].shape[2])

    @property
    def num_blocks(self) -> int:
        return len(self.convs)

    @property
    def kernel_size(self) -> int:
        return int(self.convs[0][0][0]["kernel"].shape[0])

    @property
    def num_labels(self) -> int:
        return int(self.classifier["kernel"].shape[1])


def _check_network(path: Path, layers: dict[str, Layer]) -> _Network:
    """Put every layer in its place, and refuse the file unless all fit and none is left over."""
    kinds = _by_kind(path, layers)
    convs, norms = kinds["conv1d"], kinds["batch_normalization"]
    blocks = (len(convs) - 2) // 4
    if blocks < 1 or len(convs) != 2 + 4 * blocks:
        problem = f"it has {len(convs)} convolutions, where n blocks make 2 + 4n (10 for two)"
        raise _refuse(path, problem, _HINT)
    for kind, count in (("batch_normalization", 4 * blocks), ("weight_layer", 1), ("dense", 1)):
        if len(kinds[kind]) != count:
            problem = (
                f"it has {len(kinds[kind])} layers named {kind!r}, "
                f"where a TIM-Net with {blocks} blocks has {count}"
            )
            raise _refuse(path, problem, _HINT)

    inputs, width = convs[0][1]["kernel"].shape[1:]
    taps = convs[2][1]["kernel"].shape[0]
    for index, (name, layer) in enumerate(convs):
        shape = (1, inputs, width) if index < 2 else (taps, width, width)
        _check_shapes(path, name, layer, kernel=shape, bias=(width,))
    for name, layer in norms:
        _check_shapes(path, name, layer, **dict.fromkeys(layer, (width,)))
        if (layer["moving_variance"] < 0).any():
            raise _refuse(path, f"the layer {name!r} has a negative variance", _HINT)
    name, fusion = kinds["weight_layer"][0]
    _check_shapes(path, name, fusion, kernel=(blocks, 1))
    name, dense = kinds["dense"][0]
    classes = dense["kernel"].shape[1]
    _check_shapes(path, name, dense, kernel=(width, classes), bias=(classes,))
    if 0 in (inputs, width, taps, classes):
        raise _refuse(path, "it has an array of length zero", _HINT)
    return _Network(
        embeds=[layer for _, layer in convs[:2]],
        convs=_in_blocks([layer for _, layer in convs[2:]]),
        norms=_in_blocks([layer for _, layer in norms]),
        fusion=fusion["kernel"],
        classifier=dense,
    )


def _by_kind(path: Path, layers: dict[str, Layer]) -> dict[str, list[tuple[str, Layer]]]:
    """Sort the layers by kind, then by the number in their name."""
    numbered: dict[str, list[tuple[int, str]]] = {kind: [] for kind in _KINDS}
    for name, layer in layers.items():
        match = _LAYER_NAME.fullmatch(name)
        kind, number = match.groups() if match else (name, None)
        if kind not in _KINDS:
            raise _refuse(path, f"the layer {name!r} is none of a TIM-Net's", _HINT)
        if {weight: values.ndim for weight, values in layer.items()} != _KINDS[kind]:
            has = ", ".join(f"{weight} {values.shape}" for weight, values in layer.items())
            problem = f"the layer {name!r} should have {', '.join(_KINDS[kind])}, but has {has}"
            raise _refuse(path, problem, _HINT)
        numbered[kind].append((int(number or 0), name))
    return {
        kind: [(name, layers[name]) for _, name in sorted(found)]
        for kind, found in numbered.items()
    }


def _in_blocks(layers: list[Layer]) -> list[list[list[Layer]]]:
    """The order of making (block, stream, layer) → (block, layer, stream)."""
    fours = [layers[start : start + 4] for start in range(0, len(layers), 4)]
    return [[[four[0], four[2]], [four[1], four[3]]] for four in fours]


def _check_shapes(path: Path, name: str, layer: Layer, **shapes: tuple[int, ...]) -> None:
    for weight, shape in shapes.items():
        if layer[weight].shape != shape:
            problem = f"{weight} of {name!r} has shape {layer[weight].shape}, not {shape}"
            raise _refuse(path, problem, _HINT)


def _check_labels(path: Path, labels: Sequence[str], count: int) -> list[str]:
    remedy = f"give {count} different names, in the order the network was trained with"
    if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
        raise _refuse(path, "the labels are not a list of names", remedy)
    names = [name.strip() for name in labels]
    if len(names) != count:
        raise _refuse(path, f"it tells {count} classes apart, but {len(names)} labels came", remedy)
    if len(set(names)) != count or "" in names:
        raise _refuse(path, f"the labels {', '.join(names)} repeat or are empty", remedy)
    return names


# --- the weights --------------------------------------------------------------------------------


def _state_dict(network: _Network) -> dict[str, torch.Tensor]:
    """Our names and layouts: the two streams are the two groups of one convolution."""
    arrays: dict[str, np.ndarray] = {}

    def put_conv(name: str, streams: list[Layer]) -> None:
        # Keras (taps, in, out) → PyTorch (out, in, taps)
        arrays[f"{name}.weight"] = np.concatenate([s["kernel"].transpose(2, 1, 0) for s in streams])
        arrays[f"{name}.bias"] = np.concatenate([s["bias"] for s in streams])

    put_conv("timnet.embed", network.embeds)
    ours = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    for block, (convs, norms) in enumerate(zip(network.convs, network.norms, strict=True)):
        for index in (0, 1):
            prefix = f"timnet.blocks.{block}.layer{index + 1}"
            put_conv(f"{prefix}.conv", convs[index])
            for name, keras in ours.items():
                values = [stream[keras] for stream in norms[index]]
                arrays[f"{prefix}.norm.{name}"] = np.concatenate(values)
            arrays[f"{prefix}.norm.num_batches_tracked"] = np.zeros((), np.int64)
    if network.num_blocks > 1:
        arrays["timnet.fusion.weight"] = network.fusion[:, 0]
    arrays["classifier.weight"] = network.classifier["kernel"].T
    arrays["classifier.bias"] = network.classifier["bias"]

    import torch

    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


__all__ = ["ConversionError", "convert_keras_checkpoint"]
