"""A study told to a tracker: every training that is done, below a run that has the means of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulna.study.jobs import Job
from ulna.study.outcome import Outcome
from ulna.system.trackers import Tracker
from ulna.training.tracking import Tracked, plain


class TrackedStudy:
    """The trainings of a study, told by the study itself as they end: one process writes, however many train.

    Args:
        tracker: or None.
        folder: of the study; its name is that of the experiment.
    """

    def __init__(self, tracker: Tracker | None, folder: Path) -> None:
        self.tracker = tracker
        name = folder.resolve().name
        self.own = Tracked(tracker, folder, name, name)

    def training(self, job: Job) -> None:
        """Tell a training that is done, unless it was told before; one of other programs is told by its means alone."""
        if not job.external:
            Tracked(self.tracker, job.run, self.own.experiment, job.name, self.own).figures(once=True)

    def study(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        """Tell the means of the networks, and of the trainings those that were not told yet."""
        for job in jobs:
            if job.done:
                self.training(job)
        means = {
            f"{plain(model)}/{measure}": found.mean
            for model, of in outcome.described.items()
            for measure, found in of.items()
        }
        self.own.figures(means)
