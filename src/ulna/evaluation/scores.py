"""The measures of cases that come one after the other: a row per case and class, and what a summary says of all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import bounded, holding
from ulna.errors import UsageError, counted
from ulna.evaluation.boxes import Located, locate
from ulna.evaluation.calibration import calibration_scores
from ulna.evaluation.choice import Choice, usual
from ulna.evaluation.further import further_scores
from ulna.evaluation.intervals import told_mean
from ulna.evaluation.means import finite, summarise, tolerance_of
from ulna.evaluation.metrics import CALIBRATION, MEASURES, Score, check_labels, mask_of, mean_known, score_in_box
from ulna.evaluation.needs import check_structures
from ulna.evaluation.objects import BySize, Matches
from ulna.evaluation.pair import Pair
from ulna.evaluation.surfaces import Mask
from ulna.evaluation.units import Across, pooled, slices_of
from ulna.recipe import Labels
from ulna.system.files import cell, write_text


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        rows: one per case and class: case, class, tp, fp, fn and every measure; NaN where neither reference nor prediction
            holds the class (and for sensitivity where the reference does not), and for a measure that does not apply to it.
        summary: cases, unit, tolerance, missing cases, and for every class and over all (`mean`) each measure's mean over
            cases with its 95 % bootstrap interval and `n`, the cases that count for it; `both_empty`, those that count for
            nothing; `pooled` has the overlap measures of all cases as one; `interval_note` where some intervals are not to
            be trusted; `measures`, which apply and why; `lesions`, objects by size; `subgroups`, by groups.json;
            `not_scored`, cases that `max_ram` has no place for, and why: they are in no mean.
        report: the page, where one was written.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    report: Path | None = None

    def __repr__(self) -> str:
        cases = counted(self.summary["cases"], "case")
        missing = f", {len(self.summary['missing'])} without prediction" if self.summary.get("missing") else ""
        left = f", {len(self.summary['not_scored'])} not scored" if self.summary.get("not_scored") else ""
        return f"Evaluation: Dice {told_mean(self.summary['mean']['dice'])} over {cases}{missing}{left}"

    def case_dice(self, case: str) -> float:
        """Mean Dice over the classes that count for one case; NaN if none does."""
        return mean_known([row["dice"] for row in self.rows if row["case"] == case])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{k: finite(v) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows]
        page = {} if self.report is None else {"report": str(self.report)}
        return {"summary": self.summary, "rows": rows, **page}

    def write(self, folder: Path) -> None:
        """metrics.csv and summary.json."""
        self.write_rows(folder / "metrics.csv")
        write_text(folder / "summary.json", json.dumps(self.summary, indent=1, allow_nan=False))

    def write_rows(self, path: Path) -> None:
        """A table with a row per case and class."""
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in self.rows)
        write_text(path, text.getvalue())


class Scores:
    """The measures of cases that come one after the other; none of their masks is kept.

    Args:
        labels: the classes.
        empty_score: what a class that neither prediction nor reference holds counts, where a recipe says so; else it counts
            for nothing.
        by: what is scored as one, of `UNITS`.
        across: the axis that slices lie across; None: that of the largest spacing.
        groups: case -> group.
        choice: which measures apply; None: overlap and surface.
    """

    def __init__(
        self,
        labels: Labels,
        empty_score: float | None = None,
        *,
        by: str = "case",
        across: Across | None = None,
        groups: Mapping[str, str] | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.labels, self.empty_score, self.by, self.across, self.groups = labels, empty_score, by, across, groups or {}
        self.choice = usual(labels) if choice is None else choice
        self._rows: list[dict[str, Any]] = []
        self._sizes: dict[str, BySize] = {}  # of the objects of every structure
        self._kinds: dict[tuple[str, int], str] = {}  # unit and dimensions -> the first case that has them

    def add(self, pair: Pair) -> float:
        """Measure a case; its mean Dice over the classes (of slices: and over them) that count, NaN if none does.

        Raises:
            UsageError: if it has other dimensions than those before, or lengths in another unit.
        """
        self._check_kind(pair)
        with holding(pair.nbytes):
            rows = self._rows_of(pair)
        self._rows += rows
        return mean_known([row["dice"] for row in rows])

    def _rows_of(self, pair: Pair) -> list[dict[str, Any]]:
        if self.by == "slice":
            return [
                row
                for one in slices_of(pair.prediction, pair.reference, pair.volume, self.across)
                for row in self._measured(
                    {"case": pair.case, "slice": one.number}, Pair(pair.case, one.prediction, one.reference, one.volume)
                )
            ]
        return self._measured({"case": pair.case}, pair)

    def add_rows(self, rows: list[dict[str, Any]], unit: str, dims: int) -> None:
        """Take over the rows of another evaluation, of images of so many dimensions with lengths in this unit.

        Measures that not all of them have are left out.
        """
        if rows:
            self._kinds.setdefault((unit, dims), rows[0]["case"])
        both = [*self._rows, *rows]
        common = set.intersection(*({*row} for row in both)) if both else set()
        self._rows = [{name: value for name, value in row.items() if name in common} for row in both]

    def _measured(self, whose: dict[str, Any], pair: Pair) -> list[dict[str, Any]]:
        volume, multilabel, names = pair.volume, self.labels.multilabel, self.labels.foreground
        surface = self.by != "group" and self.choice.has("surface")
        rows: list[dict[str, Any]] = []
        objects_of: list[tuple[str, Matches]] = []
        absent, further = dict.fromkeys(MEASURES, math.nan), dict.fromkeys(self.choice.further, math.nan)
        check_labels(pair.prediction, pair.reference, len(names), multilabel=multilabel)

        def masks_of(one: Located) -> list[Mask]:
            return [one.mask(labels, multilabel=multilabel) for labels in (pair.prediction, pair.reference)]

        where = locate(pair.prediction, pair.reference, len(names), multilabel=multilabel)
        if bounded():
            found_as = {names[one.number - 1]: one for one in where}
            voxels = 0 if pair.probabilities is None else math.prod(volume.size)
            check_structures(
                volume.path or pair.case, found_as, masks_of, self.choice.families, surface=surface, voxels=voxels
            )
        for one in where:
            name, families = names[one.number - 1], self.choice.families[names[one.number - 1]]
            masks = masks_of(one)
            on: dict[str, Any] = {"spacing": volume.spacing, "empty_score": self.empty_score}
            score = score_in_box(
                masks[0], masks[1], one.counts, volume.size, tolerance=tolerance_of(volume), surface=surface, **on
            )
            in_box = [family for family in families if family != "calibration"]
            objects = pair.objects and (pair.objects[0][one.box], pair.objects[1][one.box])
            found, matches = further_scores(masks[0], masks[1], in_box, objects=objects, size=volume.size, **on)
            if "calibration" in families:
                found |= self._calibrated(pair, one.number)
            if matches is not None:
                objects_of.append((name, matches))
            rows.append({**whose, "class": name, **absent, **score, **further, **found})
        for name, matches in objects_of:  # no sooner: a case that memory does not hold counts nowhere
            sizes = self._sizes.setdefault(name, BySize(volume.spatial_dims, volume.unit))
            sizes.add(matches, math.prod(volume.spacing))
        return rows

    def _calibrated(self, pair: Pair, number: int) -> Score:
        """Of all voxels, whatever the box of a structure."""
        if pair.probabilities is None:
            return dict.fromkeys(CALIBRATION, math.nan)
        masks = [mask_of(one, number, multilabel=self.labels.multilabel) for one in (pair.prediction, pair.reference)]
        return calibration_scores(pair.probabilities[number - 1], masks[0], masks[1])

    def evaluation(self, missing: Iterable[str] = ()) -> Evaluation:
        """What was measured so far; `missing` are references without a prediction."""
        unit, dims = next(iter(self._kinds), ("px", 2))
        rows = pooled(self._rows, self.groups, self.empty_score) if self.by == "group" else self._rows
        summary = summarise(rows, self.labels, unit, 2 if self.by == "slice" else dims, list(missing), self.empty_score)
        if self.by != "case":
            images = len({row["case"] for row in self._rows})
            summary |= {"by": self.by, "images": images}
        if self.by == "slice":
            alike = "slices of a volume are alike: intervals over slices are too narrow"
            summary["interval_note"] = "; ".join(note for note in (summary.get("interval_note"), alike) if note)
        if self.choice.further or self.choice.why:
            summary["measures"] = self.choice.to_json()
        if self._sizes:
            summary["lesions"] = {name: sizes.summary() for name, sizes in self._sizes.items()}
        return Evaluation(rows, summary)

    def _check_kind(self, pair: Pair) -> None:
        self._kinds.setdefault((pair.volume.unit, pair.volume.spatial_dims), pair.case)
        if len(self._kinds) > 1:
            (unit, dims), (other, other_dims) = self._kinds
            raise UsageError(
                f"{pair.case}: is {other_dims}D with lengths in {other}, {self._kinds[(unit, dims)]} is {dims}D in {unit}; "
                "evaluate them apart, or state the spacing in all files"
            )
