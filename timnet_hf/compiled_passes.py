# SPDX-License-Identifier: Apache-2.0
"""The passes of :mod:`timnet_hf.passes_timnet` by compiled loops, for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import kernels
from .passes_timnet import VARIANCE_FLOOR, Passes


def _normalize(
    values: torch.Tensor,
    mask: torch.Tensor | None,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    factors: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    runs, _ = _spans(values, mask)
    count = float(max(1, values[0, ..., 0].numel() if mask is None else mask.sum()))
    output, mean, variance = values.new_empty(values.shape), *_channel_values(values)
    given = (*map(_channels, (gamma, beta)), _channels(factors), eps)
    kernels.normalize(
        _lanes(values), runs, count, *given, *map(_channels, (mean, variance)), _lanes(output)
    )
    return output, mean, variance


def _gate(active: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, output = active.contiguous(), hidden.new_empty(hidden.shape)
    kernels.gate_apart(*(_lanes(one).reshape(-1) for one in (gate, hidden, output)))
    return gate, output


def _gate_gradient(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    gate: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    active, d_beta, with_values = gate.new_empty(gate.shape), *_channel_values(values)
    given = (*map(_lanes, (gradient, hidden, gate, values)), _channels(factors))
    kernels.gate_gradient(*given, *map(_channels, (d_beta, with_values)), _lanes(active))
    return active, d_beta, with_values


def _relu_gradient(
    gradient: torch.Tensor, output: torch.Tensor, values: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    active, d_beta, with_values = gradient.contiguous(), *_channel_values(values)
    given = (*map(_lanes, (active, output.to(active.dtype), values)), _channels(factors))
    kernels.relu_gradient(*given, *map(_channels, (d_beta, with_values)))
    return active, d_beta, with_values


def _norm_gradient(
    active: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    factors: torch.Tensor,
    scale: torch.Tensor,
    slope: torch.Tensor,
    constant: torch.Tensor,
) -> torch.Tensor:
    active, (_, padding) = active.contiguous(), _spans(values, mask)
    given = (_channels(factors), *map(_channels, (scale, slope, constant)))
    kernels.norm_gradient(_lanes(active), _lanes(values), padding, *given)
    return active


def _pool(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    frames: torch.Tensor | int,
    pairs: torch.Tensor | int,
) -> torch.Tensor:
    runs, _ = _spans(hidden, mask)
    statistics = hidden.new_empty(3, len(hidden), *hidden.shape[2:])
    frames_of = (hidden.new_ones(hidden.shape[2:]) * frames).flatten().numpy()
    kernels.pool(_lanes(hidden), runs, frames_of, *_lanes(statistics))
    statistics[1].div_(frames).add_(VARIANCE_FLOOR).sqrt_()
    statistics[2].div_(pairs)
    return statistics


def _pool_gradient(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    slope: torch.Tensor,
    constant: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    d_hidden = hidden.new_empty(hidden.shape)
    given = (*_spans(hidden, mask), *(_channels(one) for one in (slope, constant, share)))
    kernels.pool_gradient(_lanes(hidden), *given, _lanes(d_hidden))
    return d_hidden


def _lanes(values: torch.Tensor) -> Any:
    """(…, batch, size) as (…, batch · size); without a copy where the numbers lie so already."""
    return values.detach().contiguous().flatten(-2).numpy()


def _channels(values: torch.Tensor) -> Any:
    """(streams, …) as (streams, the rest)."""
    return values.detach().contiguous().flatten(1).numpy()


def _channel_values(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    streams, _, _, size = values.shape
    return values.new_empty(streams, 1, size), values.new_empty(streams, 1, size)


def _spans(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[Any, Any]:
    """Lanes of the valid frames, and of the padding, see `kernels.runs_of`."""
    _, frames, batch, size = values.shape
    if mask is None:
        whole = np.stack((np.arange(frames), np.zeros(frames), np.full(frames, batch * size)), 1)
        return whole.astype(np.uint64), np.empty((0, 3), np.uint64)
    valid = np.ascontiguousarray(mask.detach().view(frames, batch).numpy() != 0)
    return kernels.runs_of(valid, size), kernels.runs_of(~valid, size)


#: For float32 on the CPU.
COMPILED = Passes(
    _normalize, _gate, _gate_gradient, _relu_gradient, _norm_gradient, _pool, _pool_gradient
)


__all__ = ["COMPILED"]
