"""All cases of an evaluation as a table that sorts without a script: every row knows its place by every column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ulna.evaluation.metrics import average
from ulna.pages.numbers import number

MOST_ROWS = 1000  # with the lowest Dice: the page stays small, and metrics.csv or cases.csv has all
MOST_CLASSES = 6  # with a column of their own
MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "ppv": "PPV",
    "sensitivity": "Sensitivity",
    "hd95": "HD95",
    "assd": "ASSD",
    "nsd": "NSD",
}
DISTANCES = ("hd95", "assd")  # the smaller, the better


class Column(NamedTuple):
    """A heading, and the name in words by which cases are sorted."""

    heading: str
    remark: str


class Line(NamedTuple):
    """A case: its name, its cells, its Dice, and its place by its name and by every cell, the worst first."""

    case: str
    cells: list[str]
    places: list[int]


class Listing(NamedTuple):
    """The table; `cut` cases with a higher Dice are left out."""

    columns: list[Column]
    lines: list[Line]
    cut: int


def unit_name(row: Mapping[str, Any]) -> str:
    """What a row is of.

    Example:
        >>> unit_name({"case": "a", "slice": 3}), unit_name({"case": "a"})
        ('a, slice 3', 'a')
    """
    return f"{row['case']}, slice {row['slice']}" if row.get("slice") is not None else str(row["case"])


def list_cases(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> Listing:
    """The table of an evaluation.

    Args:
        rows: one a case (or slice, or group) and class.
        units: measure -> what its heading says beside its name.
    """
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(unit_name(row), []).append(row)
    classes = list(dict.fromkeys(str(row["class"]) for row in rows))
    own = classes if 1 < len(classes) <= MOST_CLASSES else []
    values: dict[str, list[float]] = {}
    for case, some in by_case.items():
        means = average([dict(row) for row in some], "per_image")
        dice = {str(row["class"]): float(row["dice"]) for row in some}
        values[case] = [
            means.get("dice", math.nan),
            *(dice.get(name, math.nan) for name in own),
            *(means.get(key, math.nan) for key in MEASURES if key != "dice"),
        ]
    columns = [
        Column("Dice", "mean" if own else ""),
        *(Column("Dice", name) for name in own),
        *(Column(name, units.get(key, "")) for key, name in MEASURES.items() if key != "dice"),
    ]
    names = sorted(values, key=lambda case: (_worst_first(values[case][0]), case))
    shown = names[:MOST_ROWS]
    down = [False] * (1 + len(own)) + [key in DISTANCES for key in MEASURES if key != "dice"]
    places = [_places(sorted(shown), shown)]
    for at, falls in enumerate(down):
        column = {case: -values[case][at] if falls else values[case][at] for case in shown}
        places.append(_places(sorted(shown, key=lambda case: _worst_first(column[case])), shown))
    lines = [
        Line(
            case,
            [number(value, 2 if falls else 3) for value, falls in zip(values[case], down, strict=True)],
            [of_column[row] for of_column in places],
        )
        for row, case in enumerate(shown)
    ]
    return Listing(columns, lines, len(names) - len(shown))


def _worst_first(value: float) -> tuple[bool, float]:
    """What is not defined comes last."""
    return (bool(np.isnan(value)), value)


def _places(order: Sequence[str], cases: Sequence[str]) -> list[int]:
    place = {case: at for at, case in enumerate(order)}
    return [place[case] for case in cases]
