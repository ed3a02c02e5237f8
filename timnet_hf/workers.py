# SPDX-License-Identifier: Apache-2.0
"""Worker processes: as many as there are cores, none outlives the one that gives out the work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def follow_parent() -> None:
    """In a worker: leave Ctrl-C, which reaches all, to the parent, and end when the parent ends.

    Left alone, a worker of a pool waits for work for ever, with all its memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


__all__ = ["available_cores", "follow_parent"]
