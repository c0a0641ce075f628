"""Processors of this process: which it may use, and which have nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path

STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
LOOK_S = 0.4  # how long processors are watched
# The environment variable that names the process which began a job, beside others: the job ends when that is gone.
PARENT = "ULNA_PARENT"
IDLE = (3, 4)  # the columns of /proc/stat that count waiting: idle, and idle while a disk is waited for


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


def granted_cores() -> int:
    """How many processors this process may keep busy: those it may use, of them a container's share, and OMP_NUM_THREADS."""
    granted = min(len(usable_cores()), _quota())
    with suppress(KeyError, ValueError):
        granted = min(granted, float(os.environ["OMP_NUM_THREADS"]))
    return _at_least_one(granted)


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
