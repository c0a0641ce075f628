"""Which trainings of a study run side by side: as many as the cores carry and the memory holds, by its estimates."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ulna.data.formats.limits import memory as machine_memory
from ulna.errors import UsageError, printable
from ulna.planning.memory import GPU_SHARE, MemoryEstimate
from ulna.system.device import Device

AUTO = "auto"
# Beside a GPU a training keeps one core busy with its steps, and about another with reading and drawing samples.
CORES_WITH_A_GPU = 2


def read_jobs(text: str | int) -> int | None:
    """How many trainings are wanted at once; None for `auto`.

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
        raise UsageError(f"--jobs {printable(text)}: a number of trainings at once, at least one, or {AUTO}")
    return number


class Need(NamedTuple):
    """Bytes that a training takes at its peak: of the machine's memory, and of the GPU's."""

    machine: float
    gpu: float = 0.0

    @classmethod
    def of(cls, taken: MemoryEstimate, device: Device) -> Need:
        """By the estimate of a training in a process of its own."""
        if not device.gpu:
            return cls(taken.total)
        # cases lie on the GPU as far as they fit there, and in memory else
        return cls(taken.total - taken.on_the_gpu, taken.on_the_gpu + taken.parts.get("cases kept", 0.0))


ENDLESS = Need(math.inf, math.inf)


@dataclass(frozen=True)
class Places:
    """Where trainings run: side by side on one machine.

    Args:
        most: at once, whatever they need.
        needs: network -> what a training of it takes; one that is not in it takes nothing.
        room: of machine and GPU.
    """

    most: int = 1
    needs: Mapping[str, Need] = field(default_factory=dict)
    room: Need = ENDLESS

    @classmethod
    def of(cls, device: Device, needs: Mapping[str, Need], wanted: int | None, threads: int | None = None) -> Places:
        """Those of this machine.

        Args:
            device: that trainings run on.
            needs: network -> what a training of it takes.
            wanted: at once; None: as many as the cores carry.
            threads: of each; None: those that are free are shared among them.
        """
        cores = os.cpu_count() or 1
        if wanted is None:
            wanted = max(1, cores // max(threads or 1, CORES_WITH_A_GPU if device.gpu else 1))
        return cls(min(wanted, cores), needs, Need(machine_memory(), GPU_SHARE * device.memory_bytes))

    def fits(self, network: str, running: Sequence[str]) -> bool:
        """Whether a training may begin beside others; the first one always may.

        Args:
            network: that it trains.
            running: those that the others train.
        """
        if not running:
            return True
        together = [self.needs.get(name, Need(0.0)) for name in (*running, network)]
        return len(together) <= self.most and all(
            sum(each) <= room for each, room in zip(zip(*together, strict=True), self.room, strict=True)
        )

    def at_once(self, networks: Sequence[str]) -> int:
        """How many trainings of these networks, one a name, ever run side by side: the threads are shared among so many."""
        sizes = [self.needs.get(name, Need(0.0)) for name in networks]
        most = min(self.most, len(sizes))
        for kind, room in enumerate(self.room):  # the smallest ones, which fit most often
            taken, held = 0.0, 0
            for size in sorted(size[kind] for size in sizes):
                taken += size
                held += taken <= room
            most = min(most, held)
        return max(1, most)
