"""Memory of large tensors stays with the process from one step to the next, and goes back when the work is done.

glibc gives a freed block of some megabytes back to the operating system at once, and gets the next one page by page, each page
cleared: a quarter of the time of an ordinary step on slices, and of the loop over patients. Numbers don't depend on it.
Source: mallopt(3), malloc_trim(3). Other C libraries have neither, and nothing happens there.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_large_blocks() -> bool:
    """From now on this process keeps what it frees. False where that can't be said, or the environment says something else."""
    libc = _libc("mallopt")
    if libc is None or any(name in os.environ for name in _OWN):
        return False
    return bool(libc.mallopt(_MMAP_THRESHOLD, 2**30) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def give_back() -> None:
    """All that is free goes back to the operating system."""
    libc = _libc("malloc_trim")
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _libc(function: str) -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # a system without a C library of its own
        return None
    return libc if hasattr(libc, function) else None
