"""What this process holds in memory, as its system counts it."""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN = 5e8  # Python and its libraries, where the system does not tell


def held_bytes(unknown: float = UNKNOWN) -> float:
    """Bytes that this process holds now; `unknown` where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return unknown
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
