# SPDX-License-Identifier: Apache-2.0
"""Worker processes that do not outlive the one that gives out the work."""

from __future__ import annotations

import os
import threading
from multiprocessing import connection, parent_process


def end_with_parent() -> None:
    """End this worker when its parent ends, even by a kill: nobody else would end it.

    Left alone, a worker of a pool waits for work for ever, with all its memory.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


__all__ = ["end_with_parent"]
