"""Images that are only looked through, mapped from a file: of memory they take what is looked at, until that is let go of."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats.bricks import Bricks, refuse_full
from ulna.data.formats.limits import mapped_from, scratch_folder
from ulna.data.formats.opening import OpenImage, open_image, peek_image
from ulna.data.formats.read import read_image
from ulna.data.formats.source import NIFTI_SUFFIXES, NUMPY_SUFFIX, TIFF_SUFFIXES, Source, is_zarr, suffix_of
from ulna.data.volume import Volume
from ulna.system.mapped import InFile

_PART = 1 << 24  # bytes that are copied at once


def read_or_map(sources: Sequence[Source], spatial_dims: int | None = None) -> Volume:
    """One case as `read_image` has it; its array is mapped where it is large, for whoever has a limit (`mapped_from`).

    Of what is mapped, `meta.too_large` is None.

    Raises:
        DataError: as `read_image`.
        UsageError: where the disk is full.
    """
    least = mapped_from()
    if least == math.inf or not all(map(_may_be_mapped, sources)):
        return read_image(sources, spatial_dims)
    peeked = peek_image(sources, spatial_dims)
    array = peeked.volume.array
    if not peeked.by_slabs or math.prod(array.shape) * array.dtype.itemsize < least:
        return read_image(sources, spatial_dims)
    scratch = scratch_folder()
    with open_image(sources, spatial_dims, scratch) as image:
        try:
            return image.volume.with_array(_mapped(image, scratch))
        except OSError as error:
            refuse_full(error, scratch)
            raise


def _may_be_mapped(source: Source) -> bool:
    if source.series is not None or source.row is not None:
        return False
    known = (*NIFTI_SUFFIXES, *TIFF_SUFFIXES, NUMPY_SUFFIX)
    return is_zarr(source.path) or (source.path.is_file() and suffix_of(source.path) in known)


def _mapped(image: OpenImage, scratch: Path | None) -> NDArray[Any]:
    """(C, *S) in the order of memory, in a nameless file."""
    shape, dtype, axis = image.volume.array.shape, image.volume.array.dtype, image.axis
    size = shape[1:]
    with closing(Bricks(shape, dtype, scratch)) as bricks, tempfile.TemporaryFile(dir=scratch) as file:
        rows = _rows(shape[0] * math.prod(size) // size[axis] * dtype.itemsize)
        for first in range(0, size[axis], rows):
            here = slice(first, min(first + rows, size[axis]))
            box = [here if a == axis else slice(0, n) for a, n in enumerate(size)]
            bricks.write(box, image.read(box))
        rows = _rows(math.prod(size[1:]) * dtype.itemsize)
        for channel in range(shape[0]):
            for first in range(0, size[0], rows):
                here = slice(first, min(first + rows, size[0]))
                file.write(bricks.read([here, *(slice(0, n) for n in size[1:])], [channel]).tobytes())
        file.flush()
        return InFile(file, dtype, "r", shape=shape)


def _rows(each: int) -> int:
    return max(1, _PART // max(each, 1))
