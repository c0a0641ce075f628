"""dicom.json beside the data: which series of every case are read, and what may be done about odd slices."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ulna.data.formats.dicom.choosing import Wishes
from ulna.data.formats.dicom.fixes import CHOICES, parse_fixes
from ulna.data.layout.metadata import read_json
from ulna.data.layout.pairing import Found
from ulna.errors import UsageError

WISHES_FILE = "dicom.json"
_REMEDY = 'write {"series": "description or UID"}, or a list of them for the channels, and ' + ", ".join(
    f'"{key}": "{"|".join(values)}"' for key, values in CHOICES.items()
)


def read_wishes(found: Found) -> Wishes:
    """What `dicom.json` of a data set says; nothing where there is none. What is wrong with it is kept as a problem."""
    path = (found.root if found.root.is_dir() else found.root.parent) / WISHES_FILE
    if not os.path.lexists(path):
        return Wishes()
    value = read_json(path, found.problems)
    if value is None:
        return Wishes()
    if not isinstance(value, Mapping):
        found.wrong(path, "is no JSON object", _REMEDY)
        return Wishes()
    series = value.get("series", [])
    names = [series] if isinstance(series, str) else series
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        found.wrong(path, "names its series by something else than text", _REMEDY)
        names = []
    others = {str(key): str(one) for key, one in value.items() if key != "series"}
    try:
        return Wishes(tuple(names), parse_fixes(others, str(path)))
    except UsageError as error:
        found.wrong(path, str(error).removeprefix(f"{path}: ").replace("\n ", ";"), _REMEDY)
        return Wishes(tuple(names))
