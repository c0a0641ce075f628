"""Tensors that memory has no room for, on disk: written once, and read where they are looked at."""

from __future__ import annotations

import logging
import math
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ulna.data.formats.offsets import write_at

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free disk that may be taken
SEGMENT = 1 << 32  # bytes of a file: a few files hold thousands of tensors, and a process may open a thousand
ALIGNED = 64
AT_ONCE = 1 << 26  # bytes of a write


class _Place(NamedTuple):
    """Where a tensor is written.

    Args:
        file: a descriptor of its own.
        map: of the file.
        first: byte.
    """

    file: int
    map: mmap.mmap
    first: int


class Spool:
    """Tensors in files without a name, which are gone with the process, however it ends; any number of threads may write.

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
        self._lock = threading.Lock()

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
        try:
            place = self._place(size)
        except OSError as error:
            self._full(error)
            return None
        if place is None:
            return None
        try:
            done = 0
            for part in parts:
                values = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
                first = 0
                while first < len(values):  # not through the map: a full disk would end the process there
                    first += write_at(place.file, values[first : first + AT_ONCE], place.first + done + first)
                done += first
        except OSError as error:
            self._full(error)
            return None
        finally:
            os.close(place.file)
        assert done == size
        return torch.frombuffer(place.map, dtype=dtype, count=count, offset=place.first).reshape(tuple(shape))

    def _place(self, size: int) -> _Place | None:
        """Room for so many bytes, which is nobody else's from now on; None where there is none."""
        with self._lock:
            if not 0 < size <= self._room:
                return None
            if self._map is None or self._used + size > len(self._map):
                self._begin(max(size, min(SEGMENT, self._room)))
            assert self._map is not None
            place = _Place(os.dup(self._file), self._map, self._used)  # another may begin the next file meanwhile
            self._used += -(-size // ALIGNED) * ALIGNED
            self._room -= size
            return place

    def _full(self, error: OSError) -> None:
        log.info("%s: no further case is kept on this disk (%s)", self.folder, error.strerror or error)
        with self._lock:
            self._room = 0

    def _begin(self, size: int) -> None:
        """Another file; what is mapped of the one before stays."""
        self._close()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            self._map, self._used = mmap.mmap(file.fileno(), size), 0
            self._file = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._file)
