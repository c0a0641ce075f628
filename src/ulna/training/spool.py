"""Tensors that memory has no room for, on disk: written once, and read where they are looked at."""

from __future__ import annotations

import logging
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free disk that may be taken
SEGMENT = 1 << 32  # bytes of a file: a few files hold thousands of tensors, and a process may open a thousand
ALIGNED = 64
AT_ONCE = 1 << 26  # bytes of a write


def _write_at(descriptor: int, values: memoryview, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, values, place)
    os.lseek(descriptor, place, os.SEEK_SET)  # Windows; whoever writes holds the lock of the cases
    return os.write(descriptor, values)


class Spool:
    """Tensors in files without a name, which are gone with the process, however it ends.

    Args:
        folder: on the disk that is to hold them.
        most_bytes: at most; left out, half of what is free there.
        sharing: processes that take as much, beside each other.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None, *, sharing: int = 1) -> None:
        self.folder = folder
        self._room = int(SHARE / sharing * shutil.disk_usage(folder).free) if most_bytes is None else most_bytes
        self._file = -1
        self._close: Callable[[], object] = lambda: None
        self._map: mmap.mmap | None = None
        self._used = 0

    def put(self, tensor: Tensor) -> Tensor | None:
        """The same values on disk, as a tensor that reads them from there; None where there is no room.

        Args:
            tensor: on the CPU.
        """
        return self.put_parts(tensor.shape, tensor.dtype, [tensor])

    def put_parts(self, shape: Sequence[int], dtype: torch.dtype, parts: Iterable[Tensor]) -> Tensor | None:
        """The same of values that come part by part, in the order of memory; where there is no room, none is asked for.

        Args:
            shape: of all of them.
            dtype: of each.
            parts: on the CPU.
        """
        count = math.prod(shape)
        size = count * dtype.itemsize
        if not 0 < size <= self._room:
            return None
        try:
            if self._map is None or self._used + size > len(self._map):
                self._begin(max(size, min(SEGMENT, self._room)))
            assert self._map is not None
            place, done = self._used, 0
            for part in parts:
                values = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
                first = 0
                while first < len(values):  # not through the map: a full disk would end the process there
                    first += _write_at(self._file, values[first : first + AT_ONCE], place + done + first)
                done += first
        except OSError as error:
            log.info("%s: no further case is kept on this disk (%s)", self.folder, error.strerror or error)
            self._room = 0
            return None
        assert done == size
        self._used = place + -(-size // ALIGNED) * ALIGNED
        self._room -= size
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=place).reshape(tuple(shape))

    def _begin(self, size: int) -> None:
        """Another file; what is mapped of the one before stays."""
        self._close()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            self._map, self._used = mmap.mmap(file.fileno(), size), 0
            self._file = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._file)
