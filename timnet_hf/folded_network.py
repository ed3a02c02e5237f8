# SPDX-License-Identifier: Apache-2.0
"""The network once more, for scoring alone: the same answers, in a form a CPU likes.

Nothing here learns, so whatever is affine is multiplied out beforehand: batch normalisation into
the convolution before it; the scales' normalisation, the fusion, the classifier and the temperature
into one matrix.

A batch lies time-major, one matrix a stream, whose rows are ::

    frame 0 of every clip, frame 1 of every clip, …          (streams, frames · clips, channels)

Then a tap of a causal convolution is one matrix product of all rows, and its dilation a shift by
whole rows: nothing is copied, padded or unfolded. Clips of a batch are about equally long. What
fills up the shorter ones is set to zero behind the first layer; a block multiplies its input,
so it stays zero. Where loops can be compiled, short clips go one by one instead, see
:mod:`timnet_hf.folded_clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .fused_timnet import FEW_THREADS, find_compiled
from .passes_timnet import VARIANCE_FLOOR

if TYPE_CHECKING:
    from .folded_clip import ClipReader
    from .modeling_timnet import TimNetForAudioClassification


#: Numbers of a state that a processor keeps beside it while it works on them: half a megabyte.
_CACHED = 150_000

#: Numbers in all scales of a batch that are pooled at once: those of about two clips.
_SMALL = 400_000

#: Multiplications of a product in a clip that is read in one compiled call: about eight seconds of
#: it with the default recipe. OpenBLAS starts threads above 2^19 of them, however many PyTorch may
#: have, unless the processor has AVX-512.
_ONE_CALL = 500_000

#: Rows that a bias is repeated for in compiled loops: a few kilobytes.
_BIAS_ROWS = 32

#: One matrix (streams, channels in, channels out) a tap, the newest frame's last, and the bias.
Taps: TypeAlias = tuple[list[torch.Tensor], torch.Tensor]


class FoldedTimNet:
    """A trained TIM-Net as a handful of matrices.

    Args:
        model: The network; its weights are copied, and it is left as it is.
        compiled: Use compiled loops, where numba is installed: faster from some hundred clips on,
            for they take a second to load, and a quarter of a minute the first time of all.

    Example:
        >>> import torch
        >>> from timnet_hf import TimNetConfig, TimNetForAudioClassification
        >>> model = TimNetForAudioClassification(TimNetConfig(num_labels=4)).eval()
        >>> FoldedTimNet(model)([torch.zeros(50, 39), torch.zeros(52, 39)]).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: TimNetForAudioClassification, compiled: bool = True):
        config, network = model.config, model.timnet
        self.members, self.directions = config.num_members, config.num_directions
        self.centered = config.num_centered_members
        self.statistics = config.pooling == "statistics"
        self.pool_input = config.pool_input
        self.multi_scale = config.multi_scale
        self.num_scales = config.num_scales
        with torch.no_grad():
            self.embed = _taps(network.embed, config.num_streams)
            layers: Any = [(block.layer1, block.layer2) for block in network.blocks]
            self.blocks: list[list[tuple[int, Taps]]] = [
                [
                    (one.conv.dilation[0], _taps(one.conv, config.num_streams, one.norm))
                    for one in pair
                ]
                for pair in layers
            ]
            self.readout, self.offset = _readout(model)
        two_taps = all(len(taps[0]) == 2 for two in self.blocks for _, taps in two)
        self._is_usual = self.statistics and two_taps
        self._parts: dict[int, list[_Streams]] = {}
        self._reader: ClipReader | None = None
        self.compiled = compiled and self.offset.device.type == "cpu"

    def __getstate__(self) -> dict[str, Any]:
        """Without parts and reader: pickled, each would bring all weights along."""
        return {**self.__dict__, "_parts": {}, "_reader": None}

    @torch.inference_mode()
    def __call__(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Score clips of similar length.

        Args:
            clips: Normalised features, (frames, input_size) each, at least one frame.

        Returns:
            Logits (clips, num_labels), as the network gives them for each clip alone.
        """
        few = torch.get_num_threads() <= FEW_THREADS
        kernels = find_compiled("kernels") if self.compiled else None
        alone = few or len(clips) == 1
        if kernels and clips and alone and all(map(self._suits_one_call, clips)):
            self._reader = self._reader or _clip_reader(self)
            statistics = self._reader(clips)
        else:
            statistics = self._read_batch(clips, kernels if few else None)
        return torch.addmm(self.offset, statistics, self.readout)

    def _suits_one_call(self, clip: torch.Tensor) -> bool:
        """Whether `ClipReader` takes the clip."""
        inputs, size = self.embed[0][0].shape[1:]
        whole = clip.ndim == 2 and clip.dtype == torch.float32 and clip.shape[1] == inputs
        small = 0 < len(clip) * size * max(inputs, 2 * size) <= _ONE_CALL
        return self._is_usual and whole and small

    def _read_batch(
        self, clips: Sequence[torch.Tensor], kernels: ModuleType | None
    ) -> torch.Tensor:
        """What `_statistics` makes of clips, put through so many streams at a time by `_read`."""
        # Like the weights, whatever kind and place of tensors the caller has made the default.
        plain: Any = {"dtype": self.offset.dtype, "device": self.offset.device}
        counts = torch.tensor([len(clip) for clip in clips], **plain)[:, None]
        kinds, streams = 3 if self.statistics else 1, self.directions * self.members
        count, size = len(clips), self.embed[1].shape[-1]
        pooled = torch.empty(self.num_scales, kinds, streams, count, size, **plain)
        lengths = [len(clip) for clip in clips]
        shortest, longest = min(lengths), max(lengths)
        mask = None
        if shortest < longest:
            step = torch.arange(shortest, longest, device=counts.device, dtype=counts.dtype)
            mask = (step[:, None] < counts[:, 0]).to(counts)[:, :, None]  # (frames, clips, 1)
        batch = _Batch(self._rows(clips, counts), counts, shortest, mask)
        # Streams meet in the readout only. As many at a time as stay in the processor's cache.
        part = max(1, min(streams, _CACHED // (longest * count * size)))
        # One clip or two: all scales are pooled at once, for the time goes into calls.
        small = pooled[0, 0].numel() * longest * self.num_scales <= _SMALL
        together = self.multi_scale and small
        if kernels and not small:
            runs = kernels.runs_of(np.arange(longest)[:, None] < np.array(lengths), size)
            batch = batch._replace(kernels=kernels, runs=runs)
        kept = self.num_scales if together else 1
        states = counts.new_empty(kept, part, longest, count, size)
        spare = torch.empty_like(states)
        for some in self._in_parts(part):
            width = some.own.stop - some.own.start
            self._read(some, batch, states[:, :width], spare[:, :width], pooled[:, :, some.own])
        return self._statistics(pooled, counts)

    def _rows(self, clips: Sequence[torch.Tensor], counts: torch.Tensor) -> list[torch.Tensor]:
        """What the streams read, (frames · clips, input_size) each, two a direction.

        The first without the clips' means, for members that do not see them, the second with them.
        The first layer is linear: its output has no mean where its input has none, as in
        `layers_timnet.centered`.
        """
        rows = []
        for direction in range(self.directions):
            views = pad_sequence([clip.flip(0) for clip in clips] if direction else list(clips))
            without = views
            if self.centered:
                if not direction:
                    mean = views.sum(0).div_(counts)
                without = views - mean
            rows += [without.flatten(0, 1), views.flatten(0, 1)]
        return rows

    def _in_parts(self, size: int) -> list[_Streams]:
        """The streams, so many at a time; kept, for cutting takes longer than a small product."""
        if size not in self._parts:
            streams = self.directions * self.members
            self._parts[size] = [
                self._cut(slice(first, min(first + size, streams)))
                for first in range(0, streams, size)
            ]
        return self._parts[size]

    def _cut(self, own: slice) -> _Streams:
        readers = []
        for start in range(0, self.directions * self.members, self.members):
            middle = start + self.centered
            readers += [_overlap(own, start, middle), _overlap(own, middle, start + self.members)]
        blocks = [
            [_layer(dilation, _some(taps, own)) for dilation, taps in two] for two in self.blocks
        ]
        return _Streams(own, _some(self.embed, own), blocks, readers)

    def _read(
        self,
        streams: _Streams,
        batch: _Batch,
        states: torch.Tensor,
        spare: torch.Tensor,
        pooled: torch.Tensor,
    ) -> None:
        """Put a batch through some of the streams, and what they say of it into ``pooled``.

        ``states`` is the room to work in, (scales or one, streams, frames, clips, channels): for
        every scale where all are pooled at once, else for the newest.
        """
        together = len(states) > 1
        place = iter(pooled.split(1))
        hidden = self._enter(streams, batch, states[0])
        if self.pool_input and not together:
            self._pool(states, spare, batch, next(place))
        # A first input that is not pooled gives its place to the first output.
        ahead = 0 if self.pool_input else 1
        for index, layers in enumerate(streams.blocks, start=1):
            active = hidden
            for layer in layers:
                active = _convolve(active, batch, layer)
            state = states[index - ahead if together else 0].flatten(1, 2)
            hidden = _gate(active, hidden, batch, state)
            if not together and (self.multi_scale or index == len(streams.blocks)):
                self._pool(states, spare, batch, next(place))
        if together:
            self._pool(states, spare, batch, pooled)

    def _enter(self, streams: _Streams, batch: _Batch, state: torch.Tensor) -> torch.Tensor:
        """Put a batch through the first layer: (streams, rows, channels)."""
        (taps,), bias = streams.embed
        hidden = state.flatten(1, 2)
        for rows, own in zip(batch.rows, streams.readers, strict=True):
            if count := own.stop - own.start:
                torch.bmm(rows.expand(count, -1, -1), taps[own], out=hidden[own])
        hidden.add_(bias)
        if batch.mask is not None:
            state[:, batch.shortest :].mul_(batch.mask)
        return hidden

    def _pool(
        self,
        states: torch.Tensor,
        spare: torch.Tensor,
        batch: _Batch,
        pooled: torch.Tensor,
    ) -> None:
        """Sum (scales, streams, frames, clips, channels) over the frames into ``pooled``.

        That is (scales, kinds, streams, clips, channels): the mean, and the sums that `_statistics`
        makes the others of. ``spare`` is written over.
        """
        counts, shortest, mask = batch.counts, batch.shortest, batch.mask
        if self.statistics and batch.kernels:
            frames_of = counts.expand(-1, states.shape[-1]).flatten().numpy()
            for values, sums in zip(states, pooled, strict=True):
                batch.kernels.pool(_lanes(values), batch.runs, frames_of, *_lanes(sums))
            return
        mean = torch.sum(states, 2, out=pooled[:, 0]).div_(counts)
        if not self.statistics:
            return
        centred = torch.sub(states, mean[:, :, None], out=spare)
        if mask is not None:
            centred[:, :, shortest:].mul_(mask)
        torch.sum(centred.square_(), 2, out=pooled[:, 1])
        change = torch.sub(states[:, :, 1:], states[:, :, :-1], out=spare[:, :, 1:])
        if mask is not None:  # a change has the mask of its later frame
            change[:, :, shortest - 1 :].mul_(mask)
        torch.sum(change.abs_(), 2, out=pooled[:, 2])

    def _statistics(self, pooled: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """What `_pool` has summed up, as (clips, scales · pooled_size). See TimNetPooling."""
        if self.statistics:
            pooled[:, 1].div_(counts).add_(VARIANCE_FLOOR).sqrt_()
            pooled[:, 2].div_((counts - 1).clamp_(min=1))
        else:
            pooled = pooled.unflatten(2, (self.directions, -1)).sum(2)
        return pooled.permute(3, 0, 1, 2, 4).flatten(1)


class _Batch(NamedTuple):
    """Clips, padded to the longest.

    Attributes:
        rows: See `FoldedTimNet._rows`.
        counts: (clips, 1), each clip's frames.
        shortest: Frames that all clips have.
        mask: (further frames, clips, 1), 1 valid, 0 padding; None where there are none.
        kernels: Compiled loops, where they pay: for more than a clip or two.
        runs: What they take in the mask's place, see `kernels.runs_of`.
    """

    rows: list[torch.Tensor]
    counts: torch.Tensor
    shortest: int
    mask: torch.Tensor | None
    kernels: ModuleType | None = None
    runs: np.ndarray | None = None


class _Layer(NamedTuple):
    """A convolution with its bias.

    Attributes:
        dilation: In frames.
        taps: Its matrices and bias.
        biases: (streams, some rows · channels), the bias of each row, for compiled loops.
    """

    dilation: int
    taps: Taps
    biases: np.ndarray


class _Streams(NamedTuple):
    """Some of the streams.

    Attributes:
        own: Which.
        embed: Their first layer.
        blocks: Their layers.
        readers: Which of them read each of `_Batch.rows`.
    """

    own: slice
    embed: Taps
    blocks: list[list[_Layer]]
    readers: list[slice]


def _some(taps: Taps, own: slice) -> Taps:
    return [matrix[own] for matrix in taps[0]], taps[1][own]


def _overlap(own: slice, start: int, stop: int) -> slice:
    """The streams from start to stop that are in a part, counted from its first."""
    first, last = max(own.start, start), min(own.stop, stop)
    return slice(first - own.start, max(first, last) - own.start)


def _taps(conv: nn.Conv1d, streams: int, norm: nn.BatchNorm1d | None = None) -> Taps:
    """A grouped convolution, and the normalisation behind it, as one matrix a stream and tap."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    if norm is not None:
        scale, shift = _affine(norm)
        weight, bias = weight * scale[:, None, None], bias * scale + shift
    matrices = weight.unflatten(0, (streams, -1)).permute(3, 0, 2, 1)
    return [matrix.float().contiguous() for matrix in matrices], bias.view(streams, 1, -1).float()


def _affine(norm: nn.BatchNorm1d) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a batch normalisation that no longer learns."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("A batch normalisation without running statistics cannot be folded.")
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _readout(model: TimNetForAudioClassification) -> tuple[torch.Tensor, torch.Tensor]:
    """All that comes after pooling, as a matrix (scales · pooled_size, labels) and an offset."""
    config = model.config
    fusion = model.timnet.fusion
    if fusion.learned:
        weights = fusion.weight.double()
    else:
        weights = torch.full((config.num_scales,), 1 / config.num_scales, dtype=torch.float64)
    classifier = model.classifier.weight.double()  # (labels, pooled_size)
    matrix = torch.einsum("s,lp->spl", weights, classifier).flatten(0, 1)
    offset = model.classifier.bias.double()
    if config.normalize_scales:
        scale, shift = _affine(model.timnet.scale_norm)
        offset = offset + shift @ matrix
        matrix = scale[:, None] * matrix
    if config.apply_temperature:
        matrix, offset = matrix / config.temperature, offset / config.temperature
    return matrix.float(), offset.float()


def _layer(dilation: int, taps: Taps) -> _Layer:
    return _Layer(dilation, taps, taps[1].repeat(1, _BIAS_ROWS, 1).flatten(1).cpu().numpy())


def _convolve(rows: torch.Tensor, batch: _Batch, layer: _Layer) -> torch.Tensor:
    """Causal convolution and ReLU of (streams, rows, channels), a row a clip and frame."""
    # Plain products, added up: one that adds as it multiplies takes twice as long at this width.
    (*older, newest), bias = layer.taps
    result = torch.bmm(rows, newest)
    shifts = [age * layer.dilation * len(batch.counts) for age in range(len(older), 0, -1)]
    products = [
        torch.bmm(rows[:, :-shift], matrix)
        for shift, matrix in zip(shifts, older, strict=True)
        if shift < rows.shape[1]
    ]
    if batch.kernels and len(products) == 1:
        batch.kernels.activate(_lanes(result), _lanes(products[0]), layer.biases)
        return result
    for product in products:
        result[:, -product.shape[1] :].add_(product)
    return result.add_(bias).relu_()


def _gate(
    active: torch.Tensor, hidden: torch.Tensor, batch: _Batch, output: torch.Tensor
) -> torch.Tensor:
    """Write hidden · sigmoid(active) into ``output``; ``active`` is written over."""
    if batch.kernels:  # these batches pool scale by scale, so the output takes hidden's place
        batch.kernels.gate(active.view(-1).numpy(), hidden.view(-1).numpy())
        return hidden
    return torch.mul(active.sigmoid_(), hidden, out=output)


def _clip_reader(network: FoldedTimNet) -> ClipReader:
    from .folded_clip import ClipReader

    return ClipReader(network)


def _lanes(values: torch.Tensor) -> Any:
    """(…, rows, channels) as an array (…, rows · channels), without a copy."""
    return values.view(*values.shape[:-2], -1).numpy()


__all__ = ["FoldedTimNet"]
