"""Label maps, images and probabilities to files, in the format of the image they belong to: one entry for every format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.series import DicomStored, has_place, in_slices
from ulna.data.formats.dicom.verified import Kind, write_verified
from ulna.data.formats.itk_writing import write_itk
from ulna.data.formats.nifti_writing import write_nifti, write_nifti_slabs
from ulna.data.formats.npy import write_npy, write_npy_slabs
from ulna.data.formats.npz import npz_contents, write_masks, write_npz
from ulna.data.formats.raster import write_png
from ulna.data.formats.slabs import SLAB
from ulna.data.formats.source import (
    ARRAY_SUFFIX,
    DICOM_SUFFIX,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    NUMPY_SUFFIX,
    RASTER_SUFFIXES,
    ZARR_SUFFIXES,
    Source,
    case_name,
    data_error,
    suffix_of,
)
from ulna.data.formats.tiff_writing import write_tiff, write_tiff_slabs
from ulna.data.formats.whole_boxes import Boxed, boxed, slabs_along
from ulna.data.formats.zarr_writing import write_zarr
from ulna.data.turning import as_stored, orientation_of
from ulna.data.volume import Format, Meta, Volume, label_dtype
from ulna.errors import DataError, UsageError
from ulna.system.files import write_whole
from ulna.system.outputs import same_place
from ulna.system.trees import write_tree

log = logging.getLogger(__name__)

FORMATS = ("seg", "rtstruct", "nifti", "tiff", "zarr")  # what a mask may be written as where a person says so
_BY_BOXES = ("tiff", "zarr")  # of these, written alike whether a mask is in memory or on disk
_ONE_PIECE = 1 << 26  # bytes of a TIFF that is written as it would be without slabs
_NO_PLACE = "has no place in space, which a mask in this format needs"


def write_labels(
    stem: Path,
    labels: NDArray[Any],
    like: Volume,
    about: About | None = None,
    format: str | None = None,
    *,
    keep_type: bool = False,
) -> Path:
    """Write a label map in the input's own format and geometry, whole or not at all.

    NIfTI stays .nii or .nii.gz, .mha, .nrrd, .npy and OME-Zarr stay themselves; PNG, BMP and JPEG become .png; TIFF becomes
    .tif. One map per class (multilabel) needs a format with channels: .tif also where the input was PNG. Rows of an npz
    become an .npz of one row. DICOM becomes a SEG, CASE.dcm, which is read again and compared with the mask; a DICOM picture
    without a place in the patient becomes .tif.

    Args:
        stem: folder and name, without extension.
        labels: (*S), or (K, *S) for multilabel.
        like: the volume that was read.
        about: names of the classes and what made them, for formats that say so.
        format: one of `FORMATS` in place of the input's own: "seg" (CASE.dcm) and "rtstruct" (CASE_rtstruct.dcm) for DICOM,
            "nifti" (CASE.nii.gz) for every image with a place in space, "tiff" (CASE.tif, in tiles) and "zarr" (CASE.zarr)
            for every image, as `ulna.data.as_format.mask_as` lays it.
        keep_type: of `labels`; else the smallest that holds the values.

    Returns:
        The path that was written.

    Raises:
        DataError: if the image has no such format, or what was written is not what was to be written.
        UsageError: if that path is the image itself, or cannot be written.
    """
    if labels.shape[labels.ndim - like.spatial_dims :] != like.size or labels.ndim - like.spatial_dims not in (0, 1):
        raise ValueError(f"labels {labels.shape} do not lie on the grid {like.size} of {like.path}")
    if not keep_type:
        labels = labels.astype(label_dtype(int(labels.max(initial=0))))
    kind = _format(like)
    if format in _BY_BOXES or (kind == "zarr" and format is None):
        single = labels.ndim == like.spatial_dims
        return _write_boxes(stem, boxed(labels[None] if single else labels), like, format, channels=not single)
    check_kind(like, format)
    if kind == "dicom" and format is None and like.affine is None:
        return _whole(stem, ".tif", lambda path: write_tiff(path, labels, replace(like, meta=Meta())), like.path)
    if format in ("seg", "rtstruct") or (kind == "dicom" and format is None):
        stored = like.meta.stored
        assert isinstance(stored, DicomStored)
        own: Kind = "rtstruct" if format == "rtstruct" else "seg"
        single = labels.ndim == like.spatial_dims
        slices = in_slices(labels, like) if single else np.stack([in_slices(one, like) for one in labels])

        def write(path: Path) -> None:
            for note in write_verified(own, path, slices, stored.stack, about or About(())):
                log.info("note: %s: %s", stem.name, note)

        return _whole(stem, FORMAT_SUFFIXES[own], write, like.path)
    if format == "nifti" or kind == "dicom":
        if kind != "nifti":
            like = replace(like, meta=Meta())
        return _whole(stem, ".nii.gz", lambda path: write_nifti(path, labels, like), like.path)
    if kind == "nifti":
        suffix = ".nii" if like.meta.suffix == ".nii" else ".nii.gz"
        return _whole(stem, suffix, lambda path: write_nifti(path, labels, like), like.path)
    if kind == "itk":
        return _whole(stem, like.meta.suffix, lambda path: write_itk(path, labels, like), like.path)
    if kind == "npy":
        return _whole(stem, ".npy", lambda path: write_npy(path, labels, like), like.path)
    if kind == "npz":
        several = labels.ndim > like.spatial_dims
        return _whole(
            stem, ".npz", lambda path: write_masks(path, labels[None], [stem.name], multilabel=several), like.path
        )
    if kind == "raster" and labels.ndim == 2:
        if labels.dtype.itemsize > 2:
            what = f"has {int(labels.max()):,} objects, and a PNG numbers 65,535 at most"
            raise data_error(like.path, what, "save the image as TIFF")
        return _whole(stem, ".png", lambda path: write_png(path, labels, like), like.path)
    return _whole(stem, ".tif", lambda path: write_tiff(path, labels, like), like.path)


FORMAT_SUFFIXES = {
    "seg": DICOM_SUFFIX,
    "rtstruct": f"_rtstruct{DICOM_SUFFIX}",
    "nifti": ".nii.gz",
    "tiff": ".tif",
    "zarr": ".zarr",
}


def check_kind(like: Volume, format: str | None) -> None:
    """Refuse a format that a mask of this image is not written in.

    Raises:
        DataError: saying why.
    """
    if format in ("seg", "rtstruct") and not isinstance(like.meta.stored, DicomStored):
        what = f"is no DICOM series, and a mask of it is written as no {format}"
        raise data_error(like.path, what, "leave --format out")
    if format == "nifti" and like.affine is None:
        raise data_error(like.path, _NO_PLACE, "leave --format out")


def keeps_values(like: Volume, format: str | None = None) -> bool:
    """Whether the mask of an image is a picture, which holds the values of the training labels (`Plan.mask_values`).

    Those of volumes and arrays hold class indices, and so do those in other formats than a picture's. A TIFF of two axes is
    a picture to who reads it, whatever it was made of.
    """
    kind = _format(like)
    if format is not None:
        return format == "tiff" and like.spatial_dims == 2
    return like.spatial_dims == 2 and (kind in ("raster", "tiff") or (kind == "dicom" and like.affine is None))


def mask_suffix(source: Source, *, multilabel: bool, format: str | None = None) -> str:
    """The ending that `write_labels` gives to the mask of an image, from the image's name."""
    if format is not None:
        return FORMAT_SUFFIXES[format]
    if source.series is not None:
        return DICOM_SUFFIX if has_place(source.files) else ".tif"
    suffix = suffix_of(source.path)
    if suffix in (*NIFTI_SUFFIXES, *ITK_SUFFIXES, NUMPY_SUFFIX, *ZARR_SUFFIXES, ARRAY_SUFFIX):
        return suffix
    return ".png" if suffix in RASTER_SUFFIXES and not multilabel else ".tif"


def probabilities_suffix(source: Source) -> str:
    """The ending that `write_probabilities` gives to the probabilities of an image."""
    return ".nii.gz" if source.series is not None or suffix_of(source.path) in NIFTI_SUFFIXES else ".npz"


def write_image(stem: Path, volume: Volume) -> Path:
    """Write the values of an image in its own format and geometry, whole or not at all; rows of an npz become .npy.

    Raises:
        DataError: if its format keeps no such values (pictures).
        UsageError: if the path is the image itself, or cannot be written.
    """
    array = volume.array[0] if volume.channels == 1 else volume.array
    kind = _format(volume)
    if kind == "dicom":  # its values are written, the study it came from is not
        return write_image(stem, replace(volume, meta=Meta()))
    if kind == "nifti":
        suffix = ".nii" if volume.meta.suffix == ".nii" else ".nii.gz"
        return _whole(stem, suffix, lambda path: write_nifti(path, array, volume), volume.path)
    if kind == "itk":
        return _whole(stem, volume.meta.suffix, lambda path: write_itk(path, array, volume), volume.path)
    if kind in ("npy", "npz"):
        return _whole(stem, ".npy", lambda path: write_npy(path, array, volume), volume.path)
    if kind == "tiff":
        return _whole(stem, ".tif", lambda path: write_tiff(path, array, volume), volume.path)
    if kind == "zarr":
        name = stem.name + volume.meta.suffix
        target = stem.with_name(name)
        _check_other(target, volume.path)
        write_tree(target, lambda path: write_zarr(path, boxed(volume.array), volume, name))
        return target
    raise data_error(volume.path, "is a picture, which is not written anew", "export it again")


def write_probabilities(stem: Path, probabilities: NDArray[np.float32], like: Volume) -> Path:
    """Write (K, *S): NIfTI and DICOM inputs give a 4D NIfTI, all others an .npz with the key `probabilities`.

    Those of a picture with an orientation tag lie on its stored pixels, as its mask does.
    """
    values = np.asarray(probabilities, dtype=np.float32)
    if _format(like) == "dicom":
        affine = np.diag([*(*like.spacing, 1.0)[:3], 1.0]) if like.affine is None else like.affine
        like = replace(like, meta=Meta(), affine=affine)
    if _format(like) == "nifti":
        return _whole(stem, ".nii.gz", lambda path: write_nifti(path, values, like), like.path)
    values = np.ascontiguousarray(as_stored(values, orientation_of(like)))
    return _whole(stem, ".npz", lambda path: write_npz(path, probabilities=values), like.path)


def _format(like: Volume) -> Format:
    return like.meta.format or ("nifti" if like.affine is not None else "tiff")


def streamed(like: Volume, format: str | None) -> bool:
    """Whether `write_labels_slabs` holds some slices of a mask at a time; other formats take all of it."""
    kind = _format(like)
    if format is not None:
        return format in _BY_BOXES or (format == "nifti" and like.affine is not None)
    return kind in ("nifti", "npy", "tiff", "zarr")


def write_labels_slabs(stem: Path, maps: Boxed, like: Volume, format: str | None = None, *, channels: bool) -> Path:
    """`write_labels` of a mask that is read in boxes: some slices of it are held where the format is `streamed`.

    Args:
        stem: folder and name, without extension.
        maps: (K, *S) on the grid of `like`.
        like: the image, with or without its values.
        format: as for `write_labels`; not of DICOM.
        channels: whether there is a map for every class, else K is 1.
    """
    if maps.dtype.itemsize > 1:
        highest = max(int(part.max(initial=0)) for _, part in slabs_along(maps, 0, SLAB))
        maps = maps.of_type(label_dtype(highest))
    kind = _format(like)
    if format in _BY_BOXES or (kind == "zarr" and format is None):
        return _write_boxes(stem, maps, like, format, channels=channels)
    if not streamed(like, format) or (kind == "tiff" and format is None and maps.nbytes <= _ONE_PIECE):
        whole = maps.whole()
        return write_labels(stem, whole if channels else whole[0], like, None, format)
    if format == "nifti" or kind == "nifti":
        if kind != "nifti":
            like = replace(like, meta=Meta())
        suffix = ".nii" if like.meta.suffix == ".nii" and format is None else ".nii.gz"
        return _whole(stem, suffix, lambda path: write_nifti_slabs(path, maps, like, channels=channels), like.path)
    if kind == "npy":
        return _whole(stem, ".npy", lambda path: write_npy_slabs(path, maps, channels=channels), like.path)
    return _whole(stem, ".tif", lambda path: write_tiff_slabs(path, maps, like, channels=channels), like.path)


def _write_boxes(stem: Path, maps: Boxed, like: Volume, format: str | None, *, channels: bool) -> Path:
    """In a format that has one form, whether maps are held in memory or not."""
    if format == "tiff":
        return _whole(stem, ".tif", lambda path: write_tiff_slabs(path, maps, like, channels=channels), like.path)
    name = stem.name + (".zarr" if format is not None else like.meta.suffix)
    target = stem.with_name(name)
    _check_other(target, like.path)
    write_tree(target, lambda path: write_zarr(path, maps, like, name, labels=True))
    return target


def write_npz_masks(path: Path, masks: NDArray[Any], ids: Sequence[str], *, multilabel: bool = False) -> Path:
    """Write the predictions for an npz file, whole or not at all: `masks` (N, *S) or, with `multilabel`, (N, K, *S).

    Raises:
        UsageError: if the path holds images, or cannot be written.
    """
    if len(masks) != len(ids):
        raise ValueError(f"{len(masks)} masks, {len(ids)} ids")
    image = path if _holds_images(path) else None
    return _whole(
        path.with_name(case_name(path)),
        ".npz",
        lambda file: write_masks(file, masks, ids, multilabel=multilabel),
        image,
    )


def _holds_images(path: Path) -> bool:
    try:
        return npz_contents(path).images is not None
    except DataError:  # missing, or nothing of worth
        return False


def _whole(stem: Path, suffix: str, write: Callable[[Path], None], image: Path | None) -> Path:
    """Write `stem` + `suffix`, whole or not at all, and never in place of the image it was made from."""
    target = stem.with_name(stem.name + suffix)
    _check_other(target, image)
    write_whole(target, write)
    return target


def _check_other(target: Path, image: Path | None) -> None:
    if image is not None and target.exists() and same_place(target, image):
        raise UsageError(f"{target}: is the image itself; choose another folder with --out")
