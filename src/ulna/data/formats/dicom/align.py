"""A plane of labels on the slices of a series: exactly, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.header import Slice
from ulna.data.formats.dicom.stack import Stack

_ON_SLICE = 0.1  # of the distance of slices
_ON_PIXEL = 0.25  # of a pixel


class Plane(NamedTuple):
    """A frame of the series, and where a plane of labels lies on it.

    Args:
        frame: its number in the stack.
        start: (i, j) of the first pixel of the plane.
        along_columns: how (i, j) changes from one column of the plane to the next.
        along_rows: the same from row to row.
    """

    frame: int
    start: tuple[int, int]
    along_columns: tuple[int, int]
    along_rows: tuple[int, int]


class Series3D:
    """The slices of a stack in the patient's coordinates (LPS mm)."""

    def __init__(self, stack: Stack) -> None:
        at = stack.frames[0].at
        assert at.orientation is not None and at.spacing is not None and stack.spacing is not None
        self.stack, self.step = stack, stack.spacing[2]
        self.along_i, self.along_j = (np.array(at.orientation[n : n + 3]) for n in (0, 3))
        self.per_mm = np.stack([self.along_i / at.spacing[1], self.along_j / at.spacing[0]])  # mm -> pixels

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(frames, 3): of the first pixel of every frame."""
        return np.array([frame.at.position for frame in self.stack.frames])

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """Across the slices, towards the next one."""
        normal = np.cross(self.along_i, self.along_j)
        return np.asarray(normal / np.linalg.norm(normal))

    @cached_property
    def heights(self) -> NDArray[np.float64]:
        """(frames,): along the normal."""
        return np.asarray(self.positions @ self.normal)

    def nearest(self, height: float) -> tuple[int, float]:
        """The frame that is nearest to a height along the normal, and how far it is, in mm."""
        frame = int(np.abs(self.heights - height).argmin())
        return frame, abs(float(self.heights[frame] - height))

    def pixels(self, points: NDArray[np.float64], frame: int) -> NDArray[np.float64]:
        """(n, 3) in mm -> (n, 2): i and j on a frame."""
        return np.asarray((points - self.positions[frame]) @ self.per_mm.T)

    def plane(self, at: Slice, rows: int, columns: int) -> Plane | None:
        """Where a plane of labels lies; None where it lies on no slice, or not pixel on pixel."""
        if at.position is None or at.orientation is None or at.spacing is None:
            return None
        origin = np.array(at.position)
        frame, off = self.nearest(float(origin @ self.normal))
        if off > _ON_SLICE * self.step:
            return None
        across, down = (np.array(at.orientation[n : n + 3]) for n in (0, 3))
        far = max(columns - 1, 1), max(rows - 1, 1)
        corners = np.stack([origin, origin + across * at.spacing[1] * far[0], origin + down * at.spacing[0] * far[1]])
        if np.abs(corners @ self.normal - self.heights[frame]).max() > _ON_SLICE * self.step:
            return None
        found = self.pixels(corners, frame)
        whole = np.rint(found)
        if np.abs(found - whole).max() > _ON_PIXEL:
            return None
        steps = [(whole[n] - whole[0]) / far[n - 1] for n in (1, 2)]
        if sorted(tuple(np.abs(step)) for step in steps) != [(0.0, 1.0), (1.0, 0.0)]:
            return None
        (ic, jc), (ir, jr) = ((int(step[0]), int(step[1])) for step in steps)
        return Plane(frame, (int(whole[0][0]), int(whole[0][1])), (ic, jc), (ir, jr))


def placed(mask: NDArray[Any], plane: Plane, shape: Sequence[int]) -> tuple[NDArray[Any], int]:
    """A plane of labels (rows, columns) on a frame of that shape, and how many labelled pixels lie beside the frame."""
    i = plane.start[0] + np.arange(mask.shape[1]) * plane.along_columns[0]
    j = plane.start[1] + np.arange(mask.shape[0]) * plane.along_rows[1]
    turned = mask
    if plane.along_columns[0] == 0:  # rows run along columns
        turned = mask.T
        i = plane.start[0] + np.arange(mask.shape[0]) * plane.along_rows[0]
        j = plane.start[1] + np.arange(mask.shape[1]) * plane.along_columns[1]
    if (
        turned.shape == tuple(shape)
        and i[0] == 0
        and j[0] == 0
        and (len(i) < 2 or i[1] == 1)
        and (len(j) < 2 or j[1] == 1)
    ):
        return turned, 0
    in_i, in_j = (i >= 0) & (i < shape[1]), (j >= 0) & (j < shape[0])
    made = np.zeros(shape, mask.dtype)
    inner = turned[np.ix_(in_j, in_i)]
    made[np.ix_(j[in_j], i[in_i])] = inner
    return made, int(np.count_nonzero(turned) - np.count_nonzero(inner))
