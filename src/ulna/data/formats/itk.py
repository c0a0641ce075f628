"""MetaImage (.mha) and NRRD (.nrrd), the formats of ITK: files to volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_bytes import stored
from ulna.data.formats.itk_header import Geometry, Header, ItkStored
from ulna.data.formats.nifti import flat_axis
from ulna.data.formats.source import data_error, suffix_of
from ulna.data.volume import Meta, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path, spatial_dims: int | None = None) -> Volume:
    """(C, *S), the axes in the file's order, as for NIfTI; integers keep their type, real values are float32.

    A volume of one slice is read as `spatial_dims` says, as for NIfTI; a fourth axis holds the channels.

    Raises:
        DataError: if the file is cut short, damaged, or its header cannot be right.
    """
    values, header, too_large = stored(path)
    size, array = _channels_first(path, values, header)
    geometry, affine = _place(path, header)
    flat = flat_axis(array.shape[1:], spatial_dims) if array.ndim == 4 else None
    either = array.ndim == 4 and 1 in array.shape[1:]
    if flat is not None:
        array = np.squeeze(array, flat + 1)
    spatial = array.ndim - 1
    converted = f"states lengths in a unit of {header.millimetres:g} mm; they are converted to mm"
    meta = Meta(
        format="itk",
        suffix=suffix_of(path),
        notes=() if header.millimetres == 1 else (converted,),
        too_large=too_large,
        either=either,
        oriented=header.oriented,
        stored=ItkStored(size[:3], geometry),
    )
    array = np.ascontiguousarray(array)
    if not header.spaced:
        return Volume(array, (1.0,) * spatial, "px", None, path, meta)
    order = [axis for axis in range(len(size[:3])) if axis != flat]
    if flat is not None:
        affine = affine[:, [*order, flat, 3]]
    steps = tuple(float(f"{geometry.spacing[axis]:.7g}") for axis in order)
    return Volume(array, steps, "mm", affine, path, meta)


def _channels_first(path: Path, values: NDArray[Any], header: Header) -> tuple[tuple[int, ...], NDArray[Any]]:
    """The sizes of all axes but that of channels, and (C, *S) of the values, wherever the file has its channels."""
    size = tuple(n for axis, n in enumerate(header.sizes) if axis != header.channels)
    components = 1 if header.channels is None else header.sizes[header.channels]
    if not 2 <= len(size) <= 4 or (len(size) == 4 and header.channels is not None):
        remedy = "save a 2D or 3D image, with the channels as components or along the fourth axis"
        raise data_error(path, f"has the sizes {size} with {components} components", remedy)
    if header.channels is not None:
        return size, np.moveaxis(values, header.channels, 0)
    return size, np.moveaxis(values, 3, 0) if len(size) == 4 else values[None]


def _place(path: Path, header: Header) -> tuple[Geometry, NDArray[np.float64]]:
    """The geometry of the axes of space in millimetres, and their affine: voxel index -> RAS millimetres."""
    remedy = "write the geometry anew, from the original series"
    origin, spacing, direction = header.geometry
    dims = min(len(spacing), 3)
    if direction[dims:, :dims].any() or direction[:dims, dims:].any():
        raise data_error(path, "has a fourth axis that is turned into space", remedy)
    direction, affine = direction[:dims, :dims], np.eye(4)
    with np.errstate(all="ignore"):
        origin, spacing = origin[:dims] * header.millimetres, spacing[:dims] * header.millimetres
        affine[:dims, :dims] = direction * spacing
    affine[:dims, 3] = origin
    if not np.isfinite(affine).all():
        raise data_error(path, "has an orientation that is not finite", remedy)
    if not spacing.min() > 0:
        raise data_error(path, f"has a voxel size of {tuple(spacing.tolist())}", remedy)
    if abs(np.linalg.det(direction)) < 1e-6:
        raise data_error(path, "has a singular orientation matrix", remedy)
    return Geometry(origin, spacing, direction), _LPS_TO_RAS @ affine
