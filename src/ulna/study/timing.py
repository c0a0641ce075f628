"""Times of several things in turn: what else the machine does meets all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from ulna.system.progress import bar

K = TypeVar("K")
T = TypeVar("T")

LEAST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Times:
    """Of one of them, a value for every round.

    Args:
        wall_s: on the clock.
        cpu_s: of all threads of this process together.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def wall_ms(self) -> tuple[float, float]:
        """Median and 95th percentile."""
        return _percentiles(self.wall_s)

    @property
    def cpu_ms(self) -> tuple[float, float]:
        """Median and 95th percentile."""
        return _percentiles(self.cpu_s)


def time_in_turn(
    contenders: Mapping[K, Callable[[T], object]],
    subject: Callable[[int, K], T],
    *,
    rounds: int,
    warm_up: int = 0,
    longest_s: float = math.inf,
) -> dict[K, Times]:
    """Run every contender once a round; each round begins with another one, so that none always follows the same.

    Args:
        contenders: name -> what is timed.
        subject: what it is called with in a round, made ready before the clock runs.
        rounds: that count.
        warm_up: rounds before them that do not.
        longest_s: after so long no further round begins, but for the first `LEAST` that count.
    """
    names = list(contenders)
    times = {name: Times() for name in names}
    begin = time.perf_counter()
    with bar("timing", warm_up + rounds) as advance:
        for number in range(warm_up + rounds):
            if number >= warm_up + LEAST and time.perf_counter() - begin > longest_s:
                break
            first = number % len(names)
            for name in names[first:] + names[:first]:
                given = subject(number, name)
                _wait_for_gpu()
                wall, cpu = time.perf_counter(), time.process_time()
                contenders[name](given)
                _wait_for_gpu()
                if number >= warm_up:
                    times[name].wall_s.append(time.perf_counter() - wall)
                    times[name].cpu_s.append(time.process_time() - cpu)
            advance()
    return times


def _wait_for_gpu() -> None:
    """What was queued on a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    median, late = np.percentile(seconds, (50, 95))
    return 1e3 * float(median), 1e3 * float(late)
