"""What was written is read again, by other code than wrote it, and compared with the mask in the patient's space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.naming import Named
from ulna.data.formats.dicom.planes import to_frames
from ulna.data.formats.dicom.rtstruct import read_rtstruct
from ulna.data.formats.dicom.rtstruct_writing import write_rtstruct
from ulna.data.formats.dicom.seg import read_seg
from ulna.data.formats.dicom.seg_writing import write_seg
from ulna.data.formats.dicom.stack import Stack
from ulna.data.formats.source import data_error
from ulna.errors import UlnaError

LEAST_DICE = 0.99
MOST_VOLUME = 0.01  # by which the volume of a structure may differ
Kind = Literal["seg", "rtstruct"]
_WRITERS: dict[str, Callable[[Path, NDArray[Any], Stack, About], tuple[str, ...]]] = {
    "seg": write_seg,
    "rtstruct": write_rtstruct,
}


def write_verified(kind: Kind, path: Path, labels: NDArray[Any], stack: Stack, about: About) -> tuple[str, ...]:
    """Write a SEG or an RTSTRUCT and compare it with the mask: a SEG voxel by voxel, an RTSTRUCT by Dice and volume.

    Args:
        labels: (i, j, k) on the grid of the series, or (K, i, j, k) of overlapping classes.

    Returns:
        What the series does not state and had to be made up.

    Raises:
        DataError: if the file says something else than the mask; it is not to be kept.
    """
    if stack.affine is None:
        what = "has no place in the patient, which a SEG and an RTSTRUCT need"
        raise data_error(stack.frames[0].header.path, what, "leave --format out")
    try:
        notes = _WRITERS[kind](path, labels, stack, about)
    except (UlnaError, MemoryError, OSError):
        raise
    except Exception as error:  # what highdicom says may hold values of the patient's header
        what = f"cannot be written as {kind.upper()} from the headers of its series ({type(error).__name__})"
        raise data_error(path.name, what, "please report it, and write the mask as NIfTI (--format nifti)") from None
    check_written(kind, path, labels, stack)
    return notes


def check_written(kind: Kind, path: Path, labels: NDArray[Any], stack: Stack) -> None:
    """See `write_verified`."""
    count = len(labels) if labels.ndim == 4 else int(labels.max(initial=0))
    both, again, asked = ([0] * (count + 1) for _ in range(3))
    wrong = 0
    read = read_seg if kind == "seg" else read_rtstruct
    frames = to_frames(labels, stack) if labels.ndim == 3 else np.stack([to_frames(one, stack) for one in labels])
    for number in range(1, count + 1):
        asked[number] = int(((frames == number) if labels.ndim == 3 else frames[number - 1]).sum())

    def wanted(_: Named) -> bool:
        return True

    for part in read(path, stack, wanted, {}):
        number = part.named.number
        if number > count:
            wrong += int(part.mask.sum())
            continue
        own = frames[part.frame] == number if labels.ndim == 3 else frames[number - 1, part.frame] > 0
        both[number] += int((part.mask & own).sum())
        again[number] += int(part.mask.sum())
    for number in range(1, count + 1):
        union = again[number] + asked[number]
        if kind == "seg" or (
            union
            and (
                2 * both[number] / union < LEAST_DICE
                or abs(again[number] - asked[number]) > MOST_VOLUME * asked[number]
            )
        ):
            wrong += union - 2 * both[number]
    if wrong:
        what = f"was read again and differs from the mask in {wrong} voxels; it is not kept"
        raise data_error(path.name, what, "please report it, and write the mask as NIfTI (--format nifti)")
