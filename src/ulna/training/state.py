"""Where a training stands, and the learning rate there."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ulna.errors import counted
from ulna.recipe import Recipe, Training
from ulna.training.stopwatch import PHASES

EXTENDED = 1 / 3  # of the first rate, with which an extension begins
SHORT_WARM_UP = 0.1  # of a training that ends within its first epoch


class State:
    """Where a training stands: plain values, stored with every checkpoint.

    Args:
        monitor: "dice" or "iou": what chooses the best epoch.
    """

    def __init__(self, monitor: str = "dice") -> None:
        self.monitor = monitor
        self.epoch = 0  # the epoch under way, from 0
        self.rows: list[dict[str, float | None]] = []  # one per finished epoch; None: not validated
        self.best_dice = -1.0  # of the best epoch, whatever chose it
        self.best_epoch = -1
        self.patience_from = 0  # the epoch from which patience counts: that of the last extension
        self.elapsed_s = 0.0  # in finished epochs
        # of a limit of hours: what reading the cases took, what the final evaluation will take, and a case of a validation
        self.reading_s = self.final_s = self.case_s = 0.0
        self.last_step: int | None = None  # of a first epoch for which the hours have no room
        self.val_cases: int | None = None  # that are validated, where they have no room for all
        self.time_is_up = False
        self.extended_epoch = 0  # where the last extension of a finished run began: its epoch, and the seconds before
        self.extended_s = 0.0
        self.step = 0  # of the epoch under way: steps done, their losses, and how long they took
        self.losses: list[float] = []
        self.step_s = 0.0
        self.peak_mb = 0.0  # of memory, over all processes that trained
        self.seconds = dict.fromkeys(PHASES, 0.0)  # what the finished epochs were spent on
        self.epoch_seconds = dict.fromkeys(PHASES, 0.0)  # and the epoch under way

    @property
    def epoch_s(self) -> float:
        """How long an epoch takes: the mean so far, so that a single slow one does not end the training."""
        return self.elapsed_s / len(self.rows) if self.rows else 0.0

    def allowed_s(self, training: Training) -> float:
        """What a limit of hours leaves for epochs: without the cases' reading and the final evaluation, at least half."""
        limit = 3600 * (math.inf if training.max_hours is None else training.max_hours)
        return max(limit - self.reading_s - self.final_s, limit / 2)

    def left_s(self, training: Training) -> float:
        """What is left of a limit of hours, for everything that counts."""
        limit = 3600 * (math.inf if training.max_hours is None else training.max_hours)
        return limit - self.reading_s - self.elapsed_s - self.step_s

    def extend(self, epoch: int, elapsed_s: float) -> None:
        """A finished training goes on: rate, patience and limits count from here."""
        self.patience_from = self.extended_epoch = epoch
        self.extended_s = elapsed_s
        self.time_is_up, self.last_step = False, None

    def forget_choice(self) -> None:
        """Earlier epochs were ranked by fewer validation cases, and are no measure for those to come."""
        self.val_cases, self.best_epoch, self.best_dice = None, -1, -1.0
        self.patience_from = self.epoch

    @property
    def waited(self) -> int:
        """Validations since the best one, or since the training was extended."""
        return sum(map(validated, self.rows[max(self.best_epoch + 1, self.patience_from) :]))

    @property
    def best(self) -> float:
        """The best value of what chooses the epoch; below 0 before any."""
        return -1.0 if self.best_epoch < 0 else float(self.rows[self.best_epoch][f"val_{self.monitor}"] or 0.0)

    def finished(self, recipe: Recipe) -> str:
        """Why the training is over, or nothing."""
        training = recipe.training
        if self.epoch >= training.most_epochs:
            return "its one epoch is done" if training.most_epochs == 1 else f"all {training.most_epochs} epochs done"
        if self.time_is_up and not self.step:  # the epoch that it cut is validated and over
            return f"the {training.max_hours:g} h allowed are over"
        if self.rows and self.waited >= training.most_patience:
            waited = counted(training.most_patience, "epoch" if training.validate_every == 1 else "validation")
            return f"no better validation {training.measure} for {waited}"
        if training.max_hours is not None and self.elapsed_s + self.epoch_s > self.allowed_s(training):
            return f"the next epoch would end after the {training.max_hours:g} h allowed"
        return ""


def validated(row: Mapping[str, float | None]) -> bool:
    """Whether the epoch of this row was validated."""
    return row["val_dice"] is not None


def learning_rate(recipe: Recipe, state: State, share_of_epoch: float) -> float:
    """The rate at a point of the training: warm up, then fall over the epochs, or over the time where that ends first.

    An extension of a finished run falls once more, from a third of the first rate, over what is added.

    Args:
        recipe: its `optimizer.lr`, `schedule` and `training`.
        state: the epoch under way and the time used before it.
        share_of_epoch: 0 to 1.
    """
    training, schedule = recipe.training, recipe.schedule
    warm_up = (state.epoch + share_of_epoch) / schedule.warmup_epochs if schedule.warmup_epochs else 1.0
    if state.last_step is None:
        progress = _progress(training, state, share_of_epoch)
    else:  # the hours end within the first epoch
        progress = min(1.0, state.step / state.last_step)
        warm_up = max(warm_up, progress / SHORT_WARM_UP)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "poly": (1 - progress) ** schedule.power,
        "constant": 1.0,
    }[schedule.kind]
    if state.extended_epoch and schedule.kind != "constant":
        factor *= EXTENDED
    factor *= max(1e-2, min(1.0, warm_up))
    return recipe.optimizer.lr * factor


def _progress(training: Training, state: State, share_of_epoch: float) -> float:
    """How much of the training is over, 0 to 1, since it began or was extended."""
    length = max(training.length - state.extended_epoch, 1e-9)
    done, share = (state.epoch - state.extended_epoch) / length, 1 / length
    if training.max_hours is not None:
        limit = max(state.allowed_s(training) - state.extended_s, 1e-9)
        done = max(done, (state.elapsed_s - state.extended_s) / limit)
        share = max(share, state.epoch_s / limit)
    return min(1.0, max(0.0, done + share * share_of_epoch))
