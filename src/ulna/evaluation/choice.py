"""Which measures apply to which structure: by a rule that looks at some references before anything is scored, or as asked.

| family | measures | by the rule |
|---|---|---|
| overlap | Dice, IoU, PPV, sensitivity | always, also where others are asked for |
| surface | HD95, ASSD, NSD | always |
| volume | volume error and bias in ml | volumes with lengths in mm |
| lesions | F1, sensitivity, false objects; PQ | two objects or more in a quarter of the references or more, and no tube |
| cldice | clDice | tubes: in half of the references the largest object is at most 1/10 as thick as its box is long |
| boundary | boundary IoU | images, not volumes, with a median of 96 x 96 pixels or more |
| calibration | Brier score, ECE | probabilities lie beside the masks |

References are those that hold the structure, of up to 20 evenly spread over the cases. Slices and groups as units get overlap
and surface alone, unless more is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from ulna.data.formats.limits import TooLargeError
from ulna.data.formats.slabs import slabs
from ulna.data.volume import Volume
from ulna.errors import UsageError, unknown
from ulna.evaluation.boxes import locate
from ulna.evaluation.depths import depths
from ulna.evaluation.metrics import CALIBRATION, LESIONS, OVERLAP, SURFACE, VOLUME
from ulna.evaluation.objects import objects_of
from ulna.evaluation.surfaces import Mask
from ulna.recipe import Labels

T = TypeVar("T")

AUTO, ALL = "auto", "all"
FAMILIES: dict[str, tuple[str, ...]] = {
    "overlap": OVERLAP,
    "surface": SURFACE,
    "volume": VOLUME,
    "lesions": LESIONS,
    "cldice": ("cldice",),
    "boundary": ("boundary_iou",),
    "calibration": CALIBRATION,
}
USUAL = ("overlap", "surface")
LOOKED_AT = 20  # references
SEVERAL = 0.25  # share of the references in which a structure of lesions is two objects or more
THIN = 0.1  # thickness of a tube to the length of its box
LOOKING = 24  # bytes a voxel of a structure's box: numbers of objects, then the nearest voxel outside (`depths`)
LARGE_PX = 96**2  # large objects of COCO; below it the IoU sees the contour itself


class Shape(NamedTuple):
    """A structure in one reference."""

    size: int
    objects: int
    thin: float  # thickness of its largest object to the diagonal of that object's box


@dataclass(frozen=True)
class Choice:
    """The families of measures of every structure, and why.

    Args:
        asked: what was asked for; `auto` is the rule.
        families: structure -> its families, in the order of `FAMILIES`.
        why: structure -> family -> what the rule saw; nothing where families were named.
    """

    asked: tuple[str, ...]
    families: Mapping[str, tuple[str, ...]]
    why: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def has(self, family: str) -> bool:
        """Whether it applies to any structure."""
        return any(family in families for families in self.families.values())

    @property
    def further(self) -> tuple[str, ...]:
        """The measures of any structure beyond overlap and surface, in the order of columns."""
        chosen = {family for of_class in self.families.values() for family in of_class}
        return tuple(m for family, measures in FAMILIES.items() if family in chosen - {*USUAL} for m in measures)

    def to_json(self) -> dict[str, Any]:
        """What summary.json says of it."""
        plain = {name: list(families) for name, families in self.families.items()}
        return {"asked": list(self.asked), "of_classes": plain} | (
            {"because": {name: dict(why) for name, why in self.why.items()}} if self.why else {}
        )


def usual(labels: Labels) -> Choice:
    """Overlap and surface measures of every structure."""
    return Choice(USUAL, dict.fromkeys(labels.foreground, USUAL))


def read_families(asked: Sequence[str], where: str = "--metrics") -> tuple[str, ...]:
    """The names of families as people write them, each once; none: the rule.

    Raises:
        UsageError: with the nearest name.
    """
    names = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (AUTO, ALL, *FAMILIES):
            raise UsageError(f"{where}: {unknown('family of measures', name, (AUTO, ALL, *FAMILIES))}")
    return tuple(dict.fromkeys(names)) or (AUTO,)


def choose(
    asked: Sequence[str],
    labels: Labels,
    references: Callable[[], Iterable[NDArray[Any]]],
    *,
    volume: Volume | None,
    by: str = "case",
    with_probabilities: bool = False,
    lenient: bool = False,
    allow: Callable[[float], object] = lambda need: None,
) -> Choice:
    """The measures of an evaluation.

    Args:
        asked: families, or `auto` or `all`, of `read_families`.
        labels: the structures.
        references: what the rule looks at, (*S) or (K, *S) if multilabel; not called where nothing depends on it.
        volume: the first case; None: no case can be read.
        by: what is scored as one.
        with_probabilities: whether there are any.
        lenient: leave out what was named and cannot be computed, as at the end of a training.
        allow: is asked before so many bytes are taken to look at a structure; a reference of which it raises
            `TooLargeError` is passed over.

    Raises:
        UsageError: if a family that was named cannot be computed.
    """
    spacing = (1.0, 1.0) if volume is None else volume.spacing
    volumes = len(spacing) == 3
    obstacles = _obstacles(volume, by, with_probabilities=with_probabilities)
    for family in () if lenient else asked:
        if obstacles.get(family):
            raise UsageError(f"--metrics {family}: {obstacles[family]}; leave it out")
    named = {family for family in asked if family in FAMILIES and not obstacles.get(family)} | {"overlap"}
    if ALL in asked:
        named |= {family for family in FAMILIES if not obstacles.get(family)}
    if AUTO not in asked:
        return Choice(tuple(asked), {name: _ordered(named) for name in labels.foreground})
    if by != "case":
        return Choice(tuple(asked), {name: _ordered(named | {*USUAL}) for name in labels.foreground})
    named |= {*USUAL} | {family for family in ("volume", "calibration") if family not in obstacles}
    why = {name: _judged(shapes, volumes) for name, shapes in _shapes(references(), labels, spacing, allow).items()}
    return Choice(tuple(asked), {name: _ordered(named | why[name].keys()) for name in labels.foreground}, why)


def _obstacles(volume: Volume | None, by: str, *, with_probabilities: bool) -> dict[str, str]:
    """Family -> why it cannot be measured, of those that cannot."""
    if by == "group":
        return dict.fromkeys(FAMILIES.keys() - {"overlap"}, "cases are pooled, which only counts of pixels can be")
    if by == "slice":
        return dict.fromkeys(("volume", "calibration"), "it is measured on whole cases, not by slice")
    found = {}
    if volume is None or volume.spatial_dims != 3 or volume.unit != "mm":
        found["volume"] = "these images are no volumes with lengths in mm"
    if not with_probabilities:
        found["calibration"] = "no probabilities lie beside the masks: predict them with --probabilities"
    return found


def _ordered(families: Iterable[str]) -> tuple[str, ...]:
    chosen = {*families}
    return tuple(family for family in FAMILIES if family in chosen)


def spread(items: Sequence[T], most: int = LOOKED_AT) -> list[T]:
    """Up to `most` items, evenly from the first to the last.

    Example:
        >>> spread(range(7), 3)
        [0, 3, 6]
    """
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]


def _shapes(
    references: Iterable[NDArray[Any]], labels: Labels, spacing: Sequence[float], allow: Callable[[float], object]
) -> dict[str, list[Shape]]:
    found: dict[str, list[Shape]] = {name: [] for name in labels.foreground}
    for reference in references:
        of_it: list[tuple[int, Shape]] = []
        try:
            for one in locate(reference, reference, len(found), multilabel=labels.multilabel):
                if any(one.counts):
                    mask = one.mask(reference, multilabel=labels.multilabel)
                    allow(LOOKING * mask.size)
                    of_it.append((one.number, _shape(mask, spacing)))
        except TooLargeError:  # whoever is asked knows which it is
            continue
        for number, shape in of_it:
            found[labels.foreground[number - 1]].append(shape)
    return found


def _shape(mask: Mask, spacing: Sequence[float]) -> Shape:
    objects = objects_of(mask)
    sizes = np.zeros(int(objects.max()), np.int64)
    for (part,) in slabs(objects):
        sizes += np.bincount(part, minlength=sizes.size + 1)[1:]
    largest = int(sizes.argmax())
    box = find_objects(objects)[largest]
    body, count = np.pad(objects[box] == largest + 1, 1), sizes.size
    del objects
    # the spacing of one image stands for all: a ratio of lengths hardly depends on it
    thickness = 2 * max(float(part.max()) for _, part in depths(body, spacing))
    length = float(np.linalg.norm(np.multiply(spacing, [side - 2 for side in body.shape])))
    return Shape(int(sizes.sum()), count, thickness / length)


def _judged(shapes: Sequence[Shape], volumes: bool) -> dict[str, str]:
    """Family -> what was seen, of the families that depend on the shape."""
    if not shapes:
        return {}
    n = len(shapes)
    several, tubes = sum(one.objects > 1 for one in shapes), sum(one.thin <= THIN for one in shapes)
    area = float(np.median([one.size for one in shapes]))
    if 2 * tubes >= n:
        return {
            "cldice": f"in {tubes} of {n} references the largest object is at most 1/10 as thick as its box is long"
        }
    why = {}
    if several >= SEVERAL * n:
        why["lesions"] = f"two objects or more in {several} of {n} references"
    if not volumes and area >= LARGE_PX:
        why["boundary"] = f"median of {area:.0f} pixels in {n} references"
    return why
