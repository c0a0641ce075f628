"""The verb `convert`: an image from one format to another, its geometry kept, some rows of it in memory at a time."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header

from ulna.data.formats.itk_header import Geometry, ItkStored
from ulna.data.formats.itk_writing import write_itk
from ulna.data.formats.nifti import NiftiStored
from ulna.data.formats.nifti_writing import write_nifti_slabs
from ulna.data.formats.npy import write_npy_slabs
from ulna.data.formats.opening import OpenImage, open_image
from ulna.data.formats.source import ITK_SUFFIXES, NIFTI_SUFFIXES, NUMPY_SUFFIX, TIFF_SUFFIXES, Source, suffix_of
from ulna.data.formats.tiff_writing import write_tiff_slabs
from ulna.data.formats.whole_boxes import Boxed
from ulna.data.formats.zarr_boxes import is_zarr
from ulna.data.formats.zarr_writing import add_to_labels, write_zarr
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.volume import Meta, Volume, spacing_text
from ulna.errors import UsageError, printable
from ulna.system.files import TEMPORARY, write_whole
from ulna.system.outputs import same_place

log = logging.getLogger(__name__)

WRITTEN = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *TIFF_SUFFIXES, NUMPY_SUFFIX, ".zarr")
_NO_ORIENTATION = "the image states no orientation, and so does the file: its last axis is written first"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_STRAIGHT = 1e-4  # a cosine between axes that counts as 0: files hold seven digits


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Args:
        file: the image.
        size: voxels along every axis, as read.
        channels: of it.
        dtype: of its values.
        spacing: along every axis, as read.
        unit: of it.
        notes: what the reader took for granted, and what the format does not state.
    """

    file: Path
    size: tuple[int, ...]
    channels: int
    dtype: str
    spacing: tuple[float, ...]
    unit: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.size))
        return printable(f"Converted {self.file}: {size} of {spacing_text(self.spacing, self.unit)}, {self.dtype}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "file": str(self.file),
            "size": list(self.size),
            "channels": self.channels,
            "dtype": self.dtype,
            "spacing": list(self.spacing),
            "unit": self.unit,
            "notes": list(self.notes),
        }


def convert(
    image: Path | str,
    target: Path | str,
    /,
    *,
    spacing: str | None = None,
    labels: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Write an image in another format with the same values and the same place in space.

    Reads whatever ulna reads, and OME-Zarr; writes .nii, .nii.gz, .mha, .nrrd, .tif, .npy and OME-Zarr (.zarr). What the
    format cannot keep is refused: a spacing by .npy, sheared axes by .mha and .nrrd, oblique ones by TIFF. Large images are
    read and written by slabs where both formats allow (docs/large-images.md).

    Args:
        image: a file, a folder with a DICOM series, or an OME-Zarr folder.
        target: the file to write, by its ending; for OME-Zarr a folder. IMAGE.zarr/labels/NAME.zarr is named there as a label
            map of the image.
        spacing: of an image that states none, in mm along its axes, such as 0.7x0.7x2.
        labels: of OME-Zarr: that it is a label map.
        overwrite: replace a file that is there.

    Raises:
        UsageError: if the image cannot be read, the format does not keep its geometry, or the target is there.

    Example:
        ulna convert scan.ome.zarr scan.nii.gz
    """
    path, out = Path(image), Path(target)
    write = _writer(out)
    if out.exists() and (same_place(path, out) or is_zarr(out) or out.is_dir() or not overwrite):
        if same_place(path, out):
            raise UsageError(f"{out}: is the image itself; choose another name")
        remedy = "remove it, or choose another name" if is_zarr(out) or out.is_dir() else "--overwrite replaces it"
        raise UsageError(f"{out}: exists; {remedy}")
    made_folder = not out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_image([Source(path)], scratch=out.parent) as opened:
            volume = _spaced(opened.volume, spacing)
            for note in volume.meta.notes:
                log.info("note: %s: %s", path.name, note)
            like, maps, lost = _fitted(volume, opened, out)
            for note in lost:
                log.warning("note: %s: %s", out.name, note)
            write(out, maps, like, labels or out.parent.name == "labels")
    except BaseException:
        if made_folder:
            _remove_empty(out.parent)
        raise
    kind = str(volume.array.dtype)
    notes = (*volume.meta.notes, *lost)
    return Converted(out, volume.size, volume.channels, kind, volume.spacing, volume.unit, notes)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def _spaced(volume: Volume, text: str | None) -> Volume:
    """With the spacing that a person states."""
    if text is None:
        return volume
    if volume.unit == "mm":
        said = spacing_text(volume.spacing)
        raise UsageError(f"--spacing: {volume.path} states a spacing of {said}; leave --spacing out")
    try:
        steps = tuple(float(word) for word in text.split("x"))
    except ValueError:
        steps = ()
    if len(steps) != volume.spatial_dims or not all(0 < step < math.inf for step in steps):
        raise UsageError(
            f"--spacing {text}: give {volume.spatial_dims} lengths above 0 in mm for {volume.path}, such as "
            + "x".join(["0.5"] * volume.spatial_dims)
        )
    return replace(volume, spacing=steps, unit="mm")


Write = Callable[[Path, Boxed, Volume, bool], None]


def _writer(out: Path) -> Write:
    """What writes a format."""
    suffix = suffix_of(out)
    if is_zarr(out):
        return _zarr
    if suffix not in WRITTEN:
        raise UsageError(f"{out}: has no ending of a format that is written; use one of {', '.join(WRITTEN)}")
    if suffix in NIFTI_SUFFIXES:
        return lambda path, maps, like, _: write_whole(
            path, lambda file: write_nifti_slabs(file, maps, like, channels=maps.shape[0] > 1)
        )
    if suffix in ITK_SUFFIXES:
        return lambda path, maps, like, _: write_whole(path, lambda file: _itk(file, maps, like))
    if suffix == NUMPY_SUFFIX:
        return lambda path, maps, like, _: write_whole(
            path, lambda file: write_npy_slabs(file, maps, channels=maps.shape[0] > 1)
        )
    return lambda path, maps, like, _: write_whole(
        path, lambda file: write_tiff_slabs(file, maps, like, channels=maps.shape[0] > 1)
    )


def _itk(path: Path, maps: Boxed, like: Volume) -> None:
    whole = maps.whole()
    write_itk(path, whole if len(whole) > 1 else whole[0], like)


def _zarr(path: Path, maps: Boxed, like: Volume, labels: bool) -> None:
    named = path.parent.name == "labels" and is_zarr(path.parent.parent)
    if named and (path.parent.parent / ".zgroup").exists():
        raise UsageError(
            f"{printable(path.parent.parent)}: is OME-Zarr 0.4, whose readers do not find a label map of 0.5; convert "
            "the image first, which writes 0.5, and the mask into that"
        )
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_zarr(temporary, maps, like, labels=labels)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if named:
        add_to_labels(path)


def _fitted(volume: Volume, image: OpenImage, out: Path) -> tuple[Volume, Boxed, tuple[str, ...]]:
    """The image as a format can state it, and what that leaves out.

    Raises:
        UsageError: if it cannot keep the geometry.
    """
    maps = Boxed(volume.array.shape, volume.array.dtype, lambda box, channels: _of(image.read(box), channels))
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


def _of(values: Any, channels: Sequence[int]) -> Any:
    return values if len(channels) == len(values) else values[list(channels)]


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
