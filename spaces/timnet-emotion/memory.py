# SPDX-License-Identifier: Apache-2.0
"""What a recording needed goes back to the system when it is answered."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Numbers of glibc's malloc.h, and the bytes from which a block is a mapping of its own.
_M_MMAP_THRESHOLD, _M_ARENA_MAX, _OWN_MAPPING = -3, -8, 2**23


def give_back() -> bool:
    """Have the C library return large blocks when they are freed, and share heaps among threads.

    Left alone, glibc gives each thread a heap, and after the first large block that is freed it
    takes up to 32 MB from those heaps: what fifty visitors' hours of sound leave behind stays with
    the process in pieces that are too small for the next. The network's own intermediate results,
    a megabyte or two each, stay in the heaps: as mappings they would more than double its time.

    Returns:
        Whether there is a C library that knows how; others need not be told.
    """
    with suppress(OSError, AttributeError):
        option = ctypes.CDLL(None).mallopt
        # The threshold set by hand no longer moves.
        return bool(option(_M_MMAP_THRESHOLD, _OWN_MAPPING) and option(_M_ARENA_MAX, 2))
    return False


__all__ = ["give_back"]
