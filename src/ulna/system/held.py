"""What this process holds in memory, as its system counts it, and that it gives back what it frees."""

from __future__ import annotations

import ctypes
import logging
import platform
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

UNKNOWN = 5e8  # Python and its libraries, where the system does not tell
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
_SMALLEST = 2**20


def held_bytes() -> float:
    """Bytes that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return UNKNOWN
    return pages * 4096.0


def give_back() -> bool:
    """Give what is freed back to the system at once, for the rest of this process: it holds what it uses, and no more.

    For Linux with glibc; elsewhere nothing happens.

    Returns:
        Whether it is given back.
    """
    mallopt = mallopt_of_libc()
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_THRESHOLD, _SMALLEST), mallopt(_TRIM_THRESHOLD, _SMALLEST)])


def mallopt_of_libc() -> Any:
    """What sets how glibc keeps freed memory; None with another C library."""
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        return ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the last: Windows has no library of the whole process
        log.debug("this C library has no mallopt; freed memory goes back to the system")
        return None
