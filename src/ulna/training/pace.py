"""How far a training has come in its time: what a bar tells of it, and when a limit of hours ends the steps of an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ulna.errors import counted
from ulna.recipe import Training
from ulna.training.limit import (
    PAGE_S,
    FirstSteps,
    calibration_s,
    final_evaluation_s,
    must_validate,
    share_out,
    time_left,
    told_end,
)
from ulna.training.samples import Batches
from ulna.training.state import State
from ulna.training.stopwatch import Stopwatch
from ulna.training.validating import Validation

log = logging.getLogger(__name__)


class Pace:
    """Keeps the time of a training.

    Args:
        state: where the training stands; what is found about its time is noted there.
        training: how long it is.
        batches: of its epochs.
        validation: of the training.
        final_cases, calibrating_cases: predictions at the end, for which a limit of hours keeps time.
        watch: of what the time goes to.
        clock: seconds from any moment on.
    """

    def __init__(
        self,
        state: State,
        training: Training,
        batches: Batches,
        validation: Validation,
        *,
        final_cases: int,
        calibrating_cases: int = 0,
        watch: Stopwatch,
        clock: Callable[[], float],
    ) -> None:
        self.state, self.training, self.batches = state, training, batches
        self.validation, self.watch, self.clock = validation, watch, clock
        self.final_cases, self.calibrating_cases = final_cases, calibrating_cases
        self._first: FirstSteps | None = None

    @property
    def val_cases(self) -> int:
        """How many cases are validated."""
        every = len(self.validation)
        return every if self.state.val_cases is None else min(every, self.state.val_cases)

    @property
    def _rounds(self) -> int:
        """How often a validation takes as long as one case: several devices predict some side by side."""
        return -(-self.val_cases // self.validation.at_once)

    def training_begins(self) -> None:
        """A limit of hours that came later allows less for the calibration than a training without one takes."""
        limit, state = self.training.max_hours, self.state
        if limit is not None and state.case_s:
            state.final_s = min(state.final_s, self._final_s(3600 * limit))

    def epoch_begins(self) -> None:
        """Where nothing is known of its time yet, the first steps of a training with a limit of hours are timed."""
        limit, state = self.training.max_hours, self.state
        unknown = not state.rows and not state.case_s
        self._first = FirstSteps(3600 * limit, state.step, self.clock) if limit is not None and unknown else None

    def ends_epoch(self, end: int, *, settled: bool) -> bool:
        """Whether the steps of an epoch end after this one, since a limit of hours leaves time for no more.

        Args:
            end: the step at which the epoch would end.
            settled: whether steps from now on take as long as they will.
        """
        state = self.state
        if self._first and (step_s := self._first.timed(state.step, settled=settled)) is not None:
            self._first = None
            self._share_time(step_s, end - state.step)
        planned = state.last_step is not None and state.step >= state.last_step
        state.time_is_up = planned or must_validate(state, self.training, self._rounds)
        return state.time_is_up

    def _share_time(self, step_s: float, steps: int) -> None:
        """After the first steps: what has room in the limit is told, and kept for the rest of the training."""
        state, start = self.state, self.clock()
        with self.watch.of("validation"):
            self.validation.try_one()
        state.case_s = self.clock() - start
        state.step_s += state.case_s
        shares = share_out(
            state.left_s(self.training),
            step_s=step_s, steps=steps, case_s=state.case_s,
            val_cases=len(self.validation), final_cases=self.final_cases,
            calibrating_cases=self.calibrating_cases,
        )  # fmt: skip
        for said in shares.said:
            log.info("note: %s", said)
        state.final_s, state.val_cases = shares.final_s, shares.val_cases
        if shares.steps is not None:
            group = self.training.accumulate
            state.last_step = state.step + -(-shares.steps // group) * group

    def ends_validation(self, scored: int) -> bool:
        """Whether the first validation ends after so many cases: the machine got slower, and a limit of hours is over.

        Later ones score all: their epochs would not be comparable, and there are weights already.
        """
        state, training = self.state, self.training
        every = self.val_cases
        over = training.max_hours is not None and state.elapsed_s + state.step_s >= state.allowed_s(training)
        if not over or scored >= every or state.best_epoch >= 0:
            return False
        cases = counted(every, "validation case")
        log.info("note: the limit ends before the validation: the weights are chosen by %d of %s", scored, cases)
        state.val_cases = scored
        return True

    def validated(self, seconds: float) -> None:
        """A validation took so long, which tells more than its first case did."""
        state = self.state
        before, state.case_s = state.case_s, seconds / max(1, self._rounds)
        if before and state.final_s:
            state.final_s *= min(2.0, state.case_s / before)
        else:  # no steps were timed: epochs are short, or a limit of hours may come later
            state.final_s = self._final_s(state.left_s(self.training))

    def _final_s(self, left_s: float) -> float:
        """Of the final evaluation, its page, and the calibration, which takes a part of what is left at most."""
        final_s = final_evaluation_s(self.state.case_s, self.final_cases) + PAGE_S
        return final_s + calibration_s(self.state.case_s, self.calibrating_cases, left_s)

    def told_epoch(self) -> str:
        """The epoch under way; how many there are is told where they end the training, as far as that is known."""
        state, training = self.state, self.training
        by_epochs = training.max_hours is None or (
            bool(state.rows) and state.epoch_s * training.length <= state.allowed_s(training)
        )
        return f"epoch {state.epoch + 1}" + (f"/{training.most_epochs}" if by_epochs else "")

    def told_end(self) -> str:
        """When the training ends at the latest."""
        return told_end(*time_left(self.state, self.training, self.batches.steps))
