"""Label maps and values as TIFF: in ImageJ's form, with the scale, the axes and the orientation of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ulna.data.formats.tiff_scale import Scale, TiffStored, in_micrometres
from ulna.data.formats.whole_boxes import Boxed
from ulna.data.turning import ORIENTATION, TURNS, UPRIGHT, as_stored, exchanged, orientation_of
from ulna.data.volume import Volume

_SHORT = 3  # a TIFF type
_SMALL = 1 << 31  # bytes of values that surely fit into a TIFF of 32 bits
TILE = 256


def write_tiff(path: Path, maps: NDArray[Any], like: Volume) -> None:
    """Write (*S) or (K, *S) as an ImageJ TIFF, stored and scaled as the image is; a run along time stays one."""
    dims = like.spatial_dims
    orientation = orientation_of(like)
    maps = as_stored(maps, orientation)
    stored = like.meta.stored if isinstance(like.meta.stored, TiffStored) else TiffStored(_scale(like))
    run = "T" if stored.run == "T" else "Z"
    if maps.ndim > dims:  # ImageJ's order is time, depth, channels, rows, columns
        maps = np.moveaxis(maps, 0, -3)
    axes = (run if dims == 3 else "") + ("C" if maps.ndim > dims else "") + "YX"
    scale = stored.scale
    options: dict[str, Any] = {}
    if scale.resolution is not None:
        options |= {"resolution": scale.resolution, "resolutionunit": scale.code}
    if orientation != UPRIGHT:
        options["extratags"] = [(ORIENTATION, _SHORT, 1, orientation, True)]
    if maps.dtype.itemsize > 2:  # ImageJ has no whole numbers of 32 bits
        tifffile.imwrite(path, np.ascontiguousarray(maps), photometric="minisblack", metadata={"axes": axes}, **options)
        return
    about = {"axes": axes, **scale.about}
    tifffile.imwrite(path, np.ascontiguousarray(maps), imagej=True, metadata=about, **options)


def write_tiff_slabs(path: Path, maps: Boxed, like: Volume, *, channels: bool) -> None:
    """Write maps that are read tile by tile as a tiled, packed OME-TIFF, a BigTIFF where it may grow beyond 4 GB.

    Spacing is stated where the image states one; the orientation tag is kept, and values stand as they are stored.
    """
    orientation = orientation_of(like)
    count, *size = maps.shape
    *depth, height, width = exchanged(size, orientation)
    axes = ("C" if channels else "") + ("Z" if depth else "") + "YX"
    metadata: dict[str, Any] = {"axes": axes}
    if like.unit == "mm":
        steps = exchanged(like.spacing, orientation)
        for name, step in zip("XYZ", reversed(steps), strict=False):
            metadata |= {f"PhysicalSize{name}": step * 1e3, f"PhysicalSize{name}Unit": "µm"}
    options: dict[str, Any] = {}
    if orientation != UPRIGHT:
        options["extratags"] = [(ORIENTATION, _SHORT, 1, orientation, True)]
    tifffile.imwrite(
        path,
        _tiles(maps, orientation, size),
        shape=(*([count] if channels else []), *depth, height, width),
        dtype=maps.dtype,
        bigtiff=maps.nbytes > _SMALL,
        ome=True,
        photometric="minisblack",
        tile=(TILE, TILE),
        compression="zlib",
        metadata=metadata,
        **options,
    )


def _tiles(maps: Boxed, orientation: int, size: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Tiles in the order of the file, page by page and row by row, those at the edges filled with 0."""
    *depth, rows, columns = exchanged(size, orientation)
    for channel in range(maps.shape[0]):
        for place in range(depth[0] if depth else 1):
            for top in range(0, rows, TILE):
                box = [slice(top, min(top + TILE, rows)), slice(0, columns)]
                shown = _shown_box(box, orientation, size)
                band = maps.read([*([slice(place, place + 1)] if depth else []), *shown], (channel,))[0]
                band = as_stored(band[0] if depth else band, orientation)
                for left in range(0, columns, TILE):
                    part = band[:, left : left + TILE]
                    yield np.pad(part, ((0, TILE - part.shape[0]), (0, TILE - part.shape[1])))


def _shown_box(box: Sequence[slice], orientation: int, size: Sequence[int]) -> list[slice]:
    """Rows and columns as stored -> those of the picture as shown, whose size is `size`."""
    swap, rows, columns = TURNS[orientation]
    y, x = (box[1], box[0]) if swap else (box[0], box[1])
    height, width = size[-2:]
    y = slice(height - y.stop, height - y.start) if rows else y
    return [y, slice(width - x.stop, width - x.start) if columns else x]


def _scale(like: Volume) -> Scale:
    """Of a volume that came from another format."""
    if like.unit != "mm":
        return Scale()
    *z, y, x = like.spacing
    return in_micrometres((z[0] if z else None, y, x))
