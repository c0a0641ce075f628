"""Between the frames of a series, as they are stored, and the one grid on which it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.stack import Stack


def window(stack: Stack, frame: int) -> tuple[slice, slice]:
    """Where (i, j) the pixels of a frame lie on the grid, to the nearest pixel."""
    header = stack.frames[frame].header
    i, j = (round(shift) for shift in stack.shifts[frame])
    return slice(i, i + header.columns), slice(j, j + header.rows)


def to_frames(labels: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """(i, j, k) on the grid -> (frames, rows, columns), nearest values."""
    header = stack.frames[0].header
    made = np.empty((len(stack.frames), header.rows, header.columns), labels.dtype)
    for number, k in enumerate(stack.slices):
        made[number] = labels[(*window(stack, number), k)].T
    return made


def to_grid(frames: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """(frames, rows, columns) -> (i, j, k) on the grid: every slice takes the nearest frame.

    Where the grid holds the frames as they are, this is a view.
    """
    if stack.straight:
        return frames.transpose(2, 1, 0)
    made = np.zeros(stack.size, frames.dtype)
    for k, (a, b, weight) in enumerate(stack.sources):
        frame = a if weight < 0.5 else b
        made[(*window(stack, frame), k)] = frames[frame].T
    return made
