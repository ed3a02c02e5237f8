# SPDX-License-Identifier: Apache-2.0
"""A block and a pooling in training, with their gradients written out.

The same numbers as the plain forms, up to rounding, from fewer passes over the frames: what a pass
makes that is not needed later goes where something else has just been, and what can be computed
again is not kept. The passes are those of :mod:`timnet_hf.passes_timnet`, or compiled ones.

All work on (streams, frames, batch, size) and a mask (frames, batch, 1), as the layers do. See
:mod:`timnet_hf.layers_timnet` for the plain forms.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (the library's own convention)
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .passes_timnet import PLAIN, Passes

if TYPE_CHECKING:
    from .layers_timnet import TimNetCausalLayer


#: As many may PyTorch have for compiled loops, which run on one, to be used in its place.
FEW_THREADS = 2


def is_plain(hidden: torch.Tensor) -> bool:
    """Whether hand-written gradients apply: not where a compiler rewrites the operations."""
    return hidden.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def passes_for(hidden: torch.Tensor) -> Passes:
    """The compiled passes where they are faster and there: with numba installed, on few threads.

    PyTorch shares its own operations out among its threads; with two of them the compiled passes,
    on one, are still faster or as fast. What watches PyTorch's operations must see them.
    """
    here = type(hidden) is torch.Tensor and hidden.device.type == "cpu"
    watched = torch.jit.is_tracing() or is_in_torch_dispatch_mode()  # type: ignore[attr-defined]
    suits = here and hidden.dtype == torch.float32 and torch.get_num_threads() <= FEW_THREADS
    found = find_compiled("compiled_passes") if suits and not watched else None
    return PLAIN if found is None else found.COMPILED


@functools.cache
def find_compiled(name: str) -> Any | None:
    """A module of the package that needs numba, or None without it, or outside the package."""
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        text = f"numba is installed but does not work, so all goes without: {error}"
        warnings.warn(text, stacklevel=2)
        return None


def fused_block(
    layers: tuple[TimNetCausalLayer, TimNetCausalLayer],
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """A temporal-aware block in training; the layers' running statistics are updated.

    Args:
        layers: The block's two; their convolutions have two taps and one dilation.
        hidden: (streams, frames, batch, size or more): channels beyond size are, and stay, zero.
        mask: (frames, batch, 1), or None.

    Returns:
        The block's output, shaped like ``hidden``.
    """
    streams = len(hidden)
    size = layers[0].conv.out_channels // streams
    spare = hidden.shape[-1] - size
    given = []
    for layer in layers:
        assert layer.conv.bias is not None
        # The convolution's bias cancels in the normalisation; its gradient is zero, not absent.
        beta = layer.norm.bias + 0 * layer.conv.bias
        given += [
            F.pad(layer.conv.matrices(), (0, spare, 0, spare)),
            F.pad(layer.norm.weight.view(streams, 1, size), (0, spare)),
            F.pad(beta.view(streams, 1, size), (0, spare)),
            F.pad(layer.draw_dropout(hidden), (0, spare)),
        ]
    conv, eps = layers[0].conv, layers[0].norm.eps
    output, *statistics = _FusedBlock.apply(hidden, mask, conv.dilation[0], eps, *given)
    for layer, *pair in zip(layers, statistics[::2], statistics[1::2], strict=True):
        mean, variance = (moment[..., :size].flatten() for moment in pair)
        layer.norm.update(mean + layer.conv.bias, variance, hidden, mask)
    return output


class _FusedBlock(torch.autograd.Function):
    """Two causal layers and the gate that they make.

    With x a layer's input, x' the input d frames earlier, k the dropout's factors and n the number
    of valid frames, a layer is ::

        y = x' W₀ + x W₁     ŷ = (y - mean) / deviation     h = k · relu(γ ŷ + β)
        ∂y = γ / deviation · (∂z - Σ∂z / n - ŷ Σ(∂z ŷ) / n)     with ∂z = k · ∂h where h > 0

    and the block, with h of the second layer ::

        s = sigmoid(h)     output = x s     ∂h = s (1 - s) · x · ∂output     ∂x = s ∂output + …
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        dilation: int,
        eps: float,
        *layers: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the output, and each layer's mean and variance before its bias.

        ``layers`` are weight (2, streams, size, size), γ and β (streams, 1, size) and k (streams,
        1, batch, size) of the first, then those of the second.
        """
        precision, device = hidden.dtype, hidden.device.type
        # As the library does, which leaves float64 alone.
        if precision == torch.float32 and torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        ctx.reach, ctx.eps = dilation * hidden.shape[2], eps
        passes = passes_for(hidden)
        state, kept, statistics = hidden, [], []
        for weight, gamma, beta, factors in (layers[:4], layers[4:]):
            rows, weight = state.flatten(1, 2).to(precision), weight.to(precision)
            with torch.autocast(device, enabled=False):
                product = torch.bmm(rows, weight[1])
                if ctx.reach < rows.shape[1]:
                    product[:, ctx.reach :].baddbmm_(rows[:, : -ctx.reach], weight[0])
            values = product.to(hidden.dtype).view_as(hidden)
            state, mean, variance = passes.normalize(values, mask, gamma, beta, factors, eps)
            kept += [rows, weight, gamma, values, mean, variance, factors]
            statistics += [mean, variance]
        gate, output = passes.gate(state, hidden)
        ctx.save_for_backward(hidden, mask, gate, *kept)
        ctx.mark_non_differentiable(*statistics)
        return output, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``hidden``, and of each layer's weight, γ and β."""
        hidden, mask, gate, *kept = ctx.saved_tensors
        count = gate[0, ..., 0].numel() if mask is None else mask.sum().clamp(min=1)
        passes = passes_for(hidden)

        def layer(
            kept: list[torch.Tensor], sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, ...]:
            """Gradients of a layer's input, weight, γ and β."""
            rows, weight, gamma, values, mean, variance, factors = kept
            active, d_beta, with_values = sums
            deviation = torch.sqrt(variance + ctx.eps)
            d_gamma = (with_values - mean * d_beta) / deviation
            scale = gamma / deviation
            slope = -scale / deviation * d_gamma / count
            constant = -scale * d_beta / count - slope * mean
            errors = passes.norm_gradient(active, values, mask, factors, scale, slope, constant)
            d_rows, d_weight = _product_gradients(
                errors.flatten(1, 2).to(rows.dtype), rows, weight, ctx.reach
            )
            d_input = d_rows.to(hidden.dtype).view_as(hidden)
            return d_input, d_weight.to(hidden.dtype), d_gamma, d_beta

        # Whoever asks for gradients under autocast gets them in the types of the way there.
        with torch.autocast(hidden.device.type, enabled=False):
            first, second = kept[:7], kept[7:]
            sums = passes.gate_gradient(gradient, hidden, gate, second[3], second[6])
            d_state, *of_second = layer(second, sums)
            sums = passes.relu_gradient(d_state, second[0].view_as(hidden), first[3], first[6])
            d_hidden, *of_first = layer(first, sums)
            d_hidden.addcmul_(gradient, gate)
        return d_hidden, None, None, None, *of_first, None, *of_second, None


def _product_gradients(
    errors: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of rows (streams, frames · batch, size) and weight, from their product's."""
    turned = weight.transpose(2, 3).contiguous()  # small, and products with it are faster
    d_rows = torch.bmm(errors, turned[1])
    d_now = torch.bmm(rows.transpose(1, 2), errors)
    d_before = torch.zeros_like(d_now)
    if reach < rows.shape[1]:
        later = errors[:, reach:]
        d_rows[:, :-reach].baddbmm_(later, turned[0])
        d_before = torch.bmm(rows[:, :-reach].transpose(1, 2), later)
    return d_rows, torch.stack((d_before, d_now))


class FusedStatistics(torch.autograd.Function):
    """Mean, deviation and mean absolute change of (streams, frames, batch, size) over the frames.

    With w the weight of a frame in the mean and v that of a pair of neighbours in the change::

        ∂x = w (∂mean + ∂deviation (x - mean) / deviation) + ∂change · D(v sign(change of x))

    where D hands each pair's share to its later frame and takes it from its earlier one.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return (3, streams, batch, size)."""
        statistics = passes_for(hidden).pool(hidden, mask, *_counts(hidden, mask))
        ctx.save_for_backward(hidden, statistics, mask)
        return statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient of ``hidden``."""
        hidden, (mean, deviation, _), mask = ctx.saved_tensors
        frames, pairs = _counts(hidden, mask)
        slope = gradient[1] / deviation / frames
        constant = gradient[0] / frames - slope * mean
        share = gradient[2] / pairs
        return passes_for(hidden).pool_gradient(hidden, mask, slope, constant, share), None


def _counts(
    hidden: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """Valid frames of each clip, and pairs of neighbours among them, at least one: (batch, 1)."""
    if mask is None:
        return hidden.shape[1], max(1, hidden.shape[1] - 1)
    return mask.sum(0).clamp(min=1), mask[1:].sum(0).clamp(min=1)


__all__ = [
    "FEW_THREADS",
    "FusedStatistics",
    "find_compiled",
    "fused_block",
    "is_plain",
    "passes_for",
]
