# SPDX-License-Identifier: Apache-2.0
"""In which order the streams of a TIM-Net read the frames of a padded batch, and back again.

Each clip's valid frames stand at the front of its row, in time order for the streams that read
forwards and mirrored for those that read backwards; padding stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def reading_orders(
    attention_mask: torch.Tensor | None, values: torch.Tensor, directions: int
) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
    """Where each stream reads its frames from: valid ones first, forwards and backwards.

    Returns:
        For each direction the frame indices (batch, frames) in reading order, and the mask
        (frames, batch, 1) of the valid frames in that order. Both None where nothing is padded.
    """
    if attention_mask is None:
        return None, None
    if attention_mask.shape != values.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but input_values has "
            f"(batch, frames) {tuple(values.shape[:2])}."
        )
    valid = attention_mask != 0
    length = valid.sum(1, keepdim=True)
    forward = torch.argsort((~valid).to(torch.int32), dim=1, stable=True)
    position = torch.arange(valid.shape[1], device=valid.device).expand_as(forward)
    within = position < length
    orders = [forward]
    if directions == 2:
        mirrored = torch.where(within, length - 1 - position, position)
        orders.append(forward.gather(1, mirrored))
    return orders, within.t().unsqueeze(-1)


def in_reading_order(
    parts: Sequence[torch.Tensor], order: list[torch.Tensor] | None, members: int = 1
) -> torch.Tensor:
    """Stack the streams' frames, each (batch, frames, size), every one in its reading order.

    Args:
        parts: The streams, ``members`` of them a direction.
        order: From :func:`reading_orders`.
        members: Streams that share an order.

    Returns:
        (streams, frames, batch, size).
    """
    if order is None:
        taken = [*parts[:members], *(part.flip(1) for part in parts[members:])]
    else:
        pairs = zip(parts, [at for at in order for _ in range(members)], strict=True)
        taken = [part.gather(1, at.unsqueeze(-1).expand_as(part)) for part, at in pairs]
    return torch.stack(taken).transpose(1, 2)


def in_time_order(
    hidden: torch.Tensor,
    order: list[torch.Tensor] | None,
    mask: torch.Tensor | None,
    members: int,
) -> torch.Tensor:
    """Undo the reading order: (streams, …) → time order (batch, frames, streams · hidden_size)."""
    if order is not None and mask is not None:
        hidden = hidden * mask
        order = [torch.argsort(index, dim=1) for index in order]
    streams = [stream.transpose(0, 1) for stream in hidden.unbind()]
    return torch.cat(in_reading_order(streams, order, members).transpose(1, 2).unbind(), dim=-1)


__all__ = ["in_reading_order", "in_time_order", "reading_orders"]
