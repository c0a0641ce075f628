"""Everything that is wrong with a data set, at once: file, fault, remedy.

`check_dataset` reads every case once and then looks across the cases; training plans from the same scans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ulna.data.formats.dicom.choosing import parse_wishes
from ulna.data.formats.limits import holding
from ulna.data.formats.source import all_errors, condensed
from ulna.data.layout.classes import classes_found, summarise_ids
from ulna.data.layout.dataset import Dataset, split
from ulna.data.layout.splitting import Groups
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.pipeline.slices import coarsest_axis
from ulna.data.quality.consistency import compare_grids, compare_images, compare_names, compare_palettes
from ulna.data.quality.duplicates import find_duplicates
from ulna.data.quality.merging import MERGE_OBJECTS, missing_values, numbered_objects
from ulna.data.quality.needs import KEPT, checking_within
from ulna.data.quality.reading import scan_dataset
from ulna.data.quality.repair import Repair, check_target, repair
from ulna.data.quality.scan import TURNED, CaseStats
from ulna.data.quality.slices import SliceCount
from ulna.errors import DataError, Problem, UsageError, counted, listed, printable
from ulna.recipe import Labels


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        root: the data set.
        problems: what must be repaired, all of it.
        notes: what is worth knowing.
        scans: one per case, in the order of the data set.
        labels: the classes, declared or found; None where the label maps do not tell.
        copies: cases that show the same image, exactly or nearly; see `Dataset.grouped`.
        repair: what `check --fix` changed; None without it.
    """

    root: Path
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    scans: tuple[CaseStats, ...] = ()
    labels: Labels | None = None
    copies: Groups = ()
    repair: Repair | None = None

    @property
    def spatial_dims(self) -> int | None:
        """Of the data set, for `Dataset.of_dims`; None where no image could be read."""
        return max((one.spatial_dims for one in self.scans), default=0) or None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def raise_if_bad(self) -> None:
        """Raise one DataError with every problem, if there is any."""
        if self.problems:
            raise all_errors(self.problems, self.root)

    def slices_in_words(self) -> str:
        """How many slices labelled volumes have, for a person who would train a 2D network on them; empty for 2D images."""
        scans = [one for one in self.scans if one.slices]
        if not scans:
            return ""
        count = SliceCount(*map(sum, zip(*(one.slices[_coarsest(one)] for one in scans), strict=True)))
        return (
            f"slices across the largest spacing: {count.all:,} in {counted(len(scans), 'volume')}, "
            f"{count.full:,} hold a structure; "
            "--set planning.spatial_dims=2 trains a 2D network on them"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "root": str(self.root),
            "ok": self.ok,
            "cases": len(self.scans),
            "labels": self.labels.model_dump(mode="json") if self.labels else None,
            "problems": [problem._asdict() for problem in self.problems],
            "notes": list(self.notes),
            "surveys": [one.to_json() for one in self.scans],
            "repair": self.repair.to_json() if self.repair else None,
        }

    def __repr__(self) -> str:
        problems = counted(len(self.problems), "problem") if self.problems else "no problems"
        return printable(f"{self.root}: {counted(len(self.scans), 'case')}, {problems}")

    def __str__(self) -> str:
        lines = [repr(self)]
        lines += [f"  {problem}" for problem in condensed(self.problems, self.root)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _coarsest(one: CaseStats) -> int:
    """The stored axis of a volume with the largest spacing."""
    if one.affine is None:
        return coarsest_axis(one.spacing, oriented=False)
    turn = to_canonical(np.array(one.affine), 3)
    axis = coarsest_axis(turn.order(one.spacing), oriented=True)
    return turn.axes[axis] if turn.axes else axis


def check(
    data: Path | str,
    /,
    *,
    fix: Path | str | None = None,
    max_pixels: int | None = None,
    max_ram: float | None = None,
    series: Sequence[str] = (),
    dicom: Sequence[str] = (),
) -> Report:
    """Read every case of a data set to its last byte and list every problem at once.

    Faults of the folder (names, JSON, splits) and of the files are told together.

    Args:
        data: a data set in any known layout: a folder, or an .npz file.
        fix: write a repaired copy to this new folder, with a list of what was changed; the originals stay as they are.
        max_pixels: refuse images of more pixels or voxels than this, by what their headers declare. Left out, pictures may
            have a thousand million, and volumes what the memory holds.
        max_ram: GB of memory that the process may take, ulna itself included: a case that would take more is a problem
            among the others, with what it needs at least. Left out, an image may unpack to half of what the machine has.
        series: of DICOM: the UID or the description of the series to take in every case, or of several that are its channels;
            for training write it into dicom.json beside the data.
        dicom: what is done about odd slices: tilt=resample|refuse, duplicates=refuse|first, gaps=refuse|interpolate,
            mixed=refuse|largest; dicom.json says it for training.

    Returns:
        What was found; with `fix`, what is found in the copy, and in `repair` what was changed and left out.

    Raises:
        UsageError: with `fix`, if the folder is there already, or no case can be repaired; if a bound is not above 0, or
            leaves no place for any image.

    Example:
        ulna check data/nuclei --fix data/nuclei-fixed
    """
    wishes = parse_wishes(series, dicom)
    if fix is not None:
        check_target(Path(fix), Path(data))
    with checking_within(max_pixels, max_ram):
        try:
            dataset, problems = Dataset.scan(data, wishes=wishes)
        except DataError as error:
            return Report(Path(data), problems=error.problems)
        with holding(KEPT * len(dataset.cases)):
            found = check_dataset(dataset)
            done = None if fix is None else repair(dataset, found.scans, found.copies, problems, Path(fix))
        if fix is not None:
            return replace(check(fix, max_pixels=max_pixels, max_ram=max_ram), repair=done)
    own = [problem for problem in found.problems if problem not in problems]
    return replace(found, problems=(*problems, *own), notes=(*found.notes, *_too_few(dataset, found)))


def _too_few(dataset: Dataset, found: Report) -> list[str]:
    """Why no training could begin, though the cases are sound: fewer than two labelled ones, or one patient."""
    if not dataset.labelled:  # every image without a label map is told
        return []
    try:
        split(dataset.grouped(found.copies), 0)
    except UsageError as error:
        return [f"{error}; predicting and scoring need no more"]
    return []


def check_dataset(dataset: Dataset) -> Report:
    """Read every case once, then compare the cases with each other and with what is declared."""
    scans = scan_dataset(dataset)
    problems = [problem for one in scans for problem in one.problems]
    notes = sorted([*dataset.notes, *_reader_notes(scans)], key=lambda note: TURNED not in note)
    labels = _labels(dataset, scans, problems, notes)
    for compare in (compare_images, compare_grids, compare_names, compare_palettes):
        compare(dataset, scans, problems, notes)
    copies = find_duplicates(dataset, scans)
    problems, notes = problems + copies.problems, notes + copies.notes
    return Report(dataset.root, tuple(problems), tuple(notes), tuple(scans), labels, copies.groups)


def _reader_notes(scans: Sequence[CaseStats]) -> list[str]:
    found: dict[str, list[str]] = {}
    for one in scans:
        for note in dict.fromkeys(one.notes):
            found.setdefault(note, []).append(one.case)
        if one.two_valued_255:
            found.setdefault("has label values 0 and 255, read as 0 and 1", []).append(one.case)
    return [f"{summarise_ids(cases)}: {note}" for note, cases in found.items()]


def _labels(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> Labels | None:
    """The declared classes, else those that the label maps hold."""
    labelled = [one for one in scans if one.label_values]
    if not labelled:
        return dataset.labels
    total: Counter[int] = Counter()
    for one in labelled:
        total.update(one.label_values)
    empty = [one.case for one in labelled if set(one.label_values) <= {0}]
    if not set(total) - {0}:
        what = f"no case of {len(labelled)} has any foreground: every label value is 0"
        problems.append(Problem(str(dataset.root), what, "export the label maps again, 1..K are the classes"))
        return dataset.labels
    if empty:
        notes.append(f"{summarise_ids(empty)}: all background")
    if dataset.labels is not None:
        names = dataset.labels.foreground
        absent = [name for value, name in enumerate(names, start=1) if value not in total]
        if dataset.labels.merges:
            absent = []
            missing_values(dataset, labelled, problems, notes)
        if absent:
            names_of = "the class" if len(absent) == 1 else "the classes"
            notes.append(f"{names_of} {listed(map(repr, absent))} occur{'s' if len(absent) == 1 else ''} in no case")
        return dataset.labels
    if said := numbered_objects(scans):
        problem = Problem(str(dataset.root), said, MERGE_OBJECTS)
    try:
        found = classes_found({one.case: _as_stored(one) for one in labelled}, dataset.root)
    except DataError as error:
        problems += [problem] if said else error.problems
        return None
    if said:
        notes.append(f"{said}, and every number is taken for a class; {MERGE_OBJECTS}")
    return found


def _as_stored(one: CaseStats) -> dict[int | float, int]:
    return {255 if value and one.two_valued_255 else value: count for value, count in one.label_values.items()}
