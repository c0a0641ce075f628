"""What the time of a training goes to: waiting for data, steps, validation, writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

PHASES = ("data", "steps", "validation", "writing")
SHORTEST_S = 2.0  # of an epoch whose parts are told
LEAST_S = 30.0  # of waiting in a whole training that is worth a word
LEAST_SHARE = 0.1  # of the time in epochs without validation


class Stopwatch:
    """Seconds by phase; a phase within another one counts for itself alone.

    Args:
        clock: seconds from any moment on.

    Example:
        >>> times = iter([0.0, 1.0, 4.0, 9.0])
        >>> watch = Stopwatch(lambda: next(times))
        >>> with watch.of("steps"):
        ...     with watch.of("data"):
        ...         pass
        >>> watch.spent["steps"], watch.spent["data"]
        (6.0, 3.0)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)
        self._clock = clock
        self._phases: list[str] = []
        self._since = 0.0

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Count what is done within for a phase."""
        self._turn()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def _turn(self) -> None:
        now = self._clock()
        if self._phases:
            self.spent[self._phases[-1]] += now - self._since
        self._since = now


def parts(seconds: Mapping[str, float]) -> str:
    """The phases of an epoch that took a second or more, for a line of the log; nothing of a short epoch.

    Example:
        >>> parts({"data": 1.2, "steps": 8.7, "validation": 2.0, "writing": 0.1})
        ' (data 1, steps 9, validation 2)'
    """
    if sum(seconds.values()) < SHORTEST_S:
        return ""
    told = [f"{phase} {seconds[phase]:.0f}" for phase in PHASES if round(seconds[phase]) >= 1]
    return f" ({', '.join(told)})" if told else ""


def advice(seconds: Mapping[str, float], *, threads: int, spare: int) -> str:
    """One line where the samples were slower than the network, what to do about it; nothing where they were not.

    Args:
        seconds: of the training by phase.
        threads: that drew and read samples ahead; with none, that was done between the steps.
        spare: processors that had nothing to do.
    """
    data, steps = seconds["data"], seconds["steps"]
    # beside threads, whatever is waited for is what samples take longer than steps
    slower = data > LEAST_SHARE * (data + steps) if threads else data > steps
    if not slower or data < LEAST_S:
        return ""
    more = f"--set training.workers={threads + spare} to draw and read them in more threads, " if spare > 0 else ""
    return (
        f"the samples were slower than the network: {data:.0f} s of waiting for them beside {steps:.0f} s of steps; take "
        f"{more}less augmentation (--set augmentation.affine=0), or a machine with memory for all cases"
    )
