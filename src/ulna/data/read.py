"""Files to volumes, and label maps back to files: one entry for every format.

Images are (C, *S), raw label maps (1, *S), or (K, *S) where a file holds one map per class. The spatial axes keep the
order of the file. What a reader changed on the way stands in `Volume.meta["notes"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.limits import within_memory
from ulna.data.read_itk import read_itk, write_itk
from ulna.data.read_nifti import read_nifti, write_nifti
from ulna.data.read_npy import read_npy, write_npy
from ulna.data.read_npz import npz_contents, read_npz, write_masks, write_npz
from ulna.data.read_raster import read_raster, write_png
from ulna.data.read_tiff import read_tiff
from ulna.data.slabs import slabs
from ulna.data.source import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    NUMPY_SUFFIX,
    RASTER_SUFFIXES,
    TIFF_SUFFIXES,
    Source,
    beside,
    case_name,
    fault,
    file_stat,
    suffix_of,
)
from ulna.data.turning import as_stored, orientation_of
from ulna.data.write_tiff import write_tiff
from ulna.errors import DataError, UsageError, listed
from ulna.files import write_whole
from ulna.outputs import same_place
from ulna.recipe import Labels
from ulna.volume import Volume, label_dtype, same_geometry, spacing_text

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "case_name",
    "encode_labels",
    "mask_suffix",
    "probabilities_suffix",
    "read_image",
    "read_labels",
    "suffix_of",
    "value_counts",
    "without_colour",
    "write_image",
    "write_labels",
    "write_npz_masks",
    "write_probabilities",
]


def _read(source: Source, *, as_labels: bool, spatial_dims: int | None = None) -> Volume:
    if as_labels and source.path.is_dir():
        return _united(source.path)
    try:
        file_stat(source.path)
        with within_memory(source):
            volume = _read_format(source, as_labels, spatial_dims)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise fault(source.path, what, "check the file and its permissions") from None
    if not volume.array.size:
        raise fault(source, f"holds no pixel, its shape is {volume.array.shape}", "take the case out")
    return volume


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
    what = f"has the extension {suffix!r}, which is not read"
    raise fault(source.path, what, f"convert it to one of {', '.join(IMAGE_SUFFIXES)}")


def _united(folder: Path) -> Volume:
    """The union of a folder of masks, one per object."""
    paths = [path for path in sorted(folder.iterdir()) if suffix_of(path) in IMAGE_SUFFIXES and not beside(path.name)]
    united: Volume | None = None
    notes: dict[str, None] = {}
    for path in paths:
        volume = _read(Source(path), as_labels=True)
        array = without_colour(volume)
        if len(array) != 1 or len(value_counts(array)) > 2:
            raise fault(path, "is no mask of one object: it holds more than two values", "save 0 and 255, or 0 and 1")
        if united is not None and volume.size != united.size:
            what = f"has the size {volume.size}, {paths[0].name} has {united.size}"
            raise fault(path, what, "give all masks of a case the size of its image")
        inside = array > 0 if united is None else np.logical_or(united.array, array > 0)
        united = replace(volume, array=inside.astype(np.uint8), path=folder)
        notes |= dict.fromkeys(volume.meta.get("notes", ()))
    if united is None:
        raise fault(folder, "holds no mask", "add the masks, or take the case out")
    return replace(united, meta={**united.meta, "notes": tuple(notes)})


def read_image(sources: Sequence[Source], spatial_dims: int | None = None) -> Volume:
    """One case: the channels of all its sources, concatenated.

    Args:
        sources: one file, or one for each channel.
        spatial_dims: of the other images of its data set, or of the model: what a file that could be either (a volume of one
            slice, an array with a short last axis) is read as. None: such a file is 2D, and `meta["either"]` is True.

    Shape:
        (C, *S); integers keep the file's type.

    Raises:
        DataError: if a file is missing, empty, cut short, damaged or unsupported, or the sources lie on several grids.
    """
    volumes = [_read(source, as_labels=False, spatial_dims=spatial_dims) for source in sources]
    first = volumes[0]
    for source, volume in zip(sources[1:], volumes[1:], strict=True):
        if volume.size != first.size or not same_geometry(volume, first):
            own, other = (spacing_text(one.spacing, one.unit) for one in (volume, first))
            what = f"{volume.size} at {own}, but channel {sources[0].path.name} has {first.size} at {other}"
            raise fault(source, what, "resample the channels of a case to one grid")
    if len(volumes) == 1:
        return first
    notes = tuple(note for volume in volumes for note in volume.meta.get("notes", ()))
    meta = {**first.meta, "notes": notes, "faults": _faults(sources, volumes), "too_large": _too_large(volumes)}
    return replace(first, array=np.concatenate([volume.array for volume in volumes]), meta=meta)


def _faults(sources: Sequence[Source], volumes: Sequence[Volume]) -> tuple[tuple[str, str], ...]:
    """What is wrong with the channels of a case; what the first file has not is told with the name of the other."""
    first, *others = (volume.meta.get("faults", ()) for volume in volumes)
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
    found = [volume.meta["too_large"] for volume in volumes if volume.meta.get("too_large")]
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


def without_colour(volume: Volume) -> NDArray[Any]:
    """The stored maps, one where a picture (PNG, BMP) stores grey as colour; equal maps of other files are classes."""
    array = volume.array
    if array.shape[0] != 3 or volume.meta.get("format") != "raster":
        return array
    grey = all(np.array_equal(red, green) and np.array_equal(red, blue) for red, green, blue in slabs(*array))
    return array[:1] if grey else array


def value_counts(array: NDArray[Any], most: int | None = None) -> dict[int | float, int]:
    """Every value with its number of occurrences, in ascending order.

    Args:
        most: stop after a part of the array in which more values than these were found.

    Example:
        >>> value_counts(np.array([0, 2, 2], dtype=np.uint8))
        {0: 1, 2: 2}
    """
    if array.dtype.kind in "iu" and array.size and int(array.min()) >= 0 and int(array.max()) < 1 << 16:
        counts = np.zeros(int(array.max()) + 1, dtype=np.int64)  # twenty times faster than sorting
        for (part,) in slabs(array):  # bincount makes 8 bytes of every value
            counts += np.bincount(part, minlength=counts.size)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.empty(0, array.dtype), np.empty(0, np.int64)
    for (part,) in slabs(array):
        found, times = np.unique(part, return_counts=True)
        joined = np.concatenate([values, found])
        values, places = np.unique(joined, return_inverse=True)
        numbers = np.bincount(places, np.concatenate([numbers, times]), values.size).astype(np.int64)
        if most is not None and values.size > most:
            break
    return {value.item(): int(number) for value, number in zip(values, numbers, strict=True)}


def encode_labels(volume: Volume, labels: Labels) -> NDArray[Any]:
    """Class indices 0..K of a raw label map; two-valued maps in {0, 255} become {0, 1}.

    Shape:
        (1, *S) -> (*S), of the smallest unsigned type; multilabel: (K, *S) -> (K, *S) of 0 and 1, and a single map
        of exclusive values 1..K is spread over the channels.

    Raises:
        DataError: naming file and values, if they do not fit the classes.
    """
    array = volume.array
    count = len(labels.foreground)
    if labels.multilabel and array.shape[0] == count:
        return _checked(volume, array, 1)
    array = without_colour(volume)
    if array.shape[0] != 1:
        wanted = f"one map, or {count} maps (one per class)" if labels.multilabel else "one map"
        raise fault(volume.path, f"holds {array.shape[0]} label maps", f"save {wanted} with values 0..{count}")
    indices = _checked(volume, array[0], count)
    if not labels.multilabel:
        return indices
    return np.stack([indices == value for value in range(1, count + 1)]).astype(np.uint8)


def _checked(volume: Volume, array: NDArray[Any], highest: int) -> NDArray[Any]:
    values = value_counts(array)
    if highest == 1 and 255 in values and set(values) <= {0, 255}:
        return (array == 255).view(np.uint8)
    bad = [value for value in values if value not in range(highest + 1)]
    if bad:
        shown = listed((f"{value:g}" for value in bad), most=8)
        what = f"label values {shown} do not fit {highest + 1} classes (0 is background, 1..{highest})"
        raise fault(volume.path, what, "name the extra ones in classes.json or remap the file")
    return array.astype(label_dtype(highest), copy=False)


def write_labels(stem: Path, labels: NDArray[Any], like: Volume) -> Path:
    """Write a label map in the input's own format and geometry, whole or not at all.

    NIfTI stays .nii or .nii.gz, .mha, .nrrd and .npy stay themselves; PNG, BMP and JPEG become .png; TIFF becomes .tif.
    One map per class (multilabel) needs a format with channels: .tif also where the input was PNG. Rows of an npz become
    an .npz of one row.

    Args:
        stem: folder and name, without extension.
        labels: (*S), or (K, *S) for multilabel.
        like: the volume that was read.

    Returns:
        The path that was written.

    Raises:
        UsageError: if that path is the image itself, or cannot be written.
    """
    if labels.shape[labels.ndim - like.spatial_dims :] != like.size or labels.ndim - like.spatial_dims not in (0, 1):
        raise ValueError(f"labels {labels.shape} do not lie on the grid {like.size} of {like.path}")
    labels = labels.astype(label_dtype(int(labels.max(initial=0))))
    kind = _format(like)
    if kind == "nifti":
        suffix = ".nii" if like.meta.get("suffix") == ".nii" else ".nii.gz"
        return _whole(stem, suffix, lambda path: write_nifti(path, labels, like), like.path)
    if kind == "itk":
        suffix = str(like.meta["suffix"])
        return _whole(stem, suffix, lambda path: write_itk(path, labels, like), like.path)
    if kind == "npy":
        return _whole(stem, ".npy", lambda path: write_npy(path, labels, like), like.path)
    if kind == "npz":
        several = labels.ndim > like.spatial_dims
        return _whole(
            stem, ".npz", lambda path: write_masks(path, labels[None], [stem.name], multilabel=several), like.path
        )
    if kind == "raster" and labels.ndim == 2:
        return _whole(stem, ".png", lambda path: write_png(path, labels, like), like.path)
    return _whole(stem, ".tif", lambda path: write_tiff(path, labels, like), like.path)


def mask_suffix(source: Source, *, multilabel: bool) -> str:
    """The ending that `write_labels` gives to the mask of an image, from the image's name."""
    suffix = suffix_of(source.path)
    if suffix in (*NIFTI_SUFFIXES, *ITK_SUFFIXES, NUMPY_SUFFIX, ARRAY_SUFFIX):
        return suffix
    return ".png" if suffix in RASTER_SUFFIXES and not multilabel else ".tif"


def probabilities_suffix(source: Source) -> str:
    """The ending that `write_probabilities` gives to the probabilities of an image."""
    return ".nii.gz" if suffix_of(source.path) in NIFTI_SUFFIXES else ".npz"


def write_image(stem: Path, volume: Volume) -> Path:
    """Write the values of an image in its own format and geometry, whole or not at all; rows of an npz become .npy.

    Raises:
        DataError: if its format keeps no such values (pictures).
        UsageError: if the path is the image itself, or cannot be written.
    """
    array = volume.array[0] if volume.channels == 1 else volume.array
    kind = _format(volume)
    if kind == "nifti":
        suffix = ".nii" if volume.meta.get("suffix") == ".nii" else ".nii.gz"
        return _whole(stem, suffix, lambda path: write_nifti(path, array, volume), volume.path)
    if kind == "itk":
        return _whole(stem, str(volume.meta["suffix"]), lambda path: write_itk(path, array, volume), volume.path)
    if kind in ("npy", "npz"):
        return _whole(stem, ".npy", lambda path: write_npy(path, array, volume), volume.path)
    if kind == "tiff":
        return _whole(stem, ".tif", lambda path: write_tiff(path, array, volume), volume.path)
    raise fault(volume.path, "is a picture, which is not written anew", "export it again")


def write_probabilities(stem: Path, probabilities: NDArray[np.float32], like: Volume) -> Path:
    """Write (K, *S): NIfTI inputs give a 4D NIfTI, all others an .npz with the key `probabilities`.

    Those of a picture with an orientation tag lie on its stored pixels, as its mask does.
    """
    values = np.asarray(probabilities, dtype=np.float32)
    if _format(like) == "nifti":
        return _whole(stem, ".nii.gz", lambda path: write_nifti(path, values, like), like.path)
    values = np.ascontiguousarray(as_stored(values, orientation_of(like)))
    return _whole(stem, ".npz", lambda path: write_npz(path, probabilities=values), like.path)


def _format(like: Volume) -> str:
    return str(like.meta.get("format", "nifti" if like.affine is not None else "tiff"))


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
    if image is not None and target.exists() and same_place(target, image):
        raise UsageError(f"{target}: is the image itself; choose another folder with --out")
    write_whole(target, write)
    return target
