"""What `--max-hours` leaves: the shares of steps, validation, calibration and final evaluation, and when a training ends.

Reading the cases, steps, validations, the calibration, the final evaluation and its page count; what comes before
(starting, checking and planning the data) does not. A training makes one step, validates one case and scores every case at
the end, however little that leaves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ulna.errors import counted
from ulna.recipe import Training
from ulna.training.state import State

PAGE_S = 0.5  # drawing and writing the page of the run, whose pictures are few whatever the cases
SCORING = 1.5  # a case at the end, of one in validation: surface distances, and its files are read again
MOST_FINAL = 0.5  # of what is left, kept for the final evaluation; one that takes longer ends after the limit
MOST_CALIBRATION = 0.1  # of what is left, kept for the calibration, which begins no case beyond that share of the limit
MOST_VALIDATION = 1 / 3  # of what is left, for one validation, where not even an epoch has room
TIMED = 3  # steps at the beginning
EARLY = 0.05  # of the limit, after which fewer have to do
TOO_LONG = 0.5  # of the limit, after which one has to do that sets up what the others use


class FirstSteps:
    """Times the first steps of a training, until they tell how long one takes.

    Args:
        limit_s: of the training.
        first: the step that comes next.
        clock: seconds from any moment on.

    Example:
        >>> times = iter([0.0, 9.0, 10.0, 11.0, 13.0])
        >>> first = FirstSteps(1000.0, 0, lambda: next(times))
        >>> [first.timed(done, settled=True) for done in (1, 2, 3, 4)]
        [None, None, None, 1.3333333333333333]
    """

    def __init__(self, limit_s: float, first: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._since, self._from, self._settled = clock(), first, False

    def timed(self, done: int, *, settled: bool) -> float | None:
        """Seconds of a step, when they are known.

        Args:
            done: steps of the epoch so far.
            settled: whether steps from now on take as long as they will; the first one takes longer.
        """
        now = self._clock()
        spent, count = now - self._since, done - self._from
        enough = count >= TIMED or spent > EARLY * self._limit_s
        if enough if self._settled else spent > TOO_LONG * self._limit_s:
            return spent / count
        if settled and not self._settled:
            self._since, self._from, self._settled = now, done, True
        return None


class Shares(NamedTuple):
    """How the time of a limit is used.

    Args:
        steps: that are still made of the first epoch; None: all of it.
        val_cases: that a validation predicts; None: all.
        final_s: kept for calibration and final evaluation.
        said: what a person should know of it.
    """

    steps: int | None
    val_cases: int | None
    final_s: float
    said: Sequence[str]


def share_out(
    left_s: float,
    *,
    step_s: float,
    steps: int,
    case_s: float,
    val_cases: int,
    final_cases: float,
    calibrating_cases: float = 0,
) -> Shares:
    """Divide what is left of a limit after the first steps: an epoch that does not fit is cut, as is its validation.

    Args:
        left_s: of the limit.
        step_s: a step.
        steps: that are left of the epoch.
        case_s: of a case in validation.
        val_cases: how many there are.
        final_cases: how many times that the final evaluation predicts.
        calibrating_cases: and the calibration before it.

    Example:
        >>> share_out(60, step_s=2, steps=100, case_s=1, val_cases=10, final_cases=10)[:3]
        (17, None, 15.5)
    """
    said = []
    final_s = final_evaluation_s(case_s, final_cases)
    if final_s > MOST_FINAL * left_s:
        said.append(
            f"the final evaluation takes about {told_duration(final_s)}, and will end after the limit: it scores every case"
        )
    final_s = max(0.0, min(final_s + PAGE_S, MOST_FINAL * left_s))
    final_s += calibration_s(case_s, calibrating_cases, left_s)
    room_s, validation_s = max(0.0, left_s - final_s), case_s * val_cases
    if steps * step_s + validation_s <= room_s:
        return Shares(None, None, final_s, said)
    fewer = max(1, int(MOST_VALIDATION * room_s / case_s)) if case_s else val_cases
    if fewer < val_cases:
        said.append(
            f"{counted(val_cases, 'validation case')} would take about {told_duration(validation_s)}: the weights are chosen "
            f"by {counted(fewer, 'case')} of them"
        )
        validation_s = case_s * fewer
    cut = min(steps, max(0, int((room_s - validation_s) / step_s)))
    further = f"trains for about {counted(cut, 'more step')}, validates" if cut else "validates now"
    said.append(
        f"the limit ends before the first epoch, whose steps take about {told_duration(steps * step_s)} more: it {further}, "
        "and keeps those weights"
    )
    return Shares(cut, fewer if fewer < val_cases else None, final_s, said)


def final_evaluation_s(case_s: float, final_cases: float) -> float:
    """Seconds of the final evaluation.

    Args:
        case_s: of a case in validation.
        final_cases: how many times that the final evaluation predicts.
    """
    return SCORING * case_s * final_cases


def calibration_s(case_s: float, cases: float, left_s: float) -> float:
    """Seconds of the calibration, which takes a part of what is left at most.

    Args:
        case_s: of a case in validation.
        cases: how many times that it predicts.
        left_s: of the limit.
    """
    return max(0.0, min(case_s * cases, MOST_CALIBRATION * left_s))


def must_validate(state: State, training: Training, val_cases: int) -> bool:
    """Whether the steps of an epoch have to end now, so that its validation and the final evaluation end in time.

    Args:
        state: where the training stands.
        training: its limit.
        val_cases: of a validation, one after the other.
    """
    if training.max_hours is None:
        return False
    return state.elapsed_s + state.step_s + state.case_s * val_cases >= state.allowed_s(training)


def time_left(state: State, training: Training, steps: int) -> tuple[float | None, bool]:
    """Seconds until a training ends at the latest, None before that is known; and whether a limit of hours ends it.

    Args:
        state: where it stands.
        training: how long it is.
        steps: of an epoch.
    """
    an_epoch = state.epoch_s or (state.step_s * steps / state.step if state.step else math.inf)
    by_epochs = max(0.0, (training.length - state.epoch) * an_epoch - state.step_s)
    if training.max_hours is not None:
        by_hours = max(0.0, state.left_s(training))
        if by_hours < by_epochs:
            return by_hours, True
    return (None if math.isinf(by_epochs) else by_epochs), False


def told_end(left_s: float | None, by_hours: bool, now: float | None = None) -> str:
    """When a training ends, for a bar: the time of day under a limit of hours, else how long it takes at most.

    Example:
        >>> told_end(300, False), told_end(None, False)
        ('at most 5 min left', '')
    """
    if left_s is None:
        return ""
    if not by_hours:
        return f"at most {told_duration(left_s)} left"
    now = time.time() if now is None else now
    form = "%H:%M" if left_s < 20 * 3600 else "%a %d %b %H:%M"
    return f"until {time.strftime(form, time.localtime(now + left_s))}, {told_duration(left_s)} left"


def told_duration(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> [told_duration(seconds) for seconds in (0.4, 54, 600, 9000)]
        ['1 s', '54 s', '10 min', '2.5 h']
    """
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1.0, seconds):.0f} s"
