"""What a file may promise: no more than its bytes can hold, and no more than this machine can."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from ulna.data.source import AGAIN, fault

LARGEST_RATIO = 1100  # deflate cannot pack more than 1032 bytes into one
MOST_PIXELS = 1_000_000_000
_UNKNOWN = 1 << 36  # where the system does not say how much memory it has


def check_promise(where: object, what: str, promised: int, held: int, *, packed: bool) -> None:
    """Refuse, before memory is taken, a header that its bytes cannot fulfil, and what no half of the memory holds.

    Args:
        what: the fault in words, such as "the header promises ...".
        promised: bytes that the header declares.
        held: bytes that the file holds.
        packed: the bytes are compressed with deflate.
    """
    if promised > held * (LARGEST_RATIO if packed else 1):
        raise fault(where, what, AGAIN)
    check_memory(where, promised)


def check_memory(where: object, promised: int) -> None:
    """Refuse what half of the memory does not hold."""
    if promised > memory() // 2:
        size = f"unpacks to {promised / 1e9:.1f} GB, and this machine has {memory() / 1e9:.1f} GB of memory"
        raise fault(where, size, "cut it into smaller images, or use a machine with more memory")


@cache
def memory() -> int:
    """Bytes of memory that this process may use."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = _UNKNOWN
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        limit = physical
    return min(physical, limit)
