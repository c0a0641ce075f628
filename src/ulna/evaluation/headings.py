"""How tables call the measures beyond overlap and surface, and with how many digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Heading(NamedTuple):
    """The name of a measure in a table, and its digits."""

    name: str
    digits: int = 3


HEADINGS = {
    "volume_error_ml": Heading("volume error ml", 2),
    "volume_bias_ml": Heading("volume bias ml", 2),
    "lesion_f1_10": Heading("lesion F1, IoU 0.1"),
    "lesion_sensitivity_10": Heading("lesion sensitivity, IoU 0.1"),
    "lesion_fp_10": Heading("false lesions a case, IoU 0.1", 2),
    "lesion_f1_50": Heading("lesion F1, IoU 0.5"),
    "lesion_sensitivity_50": Heading("lesion sensitivity, IoU 0.5"),
    "lesion_fp_50": Heading("false lesions a case, IoU 0.5", 2),
    "pq": Heading("PQ"),
    "cldice": Heading("clDice"),
    "boundary_iou": Heading("boundary IoU"),
    "brier": Heading("Brier score", 4),
    "ece": Heading("ECE", 4),
    "ece_foreground": Heading("ECE in the structure", 4),
}


def object_word(unit: str) -> str:
    """What tables call an object of a structure: a lesion where lengths are in mm; pictures show cells, or anything."""
    return "lesion" if unit == "mm" else "object"


def heading_of(measure: str, unit: str) -> Heading:
    """The heading of one of `HEADINGS`, of data with lengths in this unit."""
    name, digits = HEADINGS[measure]
    return Heading(name.replace("lesion", object_word(unit)), digits)


def present(measures: Mapping[str, Any], unit: str) -> dict[str, Heading]:
    """Those of the further measures that a summary of means has, in the order of columns."""
    return {name: heading_of(name, unit) for name in HEADINGS if name in measures}
