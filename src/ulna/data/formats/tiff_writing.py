"""Label maps and values as TIFF: in ImageJ's form, with the scale, the axes and the orientation of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ulna.data.formats.tiff_scale import Scale, TiffStored, in_micrometres
from ulna.data.turning import ORIENTATION, UPRIGHT, as_stored, orientation_of
from ulna.data.volume import Volume

_SHORT = 3  # a TIFF type


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


def _scale(like: Volume) -> Scale:
    """Of a volume that came from another format."""
    if like.unit != "mm":
        return Scale()
    *z, y, x = like.spacing
    return in_micrometres((z[0] if z else None, y, x))
