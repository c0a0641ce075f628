"""SEG and RTSTRUCT files as one label map, on the grid of their series."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ulna.data.formats.dicom.finding import known_header, look
from ulna.data.formats.dicom.fixes import Fixes
from ulna.data.formats.dicom.header import Header, Slice, read_dataset
from ulna.data.formats.dicom.naming import Named, class_of
from ulna.data.formats.dicom.planes import to_grid
from ulna.data.formats.dicom.rtstruct import read_rtstruct, regions_of
from ulna.data.formats.dicom.seg import Part, read_seg, segments_of, slices_of
from ulna.data.formats.dicom.series import stack_of, volume_of
from ulna.data.formats.dicom.stack import Stack, stack
from ulna.data.formats.source import Series, Source, Structure, data_error
from ulna.data.volume import Volume, label_dtype

_OVERLAP = 'write "mode": "multilabel" in classes.json to have them as overlapping channels, or take one out'


def named_in(path: Path) -> list[Named]:
    """The segments or structures of a label file.

    Raises:
        DataError: if it is damaged, or no label file.
    """
    kind = known_header(path).kind
    if kind not in ("seg", "rtstruct"):
        raise data_error(path, "is no SEG and no RTSTRUCT", "take it out")
    dataset = read_dataset(path, pixels=False, tags=None)
    return segments_of(dataset) if kind == "seg" else regions_of(dataset)


def read_label_files(source: Source, spatial_dims: int | None = None) -> Volume:
    """(1, *S) of classes, or (K, *S) of 0 and 1 where they may overlap; on the grid of the image, where one is named.

    Raises:
        DataError: if a file is damaged, lies on another grid, or two classes share pixels and may not.
    """
    series = source.series or Series((source.path,) if source.path.is_file() else _label_files(source.path))
    if series.grid:
        whole = stack_of(source.path, Series(series.grid, series.fixes))
    else:
        whole = _own_stack(series.files[0])
    structures = series.structures or tuple(_numbered(series.files))
    notes: dict[str, None] = {}
    rows, columns = whole.frames[0].header.rows, whole.frames[0].header.columns
    shape = (len(whole.frames), rows, columns)
    if series.overlapping:
        maps = np.zeros((len(structures), *shape), np.uint8)
        for place, part in _parts(series, whole, structures, notes):
            maps[place, part.frame] |= part.mask
        values = np.stack([to_grid(one, whole) for one in maps]) if not whole.straight else maps.transpose(0, 3, 2, 1)
    else:
        held = np.zeros(shape, label_dtype(len(structures)))
        shared: dict[tuple[int, int], int] = {}
        for place, part in _parts(series, whole, structures, notes):
            frame, before = held[part.frame], held[part.frame][part.mask]
            for other in np.unique(before):
                if other not in (0, place + 1):
                    pair = (int(other) - 1, place)
                    shared[pair] = shared.get(pair, 0) + int((before == other).sum())
            frame[part.mask] = place + 1
        for (a, b), count in shared.items():
            told = f"has {count} voxels that are {structures[a].name!r} and {structures[b].name!r}"
            raise data_error(series.files[0], told, _OVERLAP)
        values = to_grid(held, whole)
    volume = volume_of(whole, values, source.path, spatial_dims)
    return replace(volume, meta=replace(volume.meta, notes=tuple(notes)))


def _label_files(folder: Path) -> tuple[Path, ...]:
    files = tuple(header.path for header in look(folder).headers if header.kind in ("seg", "rtstruct"))
    if not files:
        raise data_error(folder, "holds no SEG and no RTSTRUCT", "give a folder of labels")
    return files


def overlap(source: Source) -> bool:
    """Whether two of the structures of a source share a voxel."""
    series = source.series
    assert series is not None
    whole = stack_of(source.path, Series(series.grid, series.fixes))
    seen: dict[int, list[tuple[int, np.ndarray]]] = {}
    for place, part in _parts(series, whole, series.structures, {}):
        if not part.mask.any():
            continue
        packed = np.packbits(part.mask)
        others = seen.setdefault(part.frame, [])
        if any(other != place and (bits & packed).any() for other, bits in others):
            return True
        others.append((place, packed))
    return False


def _numbered(files: tuple[Path, ...]) -> Iterator[Structure]:
    """Segments under their own numbers, as they are stored."""
    numbers = {named.number: named.label for file in files for named in named_in(file)}
    for number in range(1, max(numbers, default=0) + 1):
        yield Structure(numbers.get(number, f"segment {number}"), (f"#{number}",))


def _parts(
    series: Series, whole: Stack, structures: tuple[Structure, ...], notes: dict[str, None]
) -> Iterator[tuple[int, Part]]:
    """The parts of all files with the places of their classes, which are found by "#number" before any name."""
    numbers = {known: at for at, structure in enumerate(structures) for known in structure.known_as if known[:1] == "#"}

    def place(named: Named) -> int | None:
        if not series.structures:
            return named.number - 1
        own = numbers.get(f"#{named.number}")
        return class_of(named, structures) if own is None else own

    for file in series.files:
        header = known_header(file)
        _check_place(header, whole)
        read = read_rtstruct if header.kind == "rtstruct" else read_seg
        if header.kind not in ("seg", "rtstruct"):
            raise data_error(file, "is no SEG and no RTSTRUCT", "take it out")
        for part in read(file, whole, lambda named: place(named) is not None, notes):
            where = place(part.named)
            assert where is not None
            yield where, part


def _check_place(labels: Header, whole: Stack) -> None:
    own, other = labels.frame_of_reference, whole.frames[0].header.frame_of_reference
    if labels.kind == "seg" and own and other and own != other:
        told = "has another frame of reference than its series, so nobody can say where it lies there"
        raise data_error(labels.path, told, "take the labels of this series")


def _own_stack(path: Path) -> Stack:
    """The grid that the frames of a SEG state, from its first slice with labels to its last."""
    header = known_header(path)
    if header.kind != "seg":
        raise data_error(
            path, "holds contours, which need the series that they were drawn on", "give the data set with its series"
        )
    dataset = read_dataset(path, pixels=False, tags=None)
    places = [at for _, at in slices_of(dataset, path)]
    like = replace(
        header, kind="image", rows=int(dataset.Rows), columns=int(dataset.Columns), photometric="MONOCHROME2", faults=()
    )
    first = places[0]
    if first.position is None or first.orientation is None:
        return stack([replace(like, slices=(Slice(spacing=first.spacing),))], Fixes(), path)
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    at = {round(float(np.dot(normal, one.position or ())), 3): one for one in places}
    heights = sorted(at)
    gaps = np.diff(heights)
    step = float(gaps.min()) if len(gaps) else first.thickness or 1.0
    slices = []
    for height in np.arange(round((heights[-1] - heights[0]) / step) + 1) * step + heights[0]:
        position = np.array(at[heights[0]].position) + (height - heights[0]) * normal
        slices.append(at[heights[0]]._replace(position=tuple(position.tolist()), thickness=first.thickness or step))
    return stack([replace(like, slices=tuple(slices))], Fixes(), path)
