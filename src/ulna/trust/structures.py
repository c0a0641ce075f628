"""What a mask holds, structure by structure: volume, objects, border; and how that differs from the training's references."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import find_objects

from ulna.data.formats.whole_boxes import Boxed, slabs_along
from ulna.data.volume import Volume
from ulna.evaluation.further import MM3_PER_ML
from ulna.evaluation.metrics import mask_of
from ulna.recipe import Frozen, Labels
from ulna.trust.comparing import Finding
from ulna.trust.components import box_of, find_components

RARE = 0.05  # what fewer training cases had is worth a word: a missing structure, one at the border
LEAST = 2  # references that show how volumes spread
LARGER = 1.05  # beyond the largest seen, and below the smallest: what resampling alone may change
_AT_ONCE = 1 << 20  # voxels of a mask in boxes
FEW = 5.0  # and FEW / n of the range that n references span, as a factor: few do not show how large a structure may be


class Found(NamedTuple):
    """One structure in one mask.

    Args:
        volume: in the unit of `unit_of`.
        objects: pieces that do not touch each other, not even at a corner.
        smallest: volume of the smallest of them.
        largest_share: of the volume, that of the largest of them.
        border: whether it touches a face of the image.
    """

    volume: float
    objects: int
    smallest: float
    largest_share: float
    border: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "volume": float(f"{self.volume:.6g}"),
            "objects": self.objects,
            "largest_share": round(self.largest_share, 4),
            "touches_border": self.border,
        }


class Seen(Frozen):
    """One structure in the training references; volumes are of those that hold it."""

    cases: int = Field(ge=0)  # that hold it
    volume_min: float = Field(ge=0)
    volume_max: float = Field(ge=0)
    objects_max: int = Field(ge=0)
    smallest_object: float = Field(ge=0)  # 5 percent of the cases have a smaller one
    border: int = Field(ge=0)  # cases where it touches a face of the image


class Structures(Frozen):
    """What the training references hold."""

    cases: int = Field(ge=1)  # that were read, of those that trained
    unit: str
    seen: dict[str, Seen]


def unit_of(volume: Volume) -> tuple[str, float]:
    """The unit of volumes, and what a voxel has of it: ml, mm2 of a picture with a spacing, else px.

    Example:
        >>> unit_of(Volume(np.zeros((1, 4, 4, 4)), (1.0, 1.0, 2.0), "mm"))
        ('ml', 0.002)
    """
    if volume.unit != "mm":
        return "px", 1.0
    each = math.prod(volume.spacing)
    return ("ml", each / MM3_PER_ML) if volume.spatial_dims == 3 else ("mm2", each)


def find_structures(mask: NDArray[Any], labels: Labels, voxel: float) -> dict[str, Found]:
    """What a mask holds.

    Args:
        mask: (*S), or (K, *S) of overlapping classes.
        labels: the classes.
        voxel: what one has of the unit of volumes.
    """
    return {
        name: _found(mask_of(mask, number, multilabel=labels.multilabel), voxel)
        for number, name in enumerate(labels.foreground, start=1)
    }


def structures_of(maps: Boxed, labels: Labels, voxel: float) -> dict[str, Found]:
    """What `find_structures` finds, of a mask in boxes: (1, *S) of class indices, or (K, *S) of overlapping classes."""
    size, found = maps.shape[1:], {}
    boxes = _boxes(maps, labels)
    for number, name in enumerate(labels.foreground, start=1):
        box = boxes.get(number)
        if box is None:
            found[name] = Found(0.0, 0, 0.0, 0.0, False)
            continue
        channel, value = (number - 1, 1) if labels.multilabel else (0, number)

        def part(rows: slice, box: list[slice] = box, channel: int = channel, value: int = value) -> NDArray[np.bool_]:
            first = box[0].start
            here = [slice(first + rows.start, first + rows.stop), *box[1:]]
            where: NDArray[np.bool_] = maps.read(here, (channel,))[0] == value
            return where

        extent = [one.stop - one.start for one in box]
        border = any(one.start == 0 or one.stop == n for one, n in zip(box, size, strict=True))
        found[name] = _of_sizes(find_components(part, extent, slab=_AT_ONCE).sizes[1:], voxel, border=border)
    return found


def _boxes(maps: Boxed, labels: Labels) -> dict[int, list[slice]]:
    """Class -> the smallest box that holds it, for those that are there."""
    boxes: dict[int, list[slice]] = {}
    for rows, values in slabs_along(maps, 0, _AT_ONCE * maps.dtype.itemsize):
        for channel, part in enumerate(values):
            for value, here in enumerate(find_objects(part.astype(np.int32)), start=1):
                if here is None:
                    continue
                number = channel + 1 if labels.multilabel else value
                moved = [slice(here[0].start + rows.start, here[0].stop + rows.start), *here[1:]]
                known = boxes.get(number, moved)
                boxes[number] = [
                    slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(known, moved, strict=True)
                ]
    return boxes


def _found(where: NDArray[np.bool_], voxel: float) -> Found:
    box = box_of(where)
    if box is None:
        return Found(0.0, 0, 0.0, 0.0, False)
    inside = where[box]
    sizes = find_components(lambda rows: inside[rows], inside.shape).sizes[1:]
    border = any(part.start == 0 or part.stop == n for part, n in zip(box, where.shape, strict=True))
    return _of_sizes(sizes, voxel, border=border)


def _of_sizes(sizes: NDArray[np.int64], voxel: float, *, border: bool) -> Found:
    total = int(sizes.sum())
    return Found(total * voxel, len(sizes), int(sizes.min()) * voxel, float(sizes.max()) / total, border)


def sum_up(cases: Sequence[Mapping[str, Found]], unit: str) -> Structures:
    """What the references of the training hold, from what each holds."""
    seen = {}
    for name in cases[0] if cases else ():
        held = [case[name] for case in cases if case[name].objects]
        volumes = [one.volume for one in held] or [0.0]
        smallest = float(np.percentile([one.smallest for one in held], 5)) if held else 0.0
        seen[name] = Seen(
            cases=len(held),
            volume_min=min(volumes),
            volume_max=max(volumes),
            objects_max=max((one.objects for one in held), default=0),
            smallest_object=smallest,
            border=sum(one.border for one in held),
        )
    return Structures(cases=max(1, len(cases)), unit=unit, seen=seen)


def odd_structures(found: Mapping[str, Found], known: Structures, unit: str) -> tuple[Finding, ...]:
    """How the structures of a mask differ from those of the training references; nothing of volumes in another unit."""
    return tuple(
        Finding("mask", what, text, name)
        for name, one in found.items()
        if name in known.seen
        for what, text in _odd(one, known.seen[name], known, unit)
    )


def _odd(one: Found, seen: Seen, known: Structures, unit: str) -> Iterator[tuple[str, str]]:
    if not one.objects:
        if seen.cases > (1 - RARE) * known.cases:
            yield "missing", f"is missing; {seen.cases} of {known.cases} training references hold it"
        return
    if one.border and seen.border <= RARE * known.cases:
        yield "border", f"touches the border of the image; {seen.border} of {known.cases} training references did"
    if one.objects > max(1, seen.objects_max):
        yield "pieces", f"has {one.objects} pieces; training references have at most {max(1, seen.objects_max)}"
    if unit != known.unit or seen.cases < LEAST:
        return
    room = max(LARGER, (seen.volume_max / seen.volume_min) ** (FEW / seen.cases)) if seen.volume_min else LARGER
    if one.volume > room * seen.volume_max:
        yield "larger", f"has {one.volume:.4g} {unit}; training references have at most {seen.volume_max:.4g}"
    if one.volume < seen.volume_min / room:
        yield "smaller", f"has {one.volume:.4g} {unit}; training references have at least {seen.volume_min:.4g}"
