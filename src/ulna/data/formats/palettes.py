"""Label maps with a palette: whether a class is the index of an entry, or what its colour says.

In a palette of many colours the index is the class, as in PASCAL VOC. A palette of black and white is a drawing: white is
the foreground, whichever entry a program gave it. Where index and colour contradict each other and nothing decides, the
file is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.source import data_error

Colour = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_REMEDY = "save the class numbers as grey values, without a palette"


def palette_classes(
    where: object, indices: NDArray[Any], palette: Sequence[Colour], notes: list[str]
) -> tuple[NDArray[Any], dict[int, Colour]]:
    """The classes of a palette's indices, and the colours in which they are drawn; empty where colours were read.

    Args:
        indices: of any shape.
        palette: the colour of every entry, of 8 bits.

    Raises:
        DataError: if an index has no entry, or nothing says which of the colours is the background.
    """
    used = [int(value) for value in np.flatnonzero(np.bincount(indices.ravel()))]
    if used and used[-1] >= len(palette):
        raise data_error(where, f"has pixels of entry {used[-1]}, and a palette of {len(palette)} entries", _REMEDY)
    colours = {index: palette[index] for index in used}
    whole = set(palette)
    first = palette[0] if palette else BLACK
    if set(colours.values()) <= {BLACK, WHITE} and (whole <= {BLACK, WHITE} or first == WHITE):
        return _by_colour(indices, colours, WHITE, "black and white", notes), {}
    if first == BLACK:
        return indices, colours
    if BLACK in colours.values():  # not the first entry: a program numbered the colours, nobody did
        if len(whole) != 2:
            what = f"has a palette whose entry 0 is {first}, and black at another entry"
            raise data_error(where, f"{what}; nothing says which is the background", _REMEDY)
        (other,) = whole - {BLACK}
        return _by_colour(indices, colours, other, "two colours, one of them black", notes), {}
    if len(whole) == 2 and _light(first) > min(map(_light, whole)):
        other = next(colour for colour in palette if colour != first)
        what = f"has a palette of {first} and {other}, and nothing says which is the background"
        raise data_error(where, what, _REMEDY)
    notes.append(f"has a palette that draws 0 as {first}; the index of the entry is the class, and 0 the background")
    return indices, colours


def _by_colour(
    indices: NDArray[Any], colours: dict[int, Colour], foreground: Colour, kind: str, notes: list[str]
) -> NDArray[Any]:
    table = np.zeros(max(colours, default=0) + 1, np.uint8)
    for index, colour in colours.items():
        table[index] = colour == foreground
    if any(index != table[index] for index in colours):
        drawn = "white" if foreground == WHITE else f"the colour {foreground}"
        notes.append(f"has a palette of {kind}, read by colour: {drawn} is 1, black is 0")
    return table[indices]


def _light(colour: Colour) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
