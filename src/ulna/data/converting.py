"""The verb `convert`: an image from one format to another, its geometry kept, some rows of it in memory at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulna.data.as_format import fitted
from ulna.data.formats.itk_writing import write_itk
from ulna.data.formats.nifti_writing import write_nifti_slabs
from ulna.data.formats.npy import write_npy_slabs
from ulna.data.formats.opening import open_image
from ulna.data.formats.source import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    NUMPY_SUFFIX,
    TIFF_SUFFIXES,
    Source,
    is_zarr,
    suffix_of,
)
from ulna.data.formats.tiff_writing import write_tiff_slabs
from ulna.data.formats.whole_boxes import Boxed
from ulna.data.formats.zarr_writing import add_to_labels, write_zarr
from ulna.data.volume import Volume, spacing_text
from ulna.errors import UsageError, printable
from ulna.system.files import write_whole
from ulna.system.outputs import same_place
from ulna.system.trees import write_tree

log = logging.getLogger(__name__)

WRITTEN = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *TIFF_SUFFIXES, NUMPY_SUFFIX, ".zarr")


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
            maps = Boxed(volume.array.shape, volume.array.dtype, lambda box, wanted: _of(opened.read(box), wanted))
            like, maps, lost = fitted(volume, maps, out)
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
    write_tree(path, lambda folder: write_zarr(folder, maps, like, path.name, labels=labels, inside=named))
    if named:
        add_to_labels(path)


def _of(values: Any, channels: Sequence[int]) -> Any:
    return values if len(channels) == len(values) else values[list(channels)]
