"""Names and codes of segments and structures, and the classes of a data set that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ulna.data.formats.source import Structure


class Named(NamedTuple):
    """A segment of a SEG, or a region of an RTSTRUCT.

    Args:
        number: in its file.
        label: what it is called.
        others: meanings and codes ("SCT:10200004", "10200004") that it has beside.
    """

    number: int
    label: str
    others: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A name in which spaces, dots, dashes and the case of letters do not count.

    Example:
        >>> plain("Left Kidney"), plain("left_kidney ")
        ('left_kidney', 'left_kidney')
    """
    return re.sub(r"[\s_.^-]+", "_", name.casefold()).strip("_")


def class_of(named: Named, structures: Sequence[Structure]) -> int | None:
    """The place of its class among the structures, by its label before its codes; None: it is none of them."""
    for names in ((named.label,), named.others):
        own = set(map(plain, names))
        for place, structure in enumerate(structures):
            if own & set(map(plain, (structure.name, *structure.known_as))):
                return place
    return None


def code_names(sequences: Iterable[Any]) -> tuple[str, ...]:
    """Meanings and codes of code sequences."""
    found: list[str] = []
    for sequence in sequences:
        for item in sequence or ():
            value, scheme = str(item.get("CodeValue") or ""), str(item.get("CodingSchemeDesignator") or "")
            found += [str(item.get("CodeMeaning") or ""), f"{scheme}:{value}" if scheme and value else "", value]
    return tuple(name for name in found if name)
