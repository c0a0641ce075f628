"""A run folder told to a tracker as it grows: its settings first, a row of metrics.csv an epoch, summary.json at the end.

Only settings, numbers and names of networks and classes are told: no image, mask or weight, no id of a case, no place.
All of it is read from the files of the run, which are written first and stay whole whatever becomes of the tracker.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulna.errors import Interrupted, printable
from ulna.evaluation import figures
from ulna.inference.fold_runs import is_cross_validation, run_name
from ulna.system.files import write_text
from ulna.system.names import PLAN_FILE, RUN_FILE
from ulna.system.passed_on import without_place
from ulna.system.reading import read_json_object, read_yaml
from ulna.system.signals import Stopped
from ulna.system.trackers import PARENT, Tracker
from ulna.training.checkpoint import METRICS
from ulna.training.state import State
from ulna.version import version

log = logging.getLogger("ulna")

TRACKING_FILE = (
    "tracking.json"  # in a run folder: the run of the tracker that it is, so that one that goes on goes on there
)
_UNTOLD = ("study", "training.test")  # of a recipe: what is not about this training, and ids of cases
_FACTS = (
    "parameters",
    "epochs",
    "best_epoch",
    "val_dice",
    "val_iou",
    "training_seconds",
    "wall_seconds",
    "peak_memory_mb",
)


class Tracked:
    """A folder and the run of a tracker that stands for it; without a tracker nothing happens.

    Args:
        tracker: or None.
        folder: of a training, of a cross-validation or of a study.
        experiment: under which it is found.
        name: of the run.
        parent: what it is a part of.
    """

    def __init__(
        self, tracker: Tracker | None, folder: Path, experiment: str, name: str, parent: Tracked | None = None
    ) -> None:
        self.tracker, self.folder, self.experiment, self.name = tracker, folder, experiment, name
        self.parent, self.run = parent, ""
        self._told, self._whole, self._failed = 0, False, False  # epochs; all of it; something was not taken

    @classmethod
    def training(cls, tracker: Tracker | None, folder: Path, data: Path) -> Tracked:
        """That of a run folder: below its cross-validation, if it is a fold."""
        experiment, above = data_name(data), folder.resolve().parent
        folds = cls(tracker, above, experiment, above.name) if is_cross_validation(above) else None
        return cls(tracker, folder, experiment, run_name(folder), folds)

    def begin(self) -> None:
        """Begin it where it has not begun."""
        self._try(lambda tracker: None)

    def epochs(self) -> None:
        """Tell the rows of metrics.csv that were not told yet."""
        if not self._failed:
            self._try(self._tell_epochs)

    def figures(self, values: Mapping[str, Any] | None = None, *, once: bool = False) -> None:
        """Tell the end: all rows, and what stands in summary.json, or these values; `once`: unless that was told before."""

        def tell(tracker: Tracker) -> None:
            if once and self._whole:
                return
            self._tell_epochs(tracker)
            summary = self.folder / "summary.json"
            tracker.numbers(self.run, figures_of(read_json_object(summary)) if values is None else values)
            tracker.end(self.run, "FINISHED")
            self._whole = True
            self._keep(tracker)

        self._try(tell)  # also where it failed on the way: it may answer again

    @contextmanager
    def active(self) -> Iterator[None]:
        """Begin it, and tell how what stands in the block ends."""
        self._try(lambda tracker: tracker.go_on(self.run))
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, Interrupted | Stopped | KeyboardInterrupt) else "FAILED"
            if not self._failed:
                self._try(lambda tracker: tracker.end(self.run, status))
            raise

    def _try(self, tell: Callable[[Tracker], None]) -> None:
        """What a tracker does not take is said and left: no training ends for it."""
        if self.tracker is None:
            return
        try:
            self._begin(self.tracker)
            tell(self.tracker)
        except self.tracker.errors as error:
            self._failed = True
            # without its text, which may name places: this line stands in log.txt
            log.warning("tracking: %s was not told (%s); the files are whole", self.name, type(error).__name__)

    def _begin(self, tracker: Tracker) -> None:
        """Begin the run of the tracker, or go on with the one that stands for this folder."""
        if self.run:
            return
        path = self.folder / TRACKING_FILE
        stored = read_json_object(path) if path.exists() else {}
        run, told = stored.get(tracker.name), stored.get("epochs")
        if isinstance(run, str) and isinstance(told, int) and tracker.has(run):
            self.run, self._told, self._whole = run, told, stored.get("whole") is True
            return
        tags = {"ulna": version("ulna")}
        if self.parent is not None:
            self.parent._begin(tracker)
            tags[PARENT] = self.parent.run
        self.run = tracker.begin(self.experiment, self.name, settings_of(self.folder), tags)
        self._keep(tracker)

    def _tell_epochs(self, tracker: Tracker) -> None:
        rows = _rows(self.folder / "metrics.csv")
        for number, row in enumerate(rows[self._told :], start=self._told + 1):
            tracker.numbers(self.run, {key: value for key, value in row.items() if key != "epoch"}, number)
        if len(rows) > self._told:
            self._told = len(rows)
            self._keep(tracker)

    def _keep(self, tracker: Tracker) -> None:
        stored = {tracker.name: self.run, "epochs": self._told, "whole": self._whole}
        write_text(self.folder / TRACKING_FILE, json.dumps(stored))


class Curves:
    """The picture of a training: drawn while it goes on, but no sooner than `PAUSE_S` after the one before, and at its end.

    A drawing takes half a second, as long as an epoch of a small data set.

    Args:
        folder: of the run.
    """

    PAUSE_S = 10.0

    def __init__(self, folder: Path) -> None:
        self.path = folder / "figures" / "curves.png"
        self._drawn: list[dict[str, float | None]] = []
        self._at = -math.inf

    def draw(self, state: State, *, ended: bool = False) -> None:
        """Draw the epochs so far, where there are new ones and it is time."""
        if state.rows != self._drawn and (ended or time.monotonic() - self._at >= self.PAUSE_S):
            figures.curves(state.rows, self.path, monitor=state.monitor)
            self._drawn, self._at = [dict(row) for row in state.rows], time.monotonic()


def record_epoch(folder: Path, state: State, tracked: Tracked, curves: Curves) -> None:
    """metrics.csv and the curves, after every epoch; cells are empty where an epoch was not validated."""
    cells = [["" if (value := row[name]) is None else repr(value) for name in METRICS] for row in state.rows]
    write_text(folder / "metrics.csv", "\n".join(map(",".join, [METRICS, *cells])) + "\n")
    curves.draw(state)
    tracked.epochs()


def begin_folds(tracker: Tracker | None, folder: Path, data: Path) -> None:
    """Begin the run of a cross-validation before its folds, which as processes would each begin one."""
    Tracked(tracker, folder, data_name(data), folder.resolve().name).begin()


def tell_folds(tracker: Tracker | None, folder: Path, data: Path) -> None:
    """Tell the figures over all folds of a cross-validation that is finished."""
    Tracked(tracker, folder, data_name(data), folder.resolve().name).figures()


def data_name(data: Path) -> str:
    """A data set as the experiment of its trainings."""
    return printable(data.resolve().name.removesuffix(".npz"))


def settings_of(folder: Path) -> dict[str, str]:
    """Path of a field -> its value, of the recipe of a run and the choices of its plan; none of a study or of folds."""
    settings: dict[str, str] = {}
    if (folder / RUN_FILE).exists():
        settings |= _flat(read_yaml(folder / RUN_FILE))
    if (folder / PLAN_FILE).exists():
        plan = read_yaml(folder / PLAN_FILE)
        settings |= _flat({"plan": {name: plan.get(name) for name in ("spatial_dims", "patch", "batch", "spacing")}})
    return settings


def _flat(fields: Mapping[str, Any], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in fields.items():
        place = f"{path}{key}"
        if place in _UNTOLD or value is None:
            continue
        found |= _flat(value, f"{place}.") if isinstance(value, Mapping) else {plain(place): _text(value)}
    return found


def _text(value: Any) -> str:
    """A setting without the folders of an absolute path in it, such as module:/home/me/net.py:Net."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return ":".join(map(without_place, str(value).split(":")))


def figures_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in summary.json: means over the cases kept aside, of all and by class, and facts of the training."""
    part = summary["evaluated_on"]
    scores = summary[part]
    values = {f"{part}/{measure}": of.get("mean") for measure, of in scores["mean"].items() if isinstance(of, Mapping)}
    for name, of_class in scores["classes"].items():
        values |= {f"{part}/{plain(name)}/{m}": of.get("mean") for m, of in of_class.items() if isinstance(of, Mapping)}
    return {**{name: summary.get(name) for name in _FACTS}, **values}


def plain(name: str) -> str:
    """A name as MLflow takes it.

    Example:
        >>> plain("tumour (T1/T2)")
        'tumour _T1_T2_'
    """
    return re.sub(r"[^\w .-]", "_", name)[:200].strip(". ") or "_"


def _rows(path: Path) -> list[dict[str, float]]:
    """The numbers of metrics.csv; an empty cell is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
