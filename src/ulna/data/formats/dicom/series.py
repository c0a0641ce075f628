"""A series as a volume: axes run along rows (i), along columns (j) and along the normal (k)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ulna.data.formats.dicom.finding import known_header
from ulna.data.formats.dicom.fixes import Fixes
from ulna.data.formats.dicom.pixels import read_values
from ulna.data.formats.dicom.stack import Stack, stack
from ulna.data.formats.source import DICOM_SUFFIX, Series
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError


class DicomStored(NamedTuple):
    """What a map needs to be written beside its series: the slices as they are stored."""

    stack: Stack


def stack_of(path: Path, series: Series) -> Stack:
    """The grid of a series, from its headers alone.

    Args:
        path: its folder, named in messages.
    """
    return stack([known_header(file) for file in series.files], Fixes(series.fixes), path)


def read_series(path: Path, series: Series, spatial_dims: int | None = None) -> Volume:
    """(1, i, j, k), or 2D where a single slice is read as `spatial_dims` says; a picture without a place is (1, H, W).

    Raises:
        DataError: naming folder and file, if its slices make no grid or cannot be read.
    """
    whole = stack_of(path, series)
    values, notes = read_values(whole)
    return volume_of(whole, values, path, spatial_dims, notes)


def volume_of(
    whole: Stack, values: np.ndarray, path: Path, spatial_dims: int | None, notes: tuple[str, ...] = ()
) -> Volume:
    """Values (..., i, j, k) on the grid of a stack as a volume (C, *S)."""
    array = values if values.ndim == 4 else values[None]
    alone = whole.size[2] == 1
    meta = Meta(
        format="dicom",
        suffix=DICOM_SUFFIX,
        notes=(*whole.notes, *notes),
        either=alone and whole.affine is not None,
        oriented=whole.affine is not None,
        stored=DicomStored(whole),
        modality=whole.frames[0].header.modality,
        body_part=whole.frames[0].header.body_part,
    )
    if whole.affine is None:  # a picture: rows first, as in other pictures
        spacing = (1.0, 1.0) if whole.spacing is None else (whole.spacing[1], whole.spacing[0])
        unit = "px" if whole.spacing is None else "mm"
        return Volume(array[..., 0].swapaxes(1, 2), spacing, unit, None, path, meta)
    assert whole.spacing is not None
    if alone and spatial_dims != 3:
        return Volume(array[..., 0], whole.spacing[:2], "mm", whole.affine, path, meta)
    return Volume(array, whole.spacing, "mm", whole.affine, path, meta)


def has_place(files: tuple[Path, ...]) -> bool:
    """Whether an image states where it lies in the patient; True where it cannot be read, which is told elsewhere."""
    try:
        first = known_header(files[0]).slices
    except DataError:
        return True
    return len(files) > 1 or not first or None not in (first[0].position, first[0].orientation)


def in_slices(labels: np.ndarray, like: Volume) -> np.ndarray:
    """(*S) of a volume that `read_series` made -> (i, j, k)."""
    if like.affine is None:
        return labels.T[..., None]
    return labels[..., None] if labels.ndim == 2 else labels
