"""How many threads compute: as many as a person says, else no more than there are processors with nothing to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ulna.errors import UsageError
from ulna.system.cores import free_cores

MOST_THREADS = 4096


def check_threads(wanted: int | None) -> None:
    """Refuse a number of threads that cannot be.

    Raises:
        UsageError: with what is meant.
    """
    if wanted is not None and not 1 <= wanted <= MOST_THREADS:
        raise UsageError(
            f"--threads {wanted}: a number of threads, from 1 to {MOST_THREADS}; left out, as many as are free"
        )


def choose_threads(wanted: int | None = None) -> int:
    """The threads of a run that begins: those wanted, else those of OMP_NUM_THREADS, else no more than processors are free.

    Never more than torch was told to take in this process.
    """
    check_threads(wanted)
    if wanted is not None:
        return wanted
    here = torch.get_num_threads()
    return here if here == 1 or "OMP_NUM_THREADS" in os.environ else min(here, free_cores())


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with so many threads within; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
