"""OME-Zarr (NGFF 0.4 in Zarr 2, 0.5 in Zarr 3) on the disk: the metadata of an image, and boxes of its full resolution.

Axes are channels, then space: (C, *S) with *S as the file orders it (z, y, x). What ulna wrote of an image with an affine
states that affine too, and has the axes of that image, the last one first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.limits import check_memory, check_pixels
from ulna.data.formats.slabs import SLAB, Float32, native
from ulna.data.formats.source import AGAIN, data_error, first_line, suffix_of
from ulna.data.formats.units import millimetres_in
from ulna.data.formats.zarr_store import Guard, guarded_store
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError
from ulna.system.extras import need

OWN = "ulna"  # the attribute that holds what OME-Zarr has no word for
LARGEST = 1 << 22  # bytes of a chunk that are worth decoding for every box that touches it; ten are decoded at once
_MISSING = "lacks chunks, which are read as its fill value: it is empty there, or was not copied as a whole"
_REMEDY = "write it as OME-Zarr 0.4 or 0.5"
_SMALLER = "convert it on a machine with more memory, which writes smaller chunks (ulna convert IMAGE.zarr NEW.zarr)"
_WHOLE = "cut it into smaller images: it is read whole here"
SEVERAL = "bioformats2raw.layout"  # images as groups 0, 1, ... of one folder


class Level(NamedTuple):
    """What the metadata say of one resolution.

    Args:
        path: of its array, in the group.
        axes: their names, in order.
        kinds: "channel", "space" or "time", one an axis.
        steps: between neighbours, in the unit.
        origin: of the first voxel, in the unit.
        units: one an axis; empty for none.
        affine: (4, 4) of the image whose axes these are, the last first; None where none is stated.
    """

    path: str
    axes: tuple[str, ...]
    kinds: tuple[str, ...]
    steps: tuple[float, ...]
    origin: tuple[float, ...]
    units: tuple[str, ...]
    affine: NDArray[np.float64] | None

    def along(self, order: Sequence[int]) -> ZarrStored:
        """What is said of some of its axes."""
        names, units = (tuple(each[axis] for axis in order) for each in (self.axes, self.units))
        steps, origin = (tuple(each[axis] for axis in order) for each in (self.steps, self.origin))
        return ZarrStored(names, units, steps, origin)


class ZarrStored(NamedTuple):
    """The place of an image as its file states it, which its masks state too: one of each an axis of *S.

    Args:
        names: of the axes.
        units: empty for none.
        steps: between neighbours, in the unit.
        origin: of the first voxel, in the unit.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    steps: tuple[float, ...]
    origin: tuple[float, ...]

    @property
    def spacing(self) -> tuple[tuple[float, ...], str]:
        """Along every axis, and its unit: mm, or px where one axis has no unit of length."""
        scales = [millimetres_in(unit) for unit in self.units]
        lengths = [step * scale for step, scale in zip(self.steps, scales, strict=True) if scale is not None]
        return (tuple(lengths), "mm") if len(lengths) == len(scales) else ((1.0,) * len(scales), "px")


class ZarrBoxes:
    """The values of one array.

    Args:
        path: of the image.
        array: of the zarr library.
        order: for every axis of (C, *S), its axis in the array; None where there is no such axis.
    """

    def __init__(self, path: Path, array: Any, order: Sequence[int | None]) -> None:
        self._path, self._array, self._order = path, array, tuple(order)
        self._float32 = Float32()

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk, unpacked."""
        return math.prod(self._array.chunks) * np.dtype(self._array.dtype).itemsize

    @property
    def too_large(self) -> tuple[int, float] | None:
        """How many of the values that were read float32 does not hold, and the largest; None for none."""
        return self._float32.too_large

    @property
    def piece_bytes(self) -> int:
        """Of what is read at once where chunks are read one by one: all channels of a place, or a chunk that is more."""
        channels = 1 if self._order[0] is None else self._array.shape[self._order[0]]
        edges = [min(self._array.chunks[axis], self._array.shape[axis]) for axis in self._order[1:] if axis is not None]
        return max(self.chunk_bytes, channels * math.prod(edges) * np.dtype(self._array.dtype).itemsize)

    def check_pieces(self) -> None:
        """Refuse chunks of which the memory does not hold what is read at once.

        Raises:
            DataError: saying how much that is.
        """
        if self.chunk_bytes > LARGEST:
            check_memory(self._path, self.piece_bytes, "has chunks, with all channels, of", _SMALLER)

    def pieces(self) -> Iterator[list[slice]]:
        """Boxes that are together all of the image, each chunk in one of them: large chunks one by one, else slabs."""
        space = [axis for axis in self._order[1:] if axis is not None]
        size, edges = [self._array.shape[axis] for axis in space], [self._array.chunks[axis] for axis in space]
        if self.chunk_bytes <= LARGEST:
            channels = 1 if self._order[0] is None else self._array.shape[self._order[0]]
            row = channels * math.prod(size[1:]) * np.dtype(self._array.dtype).itemsize
            edges = [edges[0] * max(1, SLAB // max(1, row * edges[0])), *size[1:]]
        steps = [range(0, n, max(1, edge)) for n, edge in zip(size, edges, strict=True)]
        for corner in itertools.product(*steps):
            yield [slice(at, min(at + edge, n)) for at, edge, n in zip(corner, edges, size, strict=True)]

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """(C, *box)."""
        wanted = [slice(0, n) for n in self._array.shape]
        for axis, part in zip(self._order[1:], box, strict=True):
            assert axis is not None
            wanted[axis] = part
        try:
            values = np.asarray(self._array[tuple(wanted)])
        except (OSError, MemoryError, DataError):
            raise
        except Exception as error:  # codecs raise many types on damaged chunks
            raise data_error(self._path, f"is damaged ({first_line(error)})", AGAIN) from None
        kept = [axis for axis in self._order if axis is not None]
        values = values.transpose(*kept, *(axis for axis in range(values.ndim) if axis not in kept))
        size = [part.stop - part.start for part in box]
        values = values.reshape((self._array.shape[self._order[0]] if self._order[0] is not None else 1, *size))
        kind = native(values.dtype)
        return self._float32(values) if kind == np.float32 else np.ascontiguousarray(values, kind)

    def close(self) -> None:
        """Nothing is held."""


def read_zarr(path: Path, spatial_dims: int | None = None) -> Volume:
    """The full resolution of an image in memory, (C, *S); see `open_zarr`."""
    volume, boxes = open_zarr(path, spatial_dims)
    check_memory(path, volume.array.nbytes, remedy=_WHOLE)
    boxes.check_pieces()
    array = np.empty(volume.array.shape, volume.array.dtype)
    for box in boxes.pieces():
        array[(slice(None), *box)] = boxes.read(box)
    return replace(volume, array=array, meta=replace(volume.meta, too_large=boxes.too_large))


def open_zarr(path: Path, spatial_dims: int | None = None) -> tuple[Volume, ZarrBoxes]:
    """The geometry of an image, in a volume without memory, and boxes of its full resolution.

    Args:
        path: the folder.
        spatial_dims: as for `ulna.data.formats.read.read_image`: what one slice is read as.

    Raises:
        DataError: if the folder holds no OME-Zarr image, or one of other axes.
        UsageError: if zarr is not installed.
    """
    zarr = need("zarr", "OME-Zarr needs", "zarr")
    if not path.is_dir():
        what = "is a file, and OME-Zarr is a folder" if path.exists() else "does not exist"
        raise data_error(path, what, "unpack it into a folder of that name" if path.exists() else "check the path")
    try:
        guard = Guard(path)
        group = zarr.open_group(store=guarded_store(path, guard), mode="r")
        if SEVERAL in group.attrs.get("ome", group.attrs):
            if "1" in group:
                raise data_error(path, "holds several images", "copy each into a folder of its own, such as NAME.zarr")
            group = group["0"]
        level = _level(path, dict(group.attrs))
        array = group[level.path]
        guard.watch(array)
        shape, dtype = tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        missing = 0 not in shape and array.nchunks_initialized < array.nchunks
    except DataError:
        raise
    except Exception as error:  # zarr raises many types
        raise data_error(path, f"cannot be read as OME-Zarr ({first_line(error)})", _REMEDY) from None
    if len(shape) != len(level.axes):
        raise data_error(path, f"has an array of {len(shape)} axes and names {len(level.axes)}", _REMEDY)
    if dtype.kind not in "iufb":
        raise data_error(path, f"holds values of type {dtype}", "save it with integer or real values")
    if 0 in shape:
        raise data_error(path, f"holds no pixel, its shape is {shape}", "take the case out")
    check_pixels(path, shape)
    space = [axis for axis, kind in enumerate(level.kinds) if kind == "space"]
    flat = len(space) == 3 and shape[space[0]] == 1 and level.affine is None  # a picture, written with a depth of 1
    if flat and spatial_dims != 3:
        space = space[1:]
    others = [axis for axis, n in enumerate(shape) if axis not in space and n > 1]
    if times := [axis for axis in others if level.kinds[axis] == "time"]:
        what = f"holds {shape[times[0]]} points in time (axis {level.axes[times[0]]}), and an image is of one"
        raise data_error(path, what, "save each of them as an image of its own")
    if len(space) not in (2, 3) or len(others) > 1:
        held = ", ".join(f"{name} {n}" for name, n in zip(level.axes, shape, strict=True))
        raise data_error(path, f"has the axes {held}", "save one 2D or 3D image, with channels at most beside")
    notes = [_MISSING] if missing else []
    if others and level.kinds[others[0]] != "channel":
        notes.append(f"has {shape[others[0]]} pictures along {level.axes[others[0]]}, read as channels")
    if level.affine is not None:
        space = space[::-1]
    channels = others[0] if others else None
    full = (1 if channels is None else shape[channels], *(shape[axis] for axis in space))
    hollow = np.broadcast_to(np.zeros((), native(dtype)), full)
    stored = level.along(space)
    spacing, unit = stored.spacing
    if min(spacing) <= 0 or not all(map(math.isfinite, spacing)):
        raise data_error(path, f"has a voxel size of {spacing}", "write the metadata anew")
    if level.affine is not None and not _fits(level.affine, spacing):
        raise data_error(path, f"states an affine that is not that of its scales, {spacing}", "write the metadata anew")
    meta = Meta(format="zarr", suffix=suffix_of(path), notes=tuple(notes), either=flat, stored=stored)
    volume = Volume(hollow, spacing, unit, level.affine, path, meta)
    return volume, ZarrBoxes(path, array, [channels, *space])


def _fits(affine: NDArray[np.float64], spacing: Sequence[float]) -> bool:
    """Whether an affine has an inverse, and the steps along its axes are those of the scales."""
    axes = affine[:3, : len(spacing)]
    lengths = np.linalg.svd(axes, compute_uv=False)
    steps = np.linalg.norm(axes, axis=0)
    return bool(lengths.min() >= 1e-6 * lengths.max() and np.allclose(steps, spacing, rtol=0.01, atol=0))


def _level(path: Path, attributes: Mapping[str, Any]) -> Level:
    """What the attributes of a group say of the highest resolution."""
    told = attributes.get("ome", attributes)
    several = told.get("multiscales") if isinstance(told, Mapping) else None
    if not isinstance(several, list) or not several:
        raise data_error(path, "holds no OME-Zarr image (no multiscales in its attributes)", _REMEDY)
    image = several[0]
    axes = [one if isinstance(one, Mapping) else {"name": str(one)} for one in image["axes"]]
    names = tuple(str(one["name"]) for one in axes)
    usual = {"t": "time", "c": "channel"}
    kinds = tuple(str(one.get("type") or usual.get(name, "space")) for one, name in zip(axes, names, strict=True))
    first = image["datasets"][0]
    steps, origin = np.ones(len(names)), np.zeros(len(names))
    for found in (first.get("coordinateTransformations") or [], image.get("coordinateTransformations") or []):
        for one in found:
            values = np.asarray(one.get(one.get("type")) if one.get("type") in ("scale", "translation") else 0, float)
            if one.get("type") == "scale":
                steps, origin = steps * values, origin * values
            elif one.get("type") == "translation":
                origin = origin + values
    own = attributes.get(OWN)
    affine = np.asarray(own["affine"], np.float64) if isinstance(own, Mapping) and "affine" in own else None
    if affine is not None and (affine.shape != (4, 4) or not np.isfinite(affine).all()):
        raise data_error(path, "states an affine that is none", "write the metadata anew")
    units = tuple(str(one.get("unit") or "") for one in axes)
    return Level(str(first["path"]), names, kinds, tuple(map(float, steps)), tuple(map(float, origin)), units, affine)
