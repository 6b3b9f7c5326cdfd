"""Keep freed memory in the process: a training step allocates and frees the same gigabyte again and again."""

from __future__ import annotations

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc not to hand big blocks back to the kernel, which costs a page fault per 4 kB at every step (a third
    of the time of a step at full size). Does nothing where the C library is another."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _NEVER)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def release_freed_memory() -> None:
    """Hand back once what has been kept."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
