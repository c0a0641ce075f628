"""An image as a file format can state it: its axes in the order of the format, and what that leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from ulna.data.formats.itk_header import Geometry, ItkStored
from ulna.data.formats.nifti import NiftiStored
from ulna.data.formats.source import ITK_SUFFIXES, NIFTI_SUFFIXES, NUMPY_SUFFIX, is_zarr, suffix_of
from ulna.data.formats.whole_boxes import Boxed, boxed
from ulna.data.formats.write import check_kind
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.volume import Meta, Volume, spacing_text
from ulna.errors import UsageError

_NO_ORIENTATION = "the image states no orientation, and so does the file: its last axis is written first"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_STRAIGHT = 1e-4  # a cosine between axes that counts as 0: files hold seven digits


def fitted(volume: Volume, maps: Boxed, out: Path) -> tuple[Volume, Boxed, tuple[str, ...]]:
    """The image, its values as a file of this name has them, and what is lost.

    Args:
        volume: the image, with or without its values.
        maps: (C, *S), its values.
        out: the file, by whose ending the format is known.

    Raises:
        UsageError: if it cannot keep the geometry.
    """
    suffix = ".zarr" if is_zarr(out) else suffix_of(out)
    same = volume.meta.format == {**dict.fromkeys(NIFTI_SUFFIXES, "nifti"), **dict.fromkeys(ITK_SUFFIXES, "itk")}.get(
        suffix
    )
    if suffix in NIFTI_SUFFIXES:
        if volume.affine is None and volume.unit != "mm":
            raise UsageError(f"{volume.path}: states no spacing, which {suffix} needs; give it with --spacing, in mm")
        if same or volume.affine is not None:
            return (volume if same else replace(volume, meta=Meta())), maps, ()
        return (
            _without_orientation(volume),
            _reordered(maps, [*reversed(range(volume.spatial_dims))]),
            (_NO_ORIENTATION,),
        )
    if suffix in ITK_SUFFIXES:
        return (volume if same else _as_itk(volume, suffix)), maps, ()
    if suffix == NUMPY_SUFFIX:
        if volume.unit == "mm":
            raise UsageError(
                f"{out}: .npy states no spacing, and {volume.path} has {spacing_text(volume.spacing)}; use .tif or .zarr"
            )
        return volume, maps, ()
    if suffix == ".zarr":
        return volume, maps, ()
    return _as_tiff(volume, maps)


def mask_as(volume: Volume, maps: Boxed, format: str | None) -> tuple[Volume, Boxed]:
    """A mask on the grid of an image as it is written in a format: TIFF, which states no orientation, turned as by `fitted`.

    Args:
        volume: the image.
        maps: (K, *S), the mask.
        format: of `ulna.data.formats.write.FORMATS`; None is that of the image.

    Raises:
        UsageError: if the format cannot state where the image lies.
    """
    if format != "tiff":
        return volume, maps
    like, maps, _ = _as_tiff(volume, maps)
    return like, maps


def array_as(volume: Volume, mask: NDArray[Any], format: str | None) -> tuple[Volume, NDArray[Any]]:
    """The same of a mask in memory, (*S) or (K, *S)."""
    if format != "tiff":
        return volume, mask
    single = mask.ndim == volume.spatial_dims
    like, maps = mask_as(volume, boxed(mask[None] if single else mask), format)
    whole = maps.whole()
    return like, whole[0] if single else whole


def check_formats(volume: Volume, formats: Sequence[str]) -> None:
    """Refuse, before it is predicted, an image whose mask cannot be written in one of some formats.

    Raises:
        UsageError: with what is in the way.
    """
    hollow = np.broadcast_to(np.zeros((), np.uint8), (1, *volume.size))
    for format in formats:
        check_kind(volume, format)
        mask_as(volume, boxed(hollow), format)


def _without_orientation(volume: Volume) -> Volume:
    """With a NIfTI header that states lengths alone, the axes in the other order: columns, rows, pages."""
    header = Nifti1Header()
    size = volume.size[::-1]
    header.set_data_shape((*size, 1)[:3])
    header.set_zooms((*volume.spacing[::-1], 1.0)[:3])
    header.set_xyzt_units("mm")
    stored = NiftiStored(header, (*size, 1)[:3])
    hollow = np.broadcast_to(np.zeros((), volume.array.dtype), (volume.channels, *size))
    return Volume(hollow, volume.spacing[::-1], "mm", None, volume.path, Meta(format="nifti", stored=stored))


def _reordered(maps: Boxed, order: Sequence[int], flips: Sequence[bool] | None = None) -> Boxed:
    """Maps whose axis i is axis `order[i]` of others, against it where `flips[i]`."""
    turned = flips or (False,) * len(order)
    size = [maps.shape[1 + axis] for axis in order]

    def read(box: Sequence[slice], channels: Sequence[int]) -> Any:
        stored: list[slice] = [slice(0, 0)] * len(order)
        for part, axis, flip, n in zip(box, order, turned, size, strict=True):
            stored[axis] = slice(n - part.stop, n - part.start) if flip else part
        values = maps.read(stored, channels).transpose(0, *(1 + axis for axis in order))
        return values[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in turned))]

    return Boxed((maps.shape[0], *size), maps.dtype, read)


def _as_itk(volume: Volume, suffix: str) -> Volume:
    """With the geometry of a .mha or .nrrd file."""
    if volume.affine is None:
        raise UsageError(f"{volume.path}: states no place in space, which {suffix} needs; write it as NIfTI or .zarr")
    _check_straight(volume, suffix, "write .nii.gz")
    dims = 3
    affine = _LPS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :dims], axis=0)
    size = (*volume.size, 1)[:3]
    stored = ItkStored(size, Geometry(affine[:3, 3], spacing, affine[:3, :dims] / spacing))
    return replace(volume, meta=Meta(format="itk", suffix=suffix, stored=stored))


def _check_straight(volume: Volume, suffix: str, remedy: str) -> None:
    assert volume.affine is not None
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if np.abs(columns.T @ columns - np.eye(3)).max() > _STRAIGHT:
        raise UsageError(f"{volume.path}: has sheared axes, which {suffix} does not keep; {remedy}")


def _as_tiff(volume: Volume, maps: Boxed) -> tuple[Volume, Boxed, tuple[str, ...]]:
    """Pages from foot to head, rows from front to back, columns from right to left; or as stored without an affine."""
    if volume.affine is None:
        return volume, maps, ()
    dims = volume.spatial_dims
    _check_straight(volume, ".tif", "write .nii.gz or .zarr")
    turn = to_canonical(volume.affine, dims)
    directions = volume.affine[:3, :dims] / np.linalg.norm(volume.affine[:3, :dims], axis=0)
    if dims == 3 and np.abs(directions).max(axis=0).min() < 1 - _STRAIGHT:
        raise UsageError(f"{volume.path}: lies oblique in space, which .tif does not state; write .nii.gz or .zarr")
    axes, flipped = (turn.axes or (0, 1, 2), turn.flipped or (False,) * 3) if dims == 3 else ((0, 1), (False,) * 2)
    order = list(reversed(axes)) if dims == 3 else list(axes)
    # canonical axes run to the right, front and head; rows and columns are drawn from the front and the patient's right
    flips = [flipped[axes.index(axis)] != (axes.index(axis) < 2 and dims == 3) for axis in order]
    if not volume.meta.oriented:
        flips = [False] * dims
    turned = _reordered(maps, order, flips)
    steps = tuple(volume.spacing[axis] for axis in order)
    like = Volume(
        np.broadcast_to(np.zeros((), maps.dtype), turned.shape), steps, volume.unit, None, volume.path, Meta()
    )
    note = "TIFF states no orientation and no origin: pages go foot to head, rows front to back, columns right to left"
    return (
        like,
        turned,
        (note if dims == 3 else "TIFF states no orientation and no origin: axes are written as stored",),
    )
