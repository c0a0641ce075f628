"""Bytes at a place of an open file, by any number of threads, also where the system has no call for it (Windows)."""

from __future__ import annotations

import os
import threading

_HAS_PREAD = hasattr(os, "pread") and hasattr(os, "pwrite")
_place = threading.Lock()  # of the one position that a file has


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """At most so many bytes from there on; none at the end of the file."""
    if _HAS_PREAD:
        return os.pread(descriptor, count, offset)
    with _place:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """How many bytes were written from there on: fewer than given where the disk becomes full."""
    if _HAS_PREAD:
        return os.pwrite(descriptor, data, offset)
    with _place:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
