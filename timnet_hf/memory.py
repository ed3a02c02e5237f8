# SPDX-License-Identifier: Apache-2.0
"""How the C library treats memory while a network is trained, or scores in bulk."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: Numbers of glibc's malloc.h, and the most it takes for each that is of use here.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _OWN_MAPPING = 2**30, 2**25


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, up to a gigabyte, for the next step or batch.

    A step frees a few hundred blocks of a megabyte or two and asks for the same ones again. Left
    alone, glibc hands them back to the system in between and pays for every page anew, which takes
    a good part of the step, and a fifth of the time of scoring in bulk. It holds for the whole
    process, so only programs that do either ask for it, and importing the package does not.

    Returns:
        Whether there is a C library that knows how; others need not be told.
    """
    with suppress(OSError, AttributeError, TypeError):
        option = ctypes.CDLL(None).mallopt
        return bool(option(_M_TRIM_THRESHOLD, _KEPT) and option(_M_MMAP_THRESHOLD, _OWN_MAPPING))
    return False


__all__ = ["keep_freed_memory"]
