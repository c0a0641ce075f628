"""Each case against the others: channels, dimensions, units, types, orientations, spacings, names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ulna.data.layout.classes import summarise_ids
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.orientation import PLANES, codes, world_of
from ulna.data.quality.scan import CaseStats
from ulna.errors import Problem, counted, listed

_FAR = 10  # times the median spacing: a wrong unit, most likely


def compare_images(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> None:
    """Channels and dimensions that differ; types that differ; images that say nothing."""
    read = [one for one in scans if one.size]
    if not read:
        return
    by_id = {case.id: case for case in dataset.cases}
    declared = dataset.channel_names
    usual = len(declared) if declared else _usual([one.channels for one in read])
    whose = "dataset.json names" if declared else "most cases have"
    dims = _usual([one.spatial_dims for one in read])
    for one in read:
        where = str(by_id[one.case].images[0])
        if one.channels != usual:
            what = f"has {counted(one.channels, 'channel')}, {whose} {usual}"
            problems.append(Problem(where, what, "give every case the same channels, or take the case out"))
        if one.spatial_dims != dims:
            what = f"is {one.spatial_dims}D, most cases are {dims}D"
            problems.append(Problem(where, what, "keep 2D and 3D cases in two data sets"))
    if all(one.constant for one in read):
        what = f"every image is constant, for example {read[0].case}: {read[0].image[0].min:g}"
        problems.append(Problem(str(dataset.root), what, "export the images again"))
    if dims == 3 and usual > 1 and not declared and len(by_id[read[0].case].images) == 1:
        notes.append(
            f"a fourth axis of {usual} is read as channels; name them in dataset.json, or save one volume a file"
        )
    kinds = Counter(one.dtype for one in read)
    if {"uint8", "uint16"} <= set(kinds):
        rarer = min(("uint8", "uint16"), key=lambda kind: kinds[kind])
        cases = [one.case for one in read if one.dtype == rarer]
        notes.append(f"{summarise_ids(cases)}: of type {rarer}, others are not; their values may lie on another scale")


def compare_grids(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> None:
    """Units, spacings and orientations that differ from those of the other cases."""
    read = [one for one in scans if one.size]
    units = Counter(one.unit for one in read)
    if len(units) > 1:
        example = next(one.case for one in read if one.unit == "px")
        what = f"{counted(units['mm'], 'case')} with a spacing in mm, {units['px']} with none (for example {example})"
        problems.append(Problem(str(dataset.root), what, "state the spacing in all files or in none"))
    elif read and units["mm"]:
        steps = {one.case: float(np.prod(one.spacing)) ** (1 / one.spatial_dims) for one in read}
        median = float(np.median(list(steps.values())))
        far = [case for case, step in steps.items() if not 1 / _FAR < step / median < _FAR]
        if far:
            notes.append(
                f"{summarise_ids(far)}: has a spacing of {steps[far[0]]:.3g} mm, the others about {median:.3g}; see its unit"
            )
    assumed = [one.case for one in read if one.affine is not None and not one.oriented]
    if assumed and any(one.oriented for one in read):
        what = "states no orientation, others do; what its format assumes is used, and left and right may be exchanged"
        notes.append(f"{summarise_ids(assumed)}: {what}")
    planes: dict[str, list[str]] = {}
    turns: dict[str, list[str]] = {}
    for one in read:
        if one.affine is not None:
            affine = np.array(one.affine)
            turns.setdefault(codes(affine, one.spatial_dims), []).append(one.case)
            if one.spatial_dims == 2:
                planes.setdefault(PLANES[world_of(affine, 2)], []).append(one.case)
    if len(planes) > 1:
        rarest, counts = _rarest(planes)
        notes.append(f"{rarest}: lies in another plane than most ({counts}); one network sees them all alike")
    elif len(turns) > 1:
        rarest, counts = _rarest(turns)
        used = "every image is turned to RAS for the network, and its answer back"
        notes.append(f"{rarest}: is stored along other axes than most ({counts}); {used}")


def _rarest(kinds: Mapping[str, list[str]]) -> tuple[str, str]:
    """The cases of the rarest kind, and how many there are of each."""
    return summarise_ids(min(kinds.values(), key=len)), listed(f"{len(cases)} {kind}" for kind, cases in kinds.items())


def _usual(values: Sequence[int]) -> int:
    return Counter(values).most_common(1)[0][0]


def compare_names(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> None:
    """Ids that differ in case only overwrite each other on some file systems."""
    seen: dict[str, str] = {}
    for case in dataset.cases:
        other = seen.setdefault(case.id.casefold(), case.id)
        if other != case.id:
            what = f"has the id {case.id!r}, which differs from {other!r} in upper and lower case only"
            problems.append(Problem(str(case.images[0]), what, "rename one of them"))


def compare_palettes(dataset: Dataset, scans: Sequence[CaseStats], problems: list[Problem], notes: list[str]) -> None:
    """Label maps whose palettes draw one class in two colours: a program numbered the colours of each by itself."""
    drawn: dict[int, tuple[str, tuple[int, int, int]]] = {}
    by_id = {case.id: case for case in dataset.cases}
    for one in scans:
        for number, colour in one.palette.items():
            first, usual = drawn.setdefault(number, (one.case, colour))
            if colour != usual:
                what = f"draws the class {number} in the colour {colour}, {first} in {usual}"
                remedy = "save the class numbers as grey values, without a palette; the colours may be the classes"
                problems.append(Problem(str(by_id[one.case].label), what, remedy))
                break
