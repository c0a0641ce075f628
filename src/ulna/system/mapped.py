"""Files that are mapped into memory: what was looked at of them counts as memory of the process, until it is let go of."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # readers of files do without torch
    from torch import Tensor


class InFile(np.memmap):  # type: ignore[type-arg]
    """An array in a file that nobody writes any more, as `np.memmap` maps it."""


def let_go_of_part(values: NDArray[Any]) -> None:
    """`let_go` of a part of an `InFile`; of what was computed from one, and of any other array, nothing."""
    # a copy of a part is of the same class, but lies in no file
    if isinstance(values, InFile) and getattr(values, "_mmap", None) is not None and values.flags.c_contiguous:
        let_go(values)


def let_go(values: Tensor | NDArray[Any]) -> None:
    """Take the pages of a mapped file out of the memory of this process; whoever looks at them again reads them again.

    For Linux; elsewhere the system takes them as it needs them.

    Args:
        values: of a file that is mapped whole, contiguous, and written by nobody: what was changed in them would be lost.
    """
    advise, size = _madvise(), values.nbytes
    if advise is None or not size:
        return
    start = values.ctypes.data if isinstance(values, np.ndarray) else values.data_ptr()
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    advise(first, start + size - first, mmap.MADV_DONTNEED)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return call  # type: ignore[no-any-return]
