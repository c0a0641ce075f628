"""How many threads compute: as many as a person says, else no more than there are processors with nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ulna.errors import UsageError

MOST_THREADS = 4096
STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
LOOK_S = 0.4  # how long processors are watched
IDLE = (3, 4)  # the columns of /proc/stat that count waiting: idle, and idle while a disk is waited for


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


def free_cores(*, wait: Callable[[float], object] = time.sleep) -> int:
    """Processors of this process that have nothing to do now, at least one; where that cannot be seen, by the load."""
    own = usable_cores()
    before = _ticks(own)
    if before:
        wait(LOOK_S)
    after = _ticks(own)
    spent = [(after[core][0] - idle, after[core][1] - total) for core, (idle, total) in before.items() if core in after]
    if spent and all(total > 0 for _, total in spent):
        free = sum(idle / total for idle, total in spent)
    else:
        free = float(len(own))
        with suppress(OSError, AttributeError):  # Windows has no load
            free -= os.getloadavg()[0]
    return _at_least_one(min(free, _quota()))


def usable_cores() -> Set[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _at_least_one(cores: float) -> int:
    return max(1, int(cores + 0.5))  # half a processor of small work leaves the other half idle


def _ticks(cores: Set[int]) -> dict[int, tuple[int, int]]:
    """Processor -> how long it had nothing to do, and how long in all; nothing where the system does not tell."""
    found = {}
    with suppress(OSError, ValueError, IndexError):
        for line in STAT.read_text(encoding="ascii").splitlines():
            name, *columns = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
                numbers = [int(column) for column in columns[:8]]  # guests are counted among the others
                found[int(name[3:])] = (sum(numbers[column] for column in IDLE), sum(numbers))
    return found


def _quota() -> float:
    """Processors that a container may use; any number where it does not say."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return float(quota) / float(period)  # "max" is no number
    return float("inf")
