"""The classes that label maps hold where nothing declares them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import ascii_lowercase

from ulna.data.formats.source import data_error
from ulna.errors import listed
from ulna.recipe import Labels

_MOST_UNNAMED = 32  # more classes than this are named by a person, or they are numbered objects
_MOST_ASKED = 4  # values that are written out
_NAMES = "name the classes in classes.json, or remap the label maps to 0..K"
_GAPS = "remap the label maps to 0..K; check --fix OUT does so and keeps a table of the values"
_NOT_KNOWN = (
    'remap 255 to 0 or to a class of its own; as it often means "not known": write "ignore": 255 in classes.json'
)
_FEW_GAPS = (
    "name all classes 1..{} in classes.json, also those that occur nowhere, or close the gaps with check --fix OUT"
)


def classes_found(found: Mapping[str, Mapping[int | float, int]], where: object) -> Labels:
    """Classes 0..K where exactly these values occur; maps of nothing but 0 and 255 count as 0 and 1.

    Args:
        found: case -> label value, as stored -> its number of occurrences (`value_counts`).
        where: the data set, named first in the message.

    Raises:
        DataError: naming values and a case, if they are not whole, negative, leave gaps, are too many to go unnamed, or
            some maps hold 0 and 255 and others several classes.

    Example:
        >>> classes_found({"a": {0: 9, 255: 3}, "b": {0: 12}}, "data").names
        ('background', 'foreground')
    """
    stretched = [case for case, counts in found.items() if 255 in counts and set(counts) <= {0, 255}]
    holders: dict[int | float, str] = {}
    for case, counts in found.items():
        for value in counts:
            holders.setdefault(1 if value == 255 and case in stretched else value, case)
    odd = [value for value in holders if not (value >= 0 and float(value).is_integer())]  # NaN is not >= 0
    if odd:
        what = (
            f"label values {listed(f'{value:.4g}' for value in odd)} (in case {holders[odd[0]]}) are no class indices"
        )
        raise data_error(where, what, "save the label maps with whole numbers 0..K")
    highest = int(max(holders, default=0))
    if highest > 1 and stretched:
        what = f"{summarise_ids(stretched)}: label values 0 and 255, other cases hold values up to {highest}"
        values = sorted(
            {255, *(int(value) for case, counts in found.items() if case not in stretched for value in counts)}
        )
        raise data_error(where, what, f"store the same values in all label maps, 0..K{_asked(values)}")
    values = sorted(int(value) for value in holders)
    gaps = highest + 1 != len(values)
    if highest > 0 and (gaps or highest > _MOST_UNNAMED):
        missing = [str(value) for value in range(min(highest, len(values) + 7)) if value not in holders]
        never = ", ".join([*missing[:6], *(["..."] if len(missing) > 6 else [])])  # highest may be of any size
        odds = f"{never} never" if gaps else f"{highest} classes without a name"
        what = f"the label values found are {listed(values)} ({odds}; {highest} in case {holders[highest]})"
        raise data_error(where, what, _remedy(values) if gaps else _NAMES)
    names = ("foreground",) if highest <= 1 else tuple(f"class {value}" for value in range(1, highest + 1))
    return Labels(names=("background", *names))


def _remedy(values: list[int]) -> str:
    """What to do about values with gaps; each of it is accepted by the next check."""
    if values[-1] == 255 and values[:-1] == list(range(len(values) - 1)):
        return _NOT_KNOWN
    if values[-1] <= _MOST_UNNAMED:
        return _FEW_GAPS.format(values[-1])
    return _GAPS + (_asked(values) if values[-1] == 255 else "")


def _asked(values: list[int]) -> str:
    """How a person says whether several grey values, as drawing programs leave them, are several classes or one."""
    drawn = [value for value in values if value]
    if not 2 <= len(drawn) <= _MOST_ASKED:
        return ""
    apart = {name: [value] for name, value in zip(ascii_lowercase, drawn, strict=False)}
    one = json.dumps({"a": drawn})
    return f"; or say in classes.json what they are: {json.dumps(apart)} for classes of their own, {one} for one"


def summarise_ids(cases: list[str]) -> str:
    """One case, or how many and the first."""
    return cases[0] if len(cases) == 1 else f"{len(cases)} cases, for example {cases[0]}"
