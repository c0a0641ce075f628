"""MetaImage (.mha) and NRRD (.nrrd): the values from their bytes, the geometry through SimpleITK, the extra `itk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_bytes import Stored, stored
from ulna.data.formats.nifti import flat_axis
from ulna.data.formats.source import AGAIN, data_error, suffix_of
from ulna.data.volume import Meta, Volume
from ulna.errors import UsageError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class ItkStored(NamedTuple):
    """The geometry as ITK has it, which counts to the left and to the back.

    Args:
        size: voxels along every axis of the file.
        origin: mm.
        direction: a column for every axis.
        spacing: mm.
    """

    size: tuple[int, ...]
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]
    spacing: NDArray[np.float64]


def read_itk(path: Path, spatial_dims: int | None = None) -> Volume:
    """(C, *S), the axes in the file's order, as for NIfTI; integers keep their type, real values are float32.

    A volume of one slice is read as `spatial_dims` says, as for NIfTI; a fourth axis holds the channels.

    Raises:
        DataError: if the file is cut short, damaged, or its header cannot be right.
        UsageError: if the extra `itk` is not installed.
    """
    sitk = _simple_itk(path)
    values = stored(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        direction = np.array(reader.GetDirection()).reshape(len(size), len(size))
        spacing, origin = (np.array(one) * values.millimetres for one in (reader.GetSpacing(), reader.GetOrigin()))
    except RuntimeError as error:
        said = str(error).strip().rsplit("\n", 1)[-1]
        raise data_error(path, f"has a header that cannot be read ({said})", AGAIN) from None
    array = _channels_first(path, values, size, components)
    flat = flat_axis(array.shape[1:], spatial_dims) if array.ndim == 4 else None
    either = array.ndim == 4 and 1 in array.shape[1:]
    if flat is not None:
        array = np.squeeze(array, flat + 1)
    spatial = array.ndim - 1
    converted = f"states lengths in a unit of {values.millimetres:g} mm; they are converted to mm"
    meta = Meta(
        format="itk",
        suffix=suffix_of(path),
        notes=() if values.millimetres == 1 else (converted,),
        too_large=values.too_large,
        either=either,
        oriented=values.oriented,
        stored=ItkStored(size, origin, direction, spacing),
    )
    array = np.ascontiguousarray(array)
    if not values.spaced:
        return Volume(array, (1.0,) * spatial, "px", None, path, meta)
    affine = _affine(path, direction[:3, :3], spacing[:3], origin[:3])
    order = [axis for axis in range(len(size[:3])) if axis != flat]
    if flat is not None:
        affine = affine[:, [*order, flat, 3]]
    steps = tuple(float(f"{spacing[axis]:.7g}") for axis in order)
    return Volume(array, steps, "mm", affine, path, meta)


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise UsageError(f"{path}: reading {suffix_of(path)} needs SimpleITK; pip install 'ulna[itk]'") from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is told as a problem
    return SimpleITK


def _channels_first(path: Path, values: Stored, size: tuple[int, ...], components: int) -> NDArray[Any]:
    """(C, *S) of the values, wherever the file has its channels."""
    remedy = "save a 2D or 3D image, with the channels as components or along the fourth axis"
    if not 2 <= len(size) <= 4 or min(size) < 1 or components < 1 or (len(size) == 4 and components > 1):
        raise data_error(path, f"has the sizes {size} with {components} components", remedy)
    array = values.values
    if values.sizes == (*size, components):
        array = np.moveaxis(array, -1, 0)
    elif values.sizes == size:
        array = np.moveaxis(array, 3, 0) if len(size) == 4 else array[None]
    elif values.sizes != (components, *size):
        raise data_error(path, f"has axes {values.sizes} that do not fit its geometry, {size}", remedy)
    return array


def _affine(
    path: Path, direction: NDArray[np.float64], spacing: NDArray[np.float64], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Voxel index -> RAS millimetres; ITK counts to the left and to the back."""
    affine = np.eye(4)
    dims = len(spacing)
    affine[:dims, :dims] = direction * spacing
    affine[:dims, 3] = origin
    remedy = "write the geometry anew, from the original series"
    if not np.isfinite(affine).all():
        raise data_error(path, "has an orientation that is not finite", remedy)
    if not spacing.min() > 0:
        raise data_error(path, f"has a voxel size of {tuple(spacing.tolist())}", remedy)
    if abs(np.linalg.det(direction)) < 1e-6:
        raise data_error(path, "has a singular orientation matrix", remedy)
    return _LPS_TO_RAS @ affine


def write_itk(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S) or (K, *S) with the geometry of `like`; K maps are components."""
    sitk = _simple_itk(path)
    geometry = like.meta.stored
    assert isinstance(geometry, ItkStored)
    size = geometry.size[:3]
    several = maps.ndim > like.spatial_dims
    maps = maps.reshape(*([len(maps)] if several else []), *size)
    array = np.moveaxis(maps, 0, -1).transpose(*reversed(range(len(size))), -1) if several else maps.transpose()
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=several)
    dims = len(size)
    image.SetOrigin(geometry.origin[:dims].tolist())
    image.SetSpacing(geometry.spacing[:dims].tolist())
    image.SetDirection(geometry.direction[:dims, :dims].ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise OSError(str(error).strip().rsplit("\n", 1)[-1]) from None
