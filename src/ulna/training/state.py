"""Where a training stands, and the learning rate there."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ulna.recipe import Recipe
from ulna.training.stopwatch import PHASES


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
            return f"all {training.most_epochs} epochs done"
        if self.rows and self.waited >= training.most_patience:
            what = "epochs" if training.validate_every == 1 else "validations"
            return f"no better validation {training.measure} for {training.most_patience} {what}"
        if training.max_hours is not None and self.elapsed_s + self.epoch_s > training.max_hours * 3600:
            return f"the next epoch would end after the {training.max_hours:g} h allowed"
        return ""


def validated(row: Mapping[str, float | None]) -> bool:
    """Whether the epoch of this row was validated."""
    return row["val_dice"] is not None


def learning_rate(recipe: Recipe, state: State, share_of_epoch: float) -> float:
    """The rate at a point of the training: warm up, then fall over the epochs, or over the time where that ends first.

    Args:
        recipe: its `optimizer.lr`, `schedule` and `training`.
        state: the epoch under way and the time used before it.
        share_of_epoch: 0 to 1.
    """
    training, schedule = recipe.training, recipe.schedule
    done, share = state.epoch / training.length, 1 / training.length
    if training.max_hours is not None:
        limit = training.max_hours * 3600
        if state.elapsed_s / limit > done:
            done = state.elapsed_s / limit
        share = max(share, state.epoch_s / limit)
    progress = min(1.0, done + share * share_of_epoch)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "poly": (1 - progress) ** schedule.power,
        "constant": 1.0,
    }[schedule.kind]
    if state.epoch < schedule.warmup_epochs:
        factor *= max(1e-2, (state.epoch + share_of_epoch) / schedule.warmup_epochs)
    return recipe.optimizer.lr * factor
