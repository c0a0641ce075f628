"""Slices in space: sorted along their normal, checked against each other, and the one grid that they make.

File names and instance numbers say nothing about the place of a slice, nor does SpacingBetweenSlices: positions do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.fixes import Fixes, asked
from ulna.data.formats.dicom.header import Header, Slice
from ulna.data.formats.source import data_error
from ulna.errors import counted

_SAME_PLACE = 0.05  # of the usual distance
_REGULAR = 0.1  # of a slice's distance: positions are rounded in many files
_STRAIGHT = 0.1  # of a pixel
_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_LOCALISER = {"LOCALIZER", "SCOUT"}


class Frame(NamedTuple):
    """One slice: a frame of a file."""

    header: Header
    number: int

    @property
    def at(self) -> Slice:
        """Where it lies."""
        return self.header.slices[self.number]

    @property
    def name(self) -> str:
        """For a message."""
        return self.header.path.name + (f" (frame {self.number + 1})" if len(self.header.slices) > 1 else "")


@dataclass(frozen=True)
class Stack:
    """A series as one grid, whose axes are i (along a row), j (along a column) and k (along the normal).

    Args:
        frames: in the order of their places.
        size: voxels along i, j, k.
        spacing: along i, j, k, in mm; None where a single picture states none.
        affine: (4, 4), voxel index -> RAS mm; None for a single picture without a place.
        sources: slice k -> (a, b, weight of b): the frames that it is made of.
        slices: frame -> the slice k that is nearest to it.
        shifts: frame -> how far (in pixels along i and j) its first pixel lies from that of the grid.
        notes: what was passed over or changed.
    """

    frames: tuple[Frame, ...]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: NDArray[np.float64] | None
    sources: tuple[tuple[int, int, float], ...]
    slices: tuple[int, ...]
    shifts: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()

    @property
    def straight(self) -> bool:
        """Whether every frame lies on the grid as it is."""
        return not any(map(any, self.shifts)) and all(source == (k, k, 0.0) for k, source in enumerate(self.sources))


def stack(headers: Sequence[Header], fixes: Fixes, where: Path) -> Stack:
    """The grid of the files of one series.

    Args:
        where: the folder, named first in messages.

    Raises:
        DataError: naming folder and file, if they make no grid.
    """
    for header in headers:
        if header.kind != "image":
            raise data_error(header.path, f"is no image but {_ARTICLES.get(header.kind, 'something else')}", _IMAGE)
        for what, remedy in header.faults:
            raise data_error(header.path, what, remedy)
    frames = [Frame(header, index) for header in headers for index in range(len(header.slices))]
    if not frames:
        raise data_error(where, "holds no DICOM image", "check the path")
    frames, notes = _of_one_kind(frames, fixes, where)
    first = frames[0]
    if len(frames) == 1 and (first.at.position is None or first.at.orientation is None):
        return _picture(first, notes)
    for frame in frames:
        for what, value in (
            ("ImagePositionPatient", frame.at.position),
            ("ImageOrientationPatient", frame.at.orientation),
            ("PixelSpacing", frame.at.spacing),
        ):
            if value is None:
                told = f"states no {what}, so nobody can say where its slice lies"
                raise data_error(where, f"{frame.name} {told}", "export the series with the places of its slices")
    return _placed(frames, notes, fixes, where)


_IMAGE = "give a series of images"
_ARTICLES = {
    "seg": "a segmentation (SEG)",
    "rtstruct": "a set of structures (RTSTRUCT)",
    "directory": "an index (DICOMDIR)",
}


def _picture(frame: Frame, notes: list[str]) -> Stack:
    """A single picture without a place in the patient."""
    size = (frame.header.columns, frame.header.rows, 1)
    at = frame.at.spacing
    spacing = None if at is None else (at[1], at[0], 1.0)
    return Stack((frame,), size, spacing, None, ((0, 0, 0.0),), (0,), ((0.0, 0.0),), tuple(notes))


def _kind_of(frame: Frame) -> tuple[object, ...]:
    """What the slices of a volume share."""
    header, at = frame.header, frame.at
    return (
        header.modality,
        (header.columns, header.rows),
        None if at.orientation is None else tuple(round(value, 2) + 0.0 for value in at.orientation),
        None if at.spacing is None else tuple(float(f"{value:.3g}") for value in at.spacing),
        header.photometric,
        header.frame_of_reference,
    )


_DIFFERENCES = (
    "modalities",
    "sizes",
    "orientations",
    "pixel spacings",
    "photometric interpretations",
    "frames of reference",
)


def _of_one_kind(frames: list[Frame], fixes: Fixes, where: Path) -> tuple[list[Frame], list[str]]:
    """Without localisers; refuses slices that cannot lie on one grid, or takes the largest part of them."""
    notes: list[str] = []
    kept = [frame for frame in frames if not _LOCALISER & set(frame.header.image_type)]
    if kept and len(kept) < len(frames):
        gone = next(frame for frame in frames if _LOCALISER & set(frame.header.image_type))
        notes.append(f"{len(frames) - len(kept)} localisers among the slices are left out, for example {gone.name}")
        frames = kept
    kinds: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        kinds.setdefault(_kind_of(frame), []).append(frame)
    if len(kinds) == 1:
        return frames, notes
    first, other = list(kinds)[:2]
    what = next(name for name, a, b in zip(_DIFFERENCES, first, other, strict=True) if a != b)
    names = f"{kinds[first][0].name} and {kinds[other][0].name}"
    if fixes["mixed"] == "refuse":
        remedy = f"sort the files apart, or take the largest part of them ({asked('mixed', 'largest')})"
        raise data_error(where, f"holds slices of several {what} in one series, such as {names}", remedy)
    largest = max(kinds.values(), key=len)
    left = len(frames) - len(largest)
    notes.append(
        f"slices of several {what} in one series: the {len(largest)} of the largest part are taken, {left} left out"
    )
    return largest, notes


def _placed(frames: list[Frame], notes: list[str], fixes: Fixes, where: Path) -> Stack:
    at = frames[0].at
    assert at.orientation is not None
    along_i, along_j = (np.array(at.orientation[n : n + 3]) for n in (0, 3))
    normal = np.cross(along_i, along_j)
    normal /= np.linalg.norm(normal)
    frames = sorted(frames, key=lambda frame: _along(frame, normal))
    frames = _without_doubles(frames, normal, notes, fixes, where)
    places = np.array([_along(frame, normal) for frame in frames])
    sources, slices, step = _slices(frames, places, notes, fixes, where)
    assert at.spacing is not None
    spacing = (at.spacing[1], at.spacing[0], step)
    origin = np.array(frames[0].at.position)
    moved = np.array([frame.at.position for frame in frames]) - origin
    shifts = np.stack([moved @ along_i / spacing[0], moved @ along_j / spacing[1]], axis=1)
    size = [frames[0].header.columns, frames[0].header.rows, len(sources)]
    if np.abs(shifts).max() <= _STRAIGHT:
        shifts[:] = 0.0
    else:
        most = float(np.linalg.norm(shifts * spacing[:2], axis=1).max())
        _check_tilt(most, places, notes, fixes, where)
        low, high = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
        origin = origin + low[0] * spacing[0] * along_i + low[1] * spacing[1] * along_j
        shifts -= low
        size[0] += int(high[0] - low[0])
        size[1] += int(high[1] - low[1])
    affine = np.eye(4)
    columns = (along_i * spacing[0], along_j * spacing[1], normal * step, origin)
    affine[:3] = _TO_RAS @ np.stack(columns, axis=1)
    between = frames[0].header.between
    if between is not None and len(frames) > 1 and abs(abs(between) - step) > 0.01 * step:
        notes.append(f"SpacingBetweenSlices says {between:g} mm; the positions say {step:.4g} mm, which is taken")
    pairs = tuple((float(i), float(j)) for i, j in shifts)
    return Stack(tuple(frames), (size[0], size[1], size[2]), spacing, affine, sources, slices, pairs, tuple(notes))


def _along(frame: Frame, normal: NDArray[np.float64]) -> float:
    return float(np.dot(normal, frame.at.position or ()))


def _without_doubles(
    frames: list[Frame], normal: NDArray[np.float64], notes: list[str], fixes: Fixes, where: Path
) -> list[Frame]:
    """One slice at every place."""
    if len(frames) == 1:
        return frames
    gaps = np.diff([_along(frame, normal) for frame in frames])
    usual = float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 1.0
    double = [n + 1 for n, gap in enumerate(gaps) if gap < _SAME_PLACE * usual]
    if not double:
        return frames
    a, b = frames[double[0] - 1].name, frames[double[0]].name
    count = len(frames) - len(double)
    if fixes["duplicates"] == "refuse":
        if len(frames) % count == 0 and len(frames) // count > 1 and len(double) > 1:
            several = f"holds {len(frames) // count} slices at each of {count} places (time points, echoes or copies)"
        else:
            several = f"holds {counted(len(double), 'slice')} where another lies already"
        remedy = f"sort them apart, or take the first at every place ({asked('duplicates', 'first')})"
        raise data_error(where, f"{several}, such as {a} and {b}", remedy)
    notes.append(f"left out: {counted(len(double), 'slice')} where another lies already, such as {b}")
    return [frame for n, frame in enumerate(frames) if n not in set(double)]


def _slices(
    frames: list[Frame], places: NDArray[np.float64], notes: list[str], fixes: Fixes, where: Path
) -> tuple[tuple[tuple[int, int, float], ...], tuple[int, ...], float]:
    """What every slice of the grid is made of, the slice of every frame, and the distance between slices."""
    count = len(frames)
    each = tuple((k, k, 0.0) for k in range(count)), tuple(range(count))
    if count == 1:
        thickness = frames[0].at.thickness
        if not thickness or thickness <= 0:
            notes.append("states no slice thickness; 1 mm is taken")
        return *each, thickness if thickness and thickness > 0 else 1.0
    step = float(places[-1] - places[0]) / (count - 1)
    off = np.abs(places - (places[0] + step * np.arange(count))).max()
    if off <= _REGULAR * step:
        if off > 0.01:
            notes.append(f"its slices lie up to {off:.2g} mm beside a regular grid")
        return *each, step
    gaps = np.diff(places)
    usual, widest = float(np.quantile(gaps, 0.25, method="lower")), int(gaps.argmax())
    missing = bool(gaps[widest] > 1.5 * usual)
    if fixes["gaps"] == "refuse":
        a, b = frames[widest].name, frames[widest + 1].name
        if missing:
            what = f"misses slices between {a} and {b}, which lie {gaps[widest]:.4g} mm apart, others {usual:.4g} mm"
        else:
            what = (
                f"has slices at distances from {gaps.min():.4g} to {gaps.max():.4g} mm (the widest between {a} and {b})"
            )
        remedy = f"export the whole series, or fill in between ({asked('gaps', 'interpolate')})"
        raise data_error(where, what, remedy)
    total = float(places[-1] - places[0])
    number = max(round(total / (usual if missing else float(np.median(gaps)))), 1) + 1
    step = total / (number - 1)
    sources = []
    for place in places[0] + step * np.arange(number):
        above = int(np.clip(np.searchsorted(places, place), 1, count - 1))
        weight = float(np.clip((place - places[above - 1]) / gaps[above - 1], 0, 1))
        sources.append((above - 1, above, 0.0 if weight < 1e-3 else 1.0 if weight > 1 - 1e-3 else weight))
    notes.append(f"{count} slices at uneven distances: {number} slices of {step:.4g} mm are interpolated")
    nearest = tuple(int(k) for k in np.rint((places - places[0]) / step))
    return tuple(sources), nearest, step


def _check_tilt(most: float, places: NDArray[np.float64], notes: list[str], fixes: Fixes, where: Path) -> None:
    angle = math.degrees(math.atan2(most, float(places[-1] - places[0])))
    what = f"has slices that are shifted against each other, by up to {most:.4g} mm (a gantry tilted by {angle:.3g} degrees)"
    if fixes["tilt"] == "refuse":
        raise data_error(where, what, f"resample it to a straight grid ({asked('tilt', 'resample')})")
    notes.append(f"{what}; it is resampled to a straight grid")
