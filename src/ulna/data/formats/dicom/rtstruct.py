"""RTSTRUCT: contours in the patient's coordinates as masks on the slices of a series.

The rules: a pixel belongs to a structure if its centre lies inside an odd number of its contours on that slice, so that a
contour in another is a hole, as what a keyhole encloses. A contour belongs to the slice that is nearest to it, at most half
the distance of two slices away. Contours of one or two points enclose nothing; they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.align import Series3D
from ulna.data.formats.dicom.header import read_dataset
from ulna.data.formats.dicom.naming import Named, code_names
from ulna.data.formats.dicom.polygons import fill
from ulna.data.formats.dicom.seg import Part
from ulna.data.formats.dicom.stack import Stack
from ulna.data.formats.source import AGAIN, data_error

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_FLAT = 0.5  # of the distance of slices: how far the points of a contour may lie from their plane


def regions_of(dataset: Any) -> list[Named]:
    """The structures that have at least one closed contour, in the order of their numbers."""
    closed = {
        int(item.get("ReferencedROINumber") or 0)
        for item in dataset.get("ROIContourSequence") or ()
        if any(str(contour.get("ContourGeometricType")) in _CLOSED for contour in item.get("ContourSequence") or ())
    }
    codes: dict[int, tuple[str, ...]] = {}
    for item in dataset.get("RTROIObservationsSequence") or ():
        label = item.get("ROIObservationLabel")
        names = code_names([item.get("RTROIIdentificationCodeSequence")]) + ((str(label),) if label else ())
        codes[int(item.get("ReferencedROINumber") or 0)] = names
    found = []
    for item in dataset.get("StructureSetROISequence") or ():
        number = int(item.get("ROINumber") or 0)
        if number in closed:
            found.append(
                Named(number, str(item.get("ROIName") or "").strip() or f"structure {number}", codes.get(number, ()))
            )
    return sorted(found)


def read_rtstruct(path: Path, stack: Stack, wanted: Callable[[Named], bool], notes: dict[str, None]) -> Iterator[Part]:
    """The wanted structures, slice by slice.

    Args:
        notes: what was dropped is added, with its number.

    Raises:
        DataError: if it is damaged, or its contours do not lie in the planes of the series.
    """
    if stack.affine is None:
        raise data_error(path, "holds contours in the patient's coordinates, and its image has no place there", AGAIN)
    dataset = read_dataset(path, pixels=False, tags=None)
    series = Series3D(stack)
    named = {one.number: one for one in regions_of(dataset)}
    shape = (stack.frames[0].header.rows, stack.frames[0].header.columns)
    dropped: Counter[str] = Counter()
    for item in dataset.get("ROIContourSequence") or ():
        number = int(item.get("ReferencedROINumber") or 0)
        if number not in named or not wanted(named[number]):
            continue
        by_frame: dict[int, dict[bytes, NDArray[np.float64]]] = {}
        for contour in item.get("ContourSequence") or ():
            if str(contour.get("ContourGeometricType")) not in _CLOSED:
                dropped["open contours and points"] += 1
                continue
            points = _points(contour, path)
            if len(points) < 3:
                dropped["contours of one or two points"] += 1
                continue
            heights = points @ series.normal
            if np.ptp(heights) > _FLAT * series.step:
                told = f"has contours of the structure {number} that do not lie in the planes of its series"
                raise data_error(path, told, "draw it on the slices of the series, or take it out")
            frame, off = series.nearest(float(heights.mean()))
            if off > 0.55 * series.step:
                dropped["contours above or below the slices"] += 1
                continue
            drawn, same = by_frame.setdefault(frame, {}), points.tobytes()
            dropped["contours that are there twice"] += same in drawn
            drawn[same] = series.pixels(points, frame)
        for frame, contours in by_frame.items():
            yield Part(named[number], frame, fill(list(contours.values()), *shape))
    for what, count in (+dropped).items():
        notes[f"{path.name}: {count} {what} are left out"] = None


def _points(contour: Any, path: Path) -> NDArray[np.float64]:
    """(n, 3) in mm."""
    try:
        data = contour.get("ContourData")
        if isinstance(data, bytes):  # longer than 64 KB in a file whose elements state their kinds: of unknown kind
            data = data.decode("ascii").strip(" \0").split("\\")
        values = np.array([float(value) for value in (data or ())], np.float64)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if values.size % 3 or not np.isfinite(values).all():
        raise data_error(path, "has a contour whose points are no finite numbers in threes", AGAIN)
    return values.reshape(-1, 3)
