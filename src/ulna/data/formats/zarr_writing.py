"""Images and label maps as OME-Zarr 0.5 (Zarr 3): chunks, several resolutions, and where the voxels lie."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ulna.data.formats.slabs import SLAB
from ulna.data.formats.source import data_error
from ulna.data.formats.whole_boxes import Boxed
from ulna.data.formats.zarr_boxes import OWN, SEVERAL, ZarrStored
from ulna.data.volume import Volume
from ulna.system.extras import need

CHUNK = {2: 512, 3: 64}  # voxels along every axis of space
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
_OWN_04 = ("multiscales", "omero", "image-label")  # what metadata 0.4 say at the top, and 0.5 under "ome"
_SMALLEST = 256  # along all axes: no smaller level is made
_AT_ONCE = 1 << 25  # bytes that are read at once, where a row of chunks takes more


def write_zarr(path: Path, maps: Boxed, like: Volume, name: str, *, labels: bool = False, inside: bool = False) -> None:
    """Write (C, *S), read some rows at a time, with every level half as large as the one before.

    Axes of an image with an affine are written the last one first (z, y, x); the affine is kept beside. What was OME-Zarr
    keeps the names of its axes, their units, scales and origin. A level takes every second voxel of the one before it, so no
    value is made that the image does not hold, and voxel 0 stays where it is.

    Args:
        path: the folder, which must not be there.
        maps: the values.
        like: their place.
        name: of the image, or of the label map.
        labels: whether they are a label map.
        inside: whether the folder will lie in `labels` of its image.

    Raises:
        UsageError: if zarr is not installed.
    """
    zarr = need("zarr", "OME-Zarr needs", "zarr")
    dims = like.spatial_dims
    turned = like.affine is not None
    order = list(reversed(range(dims))) if turned else list(range(dims))
    size = [maps.shape[1 + axis] for axis in order]
    names, units, steps, origin = ([each[axis] for axis in order] for each in _place(like))
    channels = maps.shape[0] > 1
    group = zarr.open_group(str(path), mode="w-", zarr_format=3)
    edge = CHUNK[dims]
    datasets: list[dict[str, Any]] = []
    level, factor = size, 1
    array: Any = None
    while True:
        chunks = [min(edge, n) for n in level]
        made = group.create_array(
            str(len(datasets)),
            shape=(*([maps.shape[0]] if channels else []), *level),
            chunks=(*([1] if channels else []), *chunks),
            dtype=maps.dtype,
            dimension_names=[*(["c"] if channels else []), *names],
            config={"write_empty_chunks": True},  # so that one that was not copied is missed
        )
        if array is None:
            _first(made, maps, order, chunks)
        else:
            _halved(array, made, channels=channels)
        lead = [1.0] if channels else []
        scale = {"type": "scale", "scale": [*lead, *(step * factor for step in steps)]}
        transformations = [scale, {"type": "translation", "translation": [*(0.0 for _ in lead), *origin]}]
        datasets.append({"path": str(len(datasets)), "coordinateTransformations": transformations})
        if max(level) <= _SMALLEST:
            break
        array, factor, level = made, 2 * factor, [-(-n // 2) for n in level]
    axes: list[dict[str, Any]] = [
        {"name": name, "type": "space", **({"unit": unit} if unit else {})}
        for name, unit in zip(names, units, strict=True)
    ]
    if channels:
        axes.insert(0, {"name": "c", "type": "channel"})
    told: dict[str, Any] = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
    if labels:
        told["image-label"] = {"version": "0.5", **({"source": {"image": "../../"}} if inside else {})}
    group.attrs.update({"ome": told})
    if like.affine is not None:
        group.attrs.update({OWN: {"affine": like.affine.tolist()}})


def _place(like: Volume) -> ZarrStored:
    """Names, units, steps and origin along the axes of an image, as its own file states them where it is OME-Zarr."""
    stored, dims = like.meta.stored, like.spatial_dims
    if isinstance(stored, ZarrStored) and stored.spacing == (like.spacing, like.unit):  # else somebody changed it since
        finite = all(map(math.isfinite, (*stored.steps, *stored.origin))) and min(stored.steps) > 0
        if finite and len({"c", *stored.names}) == dims + 1:
            return stored
    names = "xyz"[:dims] if like.affine is not None else "zyx"[3 - dims :]
    unit = "millimeter" if like.unit == "mm" else ""
    return ZarrStored(tuple(names), (unit,) * dims, like.spacing, (0.0,) * dims)


def _first(array: Any, maps: Boxed, order: Sequence[int], chunks: Sequence[int]) -> None:
    """The full resolution, whole chunks at a time: rows of them, or parts of rows that take more than some MB."""
    size = [maps.shape[1 + axis] for axis in order]
    parts, each = list(size), maps.nbytes
    for axis, edge in enumerate(chunks):  # cut along one axis after the other, the slowest in the file first
        each //= max(1, size[axis])
        parts[axis] = edge * max(1, SLAB // max(1, each * edge))
        each *= min(edge, size[axis])
        if each <= _AT_ONCE:
            break
    lead = (slice(None),) if maps.shape[0] > 1 else ()
    for box in _boxes(size, parts):
        stored = [slice(0, 0)] * len(order)
        for axis, part in zip(order, box, strict=True):
            stored[axis] = part
        values = maps.read(stored, range(maps.shape[0])).transpose(0, *(1 + axis for axis in order))
        array[(*lead, *box)] = values if lead else values[0]


def _boxes(size: Sequence[int], parts: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    steps = [range(0, n, part) for n, part in zip(size, parts, strict=True)]
    for corner in itertools.product(*steps):
        yield tuple(slice(at, min(at + part, n)) for at, part, n in zip(corner, parts, size, strict=True))


def _halved(array: Any, made: Any, *, channels: bool) -> None:
    """Every second voxel of one level as the next, a chunk of it at a time."""
    lead = int(channels)
    for channel in range(made.shape[0]) if lead else (None,):
        first: tuple[Any, ...] = () if channel is None else (channel,)
        for box in _boxes(made.shape[lead:], made.chunks[lead:]):
            twice = [slice(2 * part.start, 2 * part.stop) for part in box]  # zarr cuts at the end, as numpy does
            values = array[(*first, *twice)]
            made[(*first, *box)] = values[(slice(None, None, 2),) * len(box)]


def add_to_labels(path: Path) -> None:
    """Name a label map in the group that holds it, `IMAGE.zarr/labels`, which is made where there is none."""
    zarr = need("zarr", "OME-Zarr needs", "zarr")
    group = zarr.open_group(str(path.parent), mode="a")
    told = dict(group.attrs.get("ome", {"version": "0.5"}))
    names = [*told.get("labels", []), path.name]
    group.attrs.update({"ome": {**told, "labels": sorted(set(names))}})


def keep_rest(before: Path, path: Path, moved: Mapping[int, int] | None = None) -> None:
    """Move into an image that was written anew what lay in the folder of the old one beside its levels, such as label maps
    and further images; and give it what the attributes of the old one say beside its scales, such as the colours of channels.

    Args:
        before: the old folder.
        path: the new one.
        moved: of a label map: value -> what it is now; what is said of a value without an entry is left out. None: as it was.

    Raises:
        DataError: if something else has a name that a level has now, or a level is one of several images.
    """
    zarr = need("zarr", "OME-Zarr needs", "zarr")
    root = zarr.open_group(str(before), mode="r")
    several = SEVERAL in root.attrs.get("ome", root.attrs)
    old, inner = (root["0"], before / "0") if several else (root, before)
    outside = dict(old.attrs)
    # 0.4 says all of it in one place
    told = outside.pop("ome", None) or {key: outside.pop(key) for key in _OWN_04 if key in outside}
    images = told["multiscales"]
    others = {level for image in images[1:] for level in _levels(image)}
    if shared := _levels(images[0]) & others:
        what = f"holds several images, of which level {min(map(str, shared))} is part of two, and has values to be repaired"
        raise data_error(path, what, "keep each image in a folder of its own, such as NAME.zarr")
    _move(_rest(inner, PurePosixPath(), _levels(images[0])), inner, path)
    if several:
        outside = {**{key: text for key, text in root.attrs.items() if key not in ("ome", SEVERAL)}, **outside}
        _move([PurePosixPath(one.name) for one in before.iterdir() if one.name not in {*_METADATA, "0"}], before, path)
    group = zarr.open_group(str(path), mode="r+")
    now = dict(group.attrs)
    ome = {**told, **now["ome"]}
    ome["multiscales"] = [*ome["multiscales"], *images[1:]]
    if "image-label" in told:
        ome["image-label"] = _of_values(told["image-label"], now["ome"].get("image-label", {}), moved)
    group.attrs.update({**outside, **now, "ome": ome})


def _levels(image: Any) -> set[PurePosixPath]:
    """The arrays of an entry of `multiscales`; of one that is malformed those that it names."""
    found = image.get("datasets") if isinstance(image, Mapping) else None
    named = [one.get("path") for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    return {PurePosixPath(str(one)) for one in named if one is not None}


def _rest(folder: Path, inside: PurePosixPath, levels: set[PurePosixPath]) -> list[PurePosixPath]:
    """What lies in a folder and is neither metadata of its own nor a level, as paths in the image."""
    found: list[PurePosixPath] = []
    for entry in sorted(folder.iterdir()):
        one = inside / entry.name
        if one in levels or (entry.name in _METADATA and not inside.parts):
            continue
        if not any(one in level.parents for level in levels):
            found.append(one)
            continue
        rest = _rest(entry, one, levels)
        if {each.name for each in rest} - {*_METADATA}:
            found += rest
    return found


def _move(names: Sequence[PurePosixPath], before: Path, path: Path) -> None:
    for name in names:
        if os.path.lexists(path / name):
            what = f"holds {name} beside its levels, and one of the levels that are written anew has that name"
            raise data_error(path, what, "give it another name, or write the image anew")
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).rename(path / name)


def _of_values(told: Any, now: Mapping[str, Any], moved: Mapping[int, int] | None) -> dict[str, Any]:
    """What is said of a label map and of its values, by the values that it has now."""
    kept = {**told, **now} if isinstance(told, Mapping) else dict(now)
    if moved is None:
        return kept
    for key in {"colors", "properties"} & kept.keys():
        entries = kept.get(key)
        kept[key] = [
            {**one, "label-value": moved[one["label-value"]]}
            for one in (entries if isinstance(entries, list) else [])
            if isinstance(one, Mapping) and isinstance(one.get("label-value"), int) and one["label-value"] in moved
        ]
    return kept
