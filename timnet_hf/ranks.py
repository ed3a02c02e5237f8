# SPDX-License-Identifier: Apache-2.0
"""Training in several processes at once: which of them this one is.

``torchrun`` and ``accelerate launch`` start the same command several times and tell each process
its rank. The Trainer does the rest: every process sees its share of each batch, gradients and
metrics are gathered. What is printed and what is written is the first one's business.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among those that train together, 0 for the first or only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def share(batch_size: int) -> int:
    """Each process's part of a batch, rounded up."""
    return -(-batch_size // world_size())


__all__ = ["is_first", "rank", "share", "world_size"]
