"""Files to volumes: one entry for every format.

Images are (C, *S), raw label maps (1, *S), or (K, *S) where a file holds one map per class. The spatial axes keep the
order of the file. What a reader changed on the way stands in `Volume.meta.notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.dicom.finding import NAMED, holds_dicom, known_header
from ulna.data.formats.dicom.header import is_dicom
from ulna.data.formats.dicom.labels import read_label_files
from ulna.data.formats.dicom.series import read_series
from ulna.data.formats.itk import read_itk
from ulna.data.formats.label_maps import value_counts, without_colour
from ulna.data.formats.limits import holding, within_memory
from ulna.data.formats.nifti import read_nifti
from ulna.data.formats.npy import read_npy
from ulna.data.formats.npz import read_npz
from ulna.data.formats.raster import read_raster
from ulna.data.formats.slabs import slabs
from ulna.data.formats.source import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    NUMPY_SUFFIX,
    RASTER_SUFFIXES,
    TIFF_SUFFIXES,
    Series,
    Source,
    beside,
    data_error,
    file_stat,
    is_zarr,
    suffix_of,
)
from ulna.data.formats.tiff import read_tiff
from ulna.data.formats.zarr_boxes import read_zarr
from ulna.data.volume import Meta, Volume, label_dtype, may_lie_turned, same_geometry, spacing_text, turned_text


def _read(source: Source, *, as_labels: bool, spatial_dims: int | None = None) -> Volume:
    try:
        tree = source.series is None and is_zarr(source.path)
        if as_labels and source.series is None and not tree and source.path.is_dir() and not holds_dicom(source.path):
            return _united(source.path)
        if source.series is not None or _of_dicom(source.path):
            with within_memory(source):
                return _read_dicom(source, as_labels=as_labels, spatial_dims=spatial_dims)
        if not tree:
            file_stat(source.path)
        with within_memory(source):
            volume = _read_format(source, as_labels, spatial_dims)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise data_error(source.path, what, "check the file and its permissions") from None
    if not volume.array.size:
        raise data_error(source, f"holds no pixel, its shape is {volume.array.shape}", "take the case out")
    return volume


def _of_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, whatever its name, or a folder that holds some."""
    if suffix_of(path) in (*IMAGE_SUFFIXES, ARRAY_SUFFIX):
        return False
    return holds_dicom(path) if path.is_dir() else suffix_of(path) in NAMED or is_dicom(path)


def _read_dicom(source: Source, *, as_labels: bool, spatial_dims: int | None) -> Volume:
    path, series = source.path, source.series
    if not as_labels:
        if series is None:
            found, said = series_in(path, Wishes())
            (chosen,) = found
            volume = _read_dicom(chosen, as_labels=False, spatial_dims=spatial_dims)
            notes = (said, *volume.meta.notes) if said else volume.meta.notes
            return replace(volume, meta=replace(volume.meta, notes=notes))
        return read_series(path, series, spatial_dims)
    if series is None and path.is_file() and known_header(path).kind == "image":
        return read_series(path, Series((path,)), spatial_dims)
    return read_label_files(source, spatial_dims)


def _read_format(source: Source, as_labels: bool, spatial_dims: int | None) -> Volume:
    suffix = suffix_of(source.path)
    if suffix == ARRAY_SUFFIX:
        return read_npz(source, "masks" if as_labels else "images")
    if suffix in NIFTI_SUFFIXES:
        return read_nifti(source.path, spatial_dims)
    if suffix in TIFF_SUFFIXES:
        return read_tiff(source.path, as_labels=as_labels)
    if suffix in RASTER_SUFFIXES:
        return read_raster(source.path, as_labels=as_labels)
    if suffix in ITK_SUFFIXES:
        return read_itk(source.path, spatial_dims)
    if suffix == NUMPY_SUFFIX:
        return read_npy(source.path, spatial_dims)
    if is_zarr(source.path):
        return read_zarr(source.path, spatial_dims)
    what = f"has the extension {suffix!r}, which is not read"
    raise data_error(source.path, what, f"convert it to one of {', '.join(IMAGE_SUFFIXES)}")


def masks_in(folder: Path) -> list[Path]:
    """The masks of a folder, one per object, by name."""
    return [path for path in sorted(folder.iterdir()) if suffix_of(path) in IMAGE_SUFFIXES and not beside(path.name)]


def _united(folder: Path) -> Volume:
    """The union of a folder of masks, one per object."""
    paths = masks_in(folder)
    united: Volume | None = None
    notes: dict[str, None] = {}
    drawn: set[int | float] = set()
    for path in paths:
        volume = _read(Source(path), as_labels=True)
        array = without_colour(volume)
        values = value_counts(array)
        if len(array) != 1 or len(values) > 2:
            raise data_error(
                path, "is no mask of one object: it holds more than two values", "save 0 and 255, or 0 and 1"
            )
        if united is not None and volume.size != united.size:
            what = f"has the size {volume.size}, {paths[0].name} has {united.size}"
            raise data_error(path, what, "give all masks of a case the size of its image")
        drawn |= values.keys() - {0}
        inside = array > 0 if united is None else np.logical_or(united.array, array > 0)
        united = replace(volume, array=inside.astype(np.uint8), path=folder)
        notes |= dict.fromkeys(volume.meta.notes)
    if united is None:
        raise data_error(folder, "holds no mask", "add the masks, or take the case out")
    return replace(united, meta=replace(united.meta, notes=tuple(notes), drawn=255 if drawn == {255} else 1))


def read_image(sources: Sequence[Source], spatial_dims: int | None = None) -> Volume:
    """One case: the channels of all its sources, concatenated.

    Args:
        sources: one file, or one for each channel.
        spatial_dims: of the other images of its data set, or of the model: what a file that could be either (a volume of one
            slice, an array with a short last axis) is read as. None: such a file is 2D, and `meta.either` is True.

    Shape:
        (C, *S); integers keep the file's type.

    Raises:
        DataError: if a file is missing, empty, cut short, damaged or unsupported, or the sources lie on several grids.
    """
    volumes: list[Volume] = []
    for source in sources:
        with holding(2 * sum(volume.array.nbytes for volume in volumes)):  # they are joined, one copy beside the other
            volumes.append(_read(source, as_labels=False, spatial_dims=spatial_dims))
    check_grids(sources, volumes)
    first = volumes[0]
    if len(volumes) == 1:
        return first
    return replace(
        first, array=np.concatenate([volume.array for volume in volumes]), meta=merged_meta(sources, volumes)
    )


def check_grids(sources: Sequence[Source], volumes: Sequence[Volume]) -> None:
    """Refuse channels that do not lie on one grid.

    Raises:
        DataError: naming the first that does not.
    """
    first = volumes[0]
    for source, volume in zip(sources[1:], volumes[1:], strict=True):
        if may_lie_turned(volume, first):
            what = turned_text(volume, f"channel {sources[0].path.name}")
            raise data_error(source, what, "save the channels of a case in one format")
        if volume.size != first.size or not same_geometry(volume, first):
            own, other = (spacing_text(one.spacing, one.unit) for one in (volume, first))
            what = f"{volume.size} at {own}, but channel {sources[0].path.name} has {first.size} at {other}"
            raise data_error(source, what, "resample the channels of a case to one grid")


def merged_meta(sources: Sequence[Source], volumes: Sequence[Volume]) -> Meta:
    """What the files of all channels say."""
    notes = tuple(note for volume in volumes for note in volume.meta.notes)
    return replace(volumes[0].meta, notes=notes, faults=_faults(sources, volumes), too_large=_too_large(volumes))


def _faults(sources: Sequence[Source], volumes: Sequence[Volume]) -> tuple[tuple[str, str], ...]:
    """What is wrong with the channels of a case; what the first file has not is told with the name of the other."""
    first, *others = (volume.meta.faults for volume in volumes)
    return (
        *first,
        *(
            (f"channel {source.path.name}: {what}", remedy)
            for source, faults in zip(sources[1:], others, strict=True)
            for what, remedy in faults
            if (what, remedy) not in first
        ),
    )


def _too_large(volumes: Sequence[Volume]) -> tuple[int, float] | None:
    """How many values of all channels float32 does not hold, and the largest; None for none."""
    found = [volume.meta.too_large for volume in volumes if volume.meta.too_large]
    return (sum(count for count, _ in found), max(largest for _, largest in found)) if found else None


def read_labels(source: Source, spatial_dims: int | None = None) -> Volume:
    """The raw label values as stored, as integers wherever all of them are whole numbers; `spatial_dims` as in `read_image`.

    Shape:
        (1, *S), or (K, *S) where the file holds one map per class, or a picture's colours; see `without_colour`.

    Raises:
        DataError: as `read_image`; also for JPEG, which does not keep values.
    """
    volume = _read(source, as_labels=True, spatial_dims=spatial_dims)
    with within_memory(source):
        return volume.with_array(_integers(volume.array))


def _integers(array: NDArray[Any]) -> NDArray[Any]:
    """Real values as integers, where all of them are whole and finite."""
    if array.dtype.kind != "f" or not all(
        np.isfinite(part).all() and (part == np.rint(part)).all() for (part,) in slabs(array)
    ):
        return array
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high < 2**32:
        return array.astype(label_dtype(int(high)))
    return array.astype(np.int64) if abs(low) < 2**62 and high < 2**62 else array
