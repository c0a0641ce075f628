"""Memory of this process: what a step frees is kept for the next one, and how much was held at most."""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ulna.kernels.native import library

log = logging.getLogger(__name__)

# as in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30
_SMALLEST = 2**20
_state: list[str] = []


@cache
def tune_memory() -> bool:
    """Keep what tensors free for the next ones, for the rest of this process: training steps on a CPU are faster and smaller.

    The command line does so for its own process; Python code calls it where it wants to, best before the first tensor. It is
    for Linux with glibc; elsewhere nothing happens, nor at a second call.

    The maps of a training step are tens of MB. glibc gives blocks of that size back when they are freed, and the next step
    pays for every page again: a step of a 3D U-Net (2 x 40 x 56 x 40) took 1.3 to 1.8 times as long. Blocks of up to 1 GiB
    are kept; the process holds its highest need until it ends.

    torch's allocator of tensors is replaced too, by one that leaves no hole too short for the next map of the same size
    (`kernels/allocator.cpp`): a training step of large patches needs a third less than with glibc's settings alone. That
    wants a C++ compiler; ULNA_NATIVE=0 leaves it out.

    Returns:
        Whether freed memory is kept.

    Example:
        >>> ulna.tune_memory()                                               # doctest: +SKIP
        True
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    kept = all([mallopt(_MMAP_THRESHOLD, _LARGEST), mallopt(_TRIM_THRESHOLD, 2 * _LARGEST - 1)])
    allocator = library("allocator", with_torch=True)
    if kept and allocator is not None:
        allocator.ulna_allocator_use()
    if kept:
        _state.append("glibc" if allocator is None else "ulna")
    return kept


def give_back_memory() -> bool:
    """Give what is freed back to the system at once, for the rest of this process: it holds what it uses, and no more.

    For Linux with glibc, in a process that has not called `tune_memory`; elsewhere nothing happens.

    Returns:
        Whether it is given back.
    """
    mallopt = _mallopt()
    if mallopt is None or _state:
        return False
    return all([mallopt(_MMAP_THRESHOLD, _SMALLEST), mallopt(_TRIM_THRESHOLD, _SMALLEST)])


def allocator_in_use() -> str:
    """Where tensors on a CPU get their memory: "torch" (its default), "glibc" (which keeps what is freed), or "ulna"."""
    return _state[-1] if _state else "torch"


def allocator_when_tuned() -> str:
    """The same of a process that has called `tune_memory`, such as a training of a study; this one stays as it is."""
    if _mallopt() is None:
        return "torch"
    return "glibc" if library("allocator", with_torch=True) is None else "ulna"


def _mallopt() -> Any:
    """What sets how glibc keeps freed memory; None with another C library."""
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        return ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the last: Windows has no library of the whole process
        log.debug("this C library has no mallopt; freed memory goes back to the system")
        return None


def peak_memory_mb() -> float:
    """Peak memory of this process (of the GPU where one is used); 0 where the system does not tell."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage says there begins with the peak of the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
