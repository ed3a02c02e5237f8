# SPDX-License-Identifier: Apache-2.0
"""The network as ONNX operators, and the two models it makes: of waveforms, and of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .onnx_features import Analysis, checked_samples, log_bands
from .onnx_graph import Graph, Value, make_model


@dataclass(frozen=True)
class Network:
    """A trained network with all that is affine multiplied out.

    Attributes:
        directions: 1, or 2 where recordings are read backwards as well.
        members: Networks side by side; streams are those of all members and directions.
        centered: Members, the first ones, that do not see a recording's mean, and what all channels
            (streams · hidden,) of such members have in its place.
        embed: (streams · hidden, inputs) and (streams · hidden,), from a frame to the channels.
        layers: Weight (streams · hidden, hidden, taps), bias and dilation of each causal layer;
            two make a block.
        statistics: Pool mean, deviation and change; else the mean, summed over the directions.
        pool_input: Pool the first block's input too.
        multi_scale: Pool every block's output; else the last one's.
        readout: (scales · pooled, labels) and (labels,), from pooled vectors to logits.
        multi_label: Probabilities are sigmoids; else a softmax.
    """

    directions: int
    members: int
    centered: tuple[int, np.ndarray]
    embed: tuple[np.ndarray, np.ndarray]
    layers: list[tuple[np.ndarray, np.ndarray, int]]
    statistics: bool
    pool_input: bool
    multi_scale: bool
    readout: tuple[np.ndarray, np.ndarray]
    multi_label: bool = False


def waveform_model(analysis: Analysis, network: Network, metadata: dict[str, str]) -> Any:
    """Make the ONNX model that hears waveforms.

    Inputs are ``waveform`` (batch, samples) float32 and ``attention_mask`` (batch, samples) int64,
    1 at each clip's samples and 0 behind them, or (batch, 1) where all samples are the clip's.
    Outputs are ``probabilities`` and ``logits``, both (batch, labels), and ``frames`` (batch,), the
    frames each answer rests on. A row is NaN where the clip has no sample, a mask with holes, or a
    sample that is NaN or infinite, also behind its end.

    ``network.embed`` takes the bands' natural logarithms of power.
    """
    graph = Graph()
    graph.scope = "features"
    samples, lengths, sound = checked_samples(graph, analysis)
    bands, first, frames, finite = log_bands(graph, analysis, samples, lengths)
    weight, bias = network.embed
    channels = graph.op(
        "Add", graph.op("MatMul", graph.number(weight), bands), _column(graph, bias)
    )
    # The kept frames move to the front of their row, mirrored for the stream that reads backwards.
    longest = graph.op("ReduceMax", frames, keepdims=0)
    longest = graph.op("Reshape", longest, graph.integers(1))
    step = graph.count_to(longest)
    within = graph.op("Less", step, frames)
    zero = graph.integers(0)
    forward = graph.op("Where", within, graph.op("Add", first, step), zero)
    last = graph.op("Sub", graph.op("Add", first, frames), graph.integers(1))
    backward = graph.op("Where", within, graph.op("Sub", last, step), zero)
    hidden = _reorder(graph, channels, [forward, backward][: network.directions], len(bias))
    logits = _network(graph, network, hidden, within, frames)
    sound = graph.op("And", sound, finite)
    logits = graph.op("Where", sound, logits, graph.number(np.nan), output="logits")
    _probabilities(graph, logits, network)
    graph.op("Squeeze", frames, graph.integers(1), output="frames")
    labels = len(network.readout[1])
    return make_model(
        graph,
        metadata,
        [
            ("waveform", "FLOAT", ["batch", "samples"]),
            ("attention_mask", "INT64", ["batch", "samples_or_1"]),
        ],
        [*_scores(labels), ("frames", "INT64", ["batch"])],
    )


def features_model(network: Network, metadata: dict[str, str]) -> Any:
    """Make the ONNX model that takes the feature extractor's output.

    Inputs are ``input_values`` (batch, frames, inputs) float32 and ``attention_mask`` (batch,
    frames) int64, 1 at valid frames, wherever they are. Outputs are ``probabilities`` and
    ``logits``, both (batch, labels).
    """
    graph = Graph()
    graph.scope = "order"
    weight, bias = network.embed
    valid = graph.cast("attention_mask", "BOOL")
    where = graph.op("Unsqueeze", valid, graph.integers(2))
    values = graph.op("Where", where, "input_values", graph.number(0))  # padding may be NaN
    frames = graph.op("ReduceSum", graph.cast(valid, "INT64"), graph.integers(1))
    length = graph.size("input_values", 1)
    step = graph.count_to(length)
    # Sorted by this key, valid frames come first, and each kind keeps its order.
    key = graph.op("Where", valid, graph.op("Sub", length, step), graph.op("Neg", step))
    graph.op("TopK", key, length, axis=1, output="sorted")
    graph.nodes[-1].output.append("forward")
    within = graph.op("Less", step, frames)
    mirrored = graph.op("Sub", graph.op("Sub", frames, graph.integers(1)), step)
    mirrored = graph.op("Where", within, mirrored, step)
    backward = graph.op("GatherElements", "forward", mirrored, axis=1)
    graph.scope = "network"
    inputs = graph.op("Transpose", values, perm=[0, 2, 1])
    channels = graph.op("MatMul", graph.number(weight), inputs)
    channels = graph.op("Add", channels, _column(graph, bias))
    hidden = _reorder(graph, channels, ["forward", backward][: network.directions], len(bias))
    logits = _network(graph, network, hidden, within, frames)
    graph.op("Identity", logits, output="logits")
    _probabilities(graph, "logits", network)
    return make_model(
        graph,
        metadata,
        [
            ("input_values", "FLOAT", ["batch", "frames", weight.shape[1]]),
            ("attention_mask", "INT64", ["batch", "frames"]),
        ],
        _scores(len(network.readout[1])),
    )


def _network(graph: Graph, network: Network, hidden: str, within: str, frames: str) -> str:
    """Logits (batch, labels) of channels (batch, channels, frames), valid frames first.

    A causal layer looks to the left alone, so what stands behind the last valid frame need not be
    zero until it is pooled.
    """
    graph.scope = "pooling"
    weights = _weights_of_frames(graph, network, within, frames)

    def pool(hidden: str) -> str:
        # Each state by itself: it still lies in the processor's cache.
        graph.scope = "pooling"
        pooled = _pool(graph, graph.op("Squeeze", hidden, height), *weights)
        graph.scope = "network"
        return pooled

    if network.centered[0]:
        hidden = _centre(graph, network, hidden, weights[0])
    graph.scope = "network"
    # As pictures one point high: ONNX Runtime has a faster convolution for these than for series.
    height = graph.integers(2)
    hidden = graph.op("Unsqueeze", hidden, height)
    scales = [pool(hidden)] if network.pool_input else []
    for index in range(0, len(network.layers), 2):
        gate = hidden
        for weight, bias, dilation in network.layers[index : index + 2]:
            reach = (weight.shape[2] - 1) * dilation
            gate = graph.op(
                "Conv",
                gate,
                graph.number(weight[:, :, None]),
                graph.number(bias),
                group=network.directions * network.members,
                dilations=[1, dilation],
                pads=[0, reach, 0, 0],
            )
            gate = graph.op("Relu", gate)
        hidden = graph.op("Mul", hidden, graph.op("Sigmoid", gate))
        if network.multi_scale or index + 2 == len(network.layers):
            scales.append(pool(hidden))
    pooled = graph.op("Concat", *scales, axis=1) if len(scales) > 1 else scales[0]
    pooled = graph.op("Squeeze", pooled, graph.integers(2))
    matrix, offset = network.readout
    if not network.statistics:
        labels = len(offset)
        # The directions, which the matrix takes the sum of, stand one after the other.
        matrix = matrix.reshape(len(scales), 1, -1, labels)
        matrix = np.repeat(matrix, network.directions, axis=1).reshape(-1, labels)
    return graph.op("Gemm", pooled, graph.number(matrix), graph.number(offset))


def _centre(graph: Graph, network: Network, hidden: str, weights: str) -> str:
    """Take each clip's mean off the channels of some members, see `layers_timnet.centered`."""
    count, instead = network.centered
    streams = network.directions * network.members
    chosen = np.zeros((network.directions, network.members, instead.size // streams))
    chosen[:, :count] = 1
    mean = graph.op("Sub", graph.op("MatMul", hidden, weights), _column(graph, instead))
    return graph.op("Sub", hidden, graph.op("Mul", mean, _column(graph, chosen.flatten())))


def _weights_of_frames(graph: Graph, network: Network, within: str, frames: str) -> list[str]:
    """Weights that make a product the mean over valid frames and, for statistics, over pairs.

    They are zero at frames that are not valid: (batch, frames, 1) and (batch, frames - 1, 1).
    """
    column = graph.op("Unsqueeze", graph.cast(within, "FLOAT"), graph.integers(2))
    count = graph.op("Max", graph.cast(frames, "FLOAT"), graph.number(1))
    count = graph.op("Unsqueeze", count, graph.integers(2))
    weights = graph.op("Div", column, count)
    if not network.statistics:
        return [weights]
    end = graph.integers(np.iinfo(np.int64).max)
    column = graph.op("Slice", column, graph.integers(1), end, graph.integers(1))
    # A single frame makes no pair, and a product over none is 0.
    pairs = graph.op("Max", graph.op("Sub", count, graph.number(1)), graph.number(1))
    return [weights, graph.op("Div", column, pairs)]


def _pool(graph: Graph, hidden: str, weights: str, pairs: str | None = None) -> str:
    """Pool (batch, channels, frames) to (batch, kinds · channels, 1): the mean, or statistics."""
    mean = graph.op("MatMul", hidden, weights)
    if pairs is None:
        return mean
    centred = graph.op("Sub", hidden, mean)
    square = graph.op("MatMul", graph.op("Mul", centred, centred), weights)
    deviation = graph.op("Sqrt", graph.op("Add", square, graph.number(1e-6)))
    time, end = graph.integers(2), graph.integers(np.iinfo(np.int64).max)
    later = graph.op("Slice", hidden, graph.integers(1), end, time)
    earlier = graph.op("Slice", hidden, graph.integers(0), graph.integers(-1), time)
    change = graph.op("Abs", graph.op("Sub", later, earlier))
    return graph.op("Concat", mean, deviation, graph.op("MatMul", change, pairs), axis=1)


def _reorder(graph: Graph, channels: str, orders: list[str], size: int) -> str:
    """Take each stream's share of (batch, channels, frames) in its order (batch, frames)."""
    each = graph.integers(1, size // len(orders), 1)
    columns = [graph.op("Unsqueeze", order, graph.integers(1)) for order in orders]
    columns = [graph.op("Expand", column, each) for column in columns]
    places = graph.op("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]
    return graph.op("GatherElements", channels, places, axis=2)


def _probabilities(graph: Graph, logits: str, network: Network) -> None:
    if network.multi_label:
        graph.op("Sigmoid", logits, output="probabilities")
    else:
        graph.op("Softmax", logits, axis=-1, output="probabilities")


def _column(graph: Graph, bias: np.ndarray) -> str:
    return graph.number(bias[:, None])


def _scores(labels: int) -> list[Value]:
    return [(name, "FLOAT", ["batch", labels]) for name in ("probabilities", "logits")]


__all__ = ["Network", "features_model", "waveform_model"]
