"""Names of classes as coded concepts (DICOM PS3.16, as pydicom ships it), and a colour for each."""

from __future__ import annotations

import colorsys
import hashlib
import re
from functools import cache
from typing import Any, NamedTuple

from ulna.data.formats.dicom.library import pydicom

OWN_SCHEME = "99ULNA"  # for names that the standard's tables do not hold
_CATEGORIES = {  # context group of property types -> their category
    "cid7192": "AnatomicalStructure",
    "cid7191": "Tissue",
    "cid7194": "MorphologicallyAbnormalStructure",
    "cid7193": "PhysicalObject",
    "cid7197": "BodySubstance",
}
_SYNONYMS = {
    "tumour": "neoplasm",
    "tumor": "neoplasm",
    "urinarybladder": "bladder",
    "oesophagus": "esophagus",
    "lymphnodes": "lymphnode",
    "vessel": "bloodvessel",
    "fat": "adiposetissue",
    "haemorrhage": "hemorrhage",
    "oedema": "edema",
    "csf": "cerebrospinalfluid",
}
_SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
_GOLDEN = 0.618033988749895


class Concept(NamedTuple):
    """What a segment is.

    Args:
        category, type: (value, scheme, meaning).
        side: left or right, as (value, scheme, meaning); None where the name says none.
    """

    category: tuple[str, str, str]
    type: tuple[str, str, str]
    side: tuple[str, str, str] | None = None


def concept_of(name: str) -> Concept:
    """The coded concept of a name; one in a scheme of our own where the tables do not hold it."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    side = next((_SIDES[word] for word in words if word in _SIDES), None)
    for some in (words, [word for word in words if word not in _SIDES]):
        joined = "".join(some)
        for key in (joined, _SYNONYMS.get(joined), joined.removesuffix("s")):
            found = _table().get(key or "")
            if found is not None:
                category, kind = found
                named = _code(category), _code(kind)
                return Concept(*named, side if some != words else None)
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12].upper()
    return Concept(("85756007", "SCT", "Tissue"), (digest, OWN_SCHEME, name[:64] or "unnamed"))


@cache
def _table() -> dict[str, tuple[Any, Any]]:
    """Keyword in small letters -> the codes of category and type."""
    pydicom()
    from pydicom.sr.codedict import codes

    table: dict[str, tuple[Any, Any]] = {}
    for group, category in _CATEGORIES.items():
        concepts = getattr(codes, group)
        for keyword in concepts.dir():
            try:
                found = getattr(concepts, keyword)
            except AttributeError:
                continue
            table.setdefault(keyword.lower().strip("_"), (getattr(codes.cid7150, category), found))
    return table


def _code(code: Any) -> tuple[str, str, str]:
    return str(code.value), str(code.scheme_designator), str(code.meaning)


def colour_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue of the class of that number, from 1; neighbours differ much."""
    red, green, blue = colorsys.hsv_to_rgb((number - 1) * _GOLDEN % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
