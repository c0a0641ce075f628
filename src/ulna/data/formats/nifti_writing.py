"""NIfTI with the geometry of the image: whole arrays, and maps of which only some slices are held at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from numpy.typing import DTypeLike, NDArray

from ulna.data.formats.nifti import NiftiStored
from ulna.data.formats.slabs import SLAB
from ulna.data.formats.source import suffix_of
from ulna.data.formats.whole_boxes import Boxed, slabs_along
from ulna.data.volume import Volume

_LEVEL = 1  # as nibabel packs


def write_nifti(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S) or (K, *S) with the header of `like` (orientation, its codes and units), or one made of its affine."""
    header, shape = _prepared(like, maps.dtype, len(maps) if maps.ndim > like.spatial_dims else None)
    array = maps if maps.ndim == like.spatial_dims else np.moveaxis(maps, 0, -1)
    _image(header)(array.reshape(shape), None, header).to_filename(path)


def write_nifti_slabs(path: Path, maps: Boxed, like: Volume, *, channels: bool) -> None:
    """The same of maps that are read a few slices at a time; `channels`: (K, *S), also where K is 1."""
    header, _ = _prepared(like, maps.dtype, maps.shape[0] if channels else None)
    header["magic"] = header.single_magic
    with _packed(path) as file:
        header.write_to(file)
        file.write(bytes(max(0, header.get_data_offset() - file.tell())))
        kind = np.dtype(maps.dtype).newbyteorder(header.endianness)
        for channel in range(maps.shape[0]):
            for _, part in slabs_along(maps, len(maps.shape) - 2, SLAB, channels=(channel,)):
                file.write(part[0].astype(kind, copy=False).tobytes(order="F"))


@contextmanager
def _packed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if suffix_of(path) != ".nii.gz":
            yield file
            return
        with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:  # nothing of the name or the time in it
            yield packed  # type: ignore[misc]


def _image(header: Any) -> Any:
    return Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image


def _prepared(like: Volume, dtype: DTypeLike, channels: int | None) -> tuple[Any, tuple[int, ...]]:
    """The header of a map, and the shape of its values in the file."""
    stored = like.meta.stored
    if not isinstance(stored, NiftiStored):
        stored = NiftiStored(_header_for(like), (*like.size, 1)[:3])
    header, spatial = stored.header.copy(), stored.size
    header.extensions.clear()  # may hold the patient's name
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 0  # wherever the input's data began
    for field in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    for field in ("intent_name", "descrip", "aux_file", "db_name", "data_type"):  # texts: may hold the patient's name
        if field in header:  # NIfTI-2 has fewer
            header[field] = b""
    header.set_data_dtype(dtype)
    header["pixdim"][4:] = 1.0
    # channels stand on the fourth axis, also for a 2D image
    shape = spatial if channels is None else (*spatial, *[1] * (3 - len(spatial)), channels)
    header.set_data_shape(shape)
    return header, shape


def _header_for(like: Volume) -> Any:
    """A header for a volume that came from no NIfTI file but has an affine."""
    header = Nifti1Header()
    header.set_data_shape((*like.size, 1)[:3])
    header.set_sform(like.affine, code="aligned")
    header.set_qform(like.affine, code="aligned", strip_shears=True)
    header.set_xyzt_units("mm")
    return header
