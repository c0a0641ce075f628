"""Numbers of steps that are read some steps late, so that nobody waits for the step that has just begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

AHEAD = 2  # steps that a GPU may still have before it: it never waits for the next one, and a stop comes soon


class Event(Protocol):
    """A place in the work of a device, as `torch.cuda.Event`."""

    def record(self) -> None:
        """Be here, after all that was asked for so far."""

    def query(self) -> bool:
        """Whether the device has come here."""

    def synchronize(self) -> None:
        """Wait until it has."""


class LateNumbers:
    """A few numbers a step, copied to the host while the device goes on, and given when they have come.

    A CPU has them at once.

    Args:
        device: of the numbers.
        most: how many a step has.
        ahead: how many steps may be under way; None: none on a CPU, `AHEAD` elsewhere.
        event: makes events of the device.

    Example:
        >>> losses = LateNumbers(torch.device("cpu"))
        >>> losses.add(torch.tensor(0.5)), losses.rest()
        ([(0.5,)], [])
    """

    def __init__(
        self,
        device: torch.device,
        most: int = 1,
        *,
        ahead: int | None = None,
        event: Callable[[], Event] | None = None,
    ) -> None:
        gpu = device.type == "cuda"
        self.ahead = (AHEAD if gpu else 0) if ahead is None else ahead
        self._event = event or (torch.cuda.Event if gpu else _Here)
        # a step's place is free again when `ahead` steps after it have begun
        self._places = torch.zeros(self.ahead + 1, most, pin_memory=gpu)
        self._begun = 0
        self._waiting: deque[tuple[Tensor, Event]] = deque()

    def add(self, *numbers: Tensor) -> list[tuple[float, ...]]:
        """Those of the step that has just begun; gives the numbers of all steps that have ended since.

        It waits where more than `ahead` steps are under way.
        """
        place = self._places[self._begun % len(self._places)][: len(numbers)]
        for n, number in enumerate(numbers):
            place[n].copy_(number.detach(), non_blocking=True)
        event = self._event()
        event.record()
        self._begun += 1
        self._waiting.append((place, event))
        ended = []
        while self._waiting and (len(self._waiting) > self.ahead or self._waiting[0][1].query()):
            ended.append(self._next())
        return ended

    def rest(self) -> list[tuple[float, ...]]:
        """The numbers of all steps that have begun, after the last one has ended."""
        return [self._next() for _ in range(len(self._waiting))]

    def _next(self) -> tuple[float, ...]:
        place, event = self._waiting.popleft()
        event.synchronize()
        return tuple(place.tolist())


class _Here:
    """The event of a device that has done everything when it is asked."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...
