"""Which jobs run side by side on this machine: as many as the cores carry and the memory holds, by its estimates."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ulna.data.formats.limits import memory as machine_memory
from ulna.errors import UsageError, printable
from ulna.executors.job import Need
from ulna.planning.memory import GPU_SHARE, MemoryEstimate
from ulna.system.device import Device, gpus_here

AUTO = "auto"
# Beside a GPU a training keeps one core busy with its steps, and about another with reading and drawing samples.
CORES_WITH_A_GPU = 2
ENDLESS = Need(math.inf, math.inf)


def read_jobs(text: str | int) -> int | None:
    """How many jobs are wanted at once; None for `auto`.

    Raises:
        UsageError: if it is neither a number from 1 nor `auto`.

    Example:
        >>> read_jobs("4"), read_jobs("auto")
        (4, None)
    """
    if text == AUTO:
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"--jobs {printable(text)}: a number of jobs at once, at least one, or {AUTO}")
    return number


def need_of(taken: MemoryEstimate, device: Device) -> Need:
    """What a process of its own takes, by the estimate."""
    if not device.gpu:
        return Need(taken.total)
    # cases lie on the GPU as far as they fit there, and in memory else
    return Need(taken.total - taken.on_the_gpu, taken.on_the_gpu + taken.parts.get("cases kept", 0.0))


def unknown_need(device: Device) -> Need:
    """Of what nobody knows: it runs alone."""
    return Need(math.inf, math.inf if device.gpu else 0.0)


@dataclass(frozen=True)
class Places:
    """Where jobs run: side by side on one machine.

    Args:
        most: at once, whatever they need.
        room: of the machine, and of each of its GPUs.
        gpus: that jobs are divided among.
    """

    most: int = 1
    room: Need = ENDLESS
    gpus: int = 1

    @classmethod
    def of(cls, device: Device, wanted: int | None, threads: int | None = None) -> Places:
        """Those of this machine.

        Args:
            device: that jobs run on; where it is a GPU, there may be more of them.
            wanted: at once; None: as many as the cores carry.
            threads: of each; None: those that are free are shared among them.
        """
        cores = os.cpu_count() or 1
        if wanted is None:
            wanted = max(1, cores // max(threads or 1, CORES_WITH_A_GPU if device.gpu else 1))
        room = Need(machine_memory(), GPU_SHARE * device.memory_bytes)
        return cls(min(wanted, cores), room, gpus_here() if device.gpu else 1)

    def gpu_for(self, need: Need, running: Sequence[tuple[Need, int]]) -> int | None:
        """The GPU on which a job may begin beside others: of those with room the one with the fewest; None: it has to wait.

        The first job always may begin. Without a GPU all are on number 0.

        Args:
            need: of the job.
            running: need and GPU of each of the others.
        """
        if not running:
            return 0
        if len(running) >= self.most or sum(one.machine for one, _ in running) + need.machine > self.room.machine:
            return None
        on = [[one.gpu for one, where in running if where == gpu] for gpu in range(self.gpus)]
        free = [gpu for gpu in range(self.gpus) if not on[gpu] or sum(on[gpu]) + need.gpu <= self.room.gpu]
        return min(free, key=lambda gpu: len(on[gpu]), default=None)

    def at_once(self, needs: Sequence[Need]) -> int:
        """How many of these jobs ever run side by side: the threads are shared among so many."""
        most = min(self.most, len(needs))
        for kind, (room, times) in enumerate(zip(self.room, (1, self.gpus), strict=True)):
            taken, held = 0.0, 0
            for size in sorted(need[kind] for need in needs):  # the smallest ones, which fit most often
                taken += size
                held += taken <= room
            most = min(most, max(1, held) * times)
        return max(1, most)
