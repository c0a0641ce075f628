"""The classes as classes.json and dataset.json declare them: names, values to merge, regions, and values to ignore.

    ["liver", "tumour"]                       the values 1 and 2
    {"1": "liver", "2": "tumour"}             the same; also {"liver": 1, "tumour": 2}
    {"tumour": [1, 2, 3]}                     values that are one class
    {"kidney": [1, 2], "tumour": [2]}         structures that share values: overlapping channels

Beside them may stand `mode`, `ignore`, `regions_class_order` (nnU-Net's) and `instances`; the names then under `labels`, or
not. docs/labels.md has examples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ulna.data.layout.metadata import read_json, whole
from ulna.errors import Problem, UsageError
from ulna.recipe import Labels

CLASSES_FILE = "classes.json"
_BESIDE = ("mode", "ignore", "regions_class_order", "instances")
_CLASSES = 'write the classes as {"1": "liver", "2": "tumour"}; 0 is background'
_MERGED = 'write {"NAME": [VALUES]}, such as {"tumour": [1, 2, 3]}; 0 is background'
_SHOWN = 6  # values in a message


def read_classes(root: Path, problems: list[Problem]) -> Labels | None:
    """The classes of `classes.json`: a dict, a list, or either under `labels` beside what else is said of them."""
    path = root / CLASSES_FILE
    if not os.path.lexists(path):  # a pipe or a broken link of that name is a fault
        return None
    value = read_json(path, problems)
    if value is None:
        return None
    about = value if isinstance(value, Mapping) else {}
    return parse_classes(_named(value), about, path, problems)


def recipe_classes(value: Any) -> Labels:
    """The classes as the section `classes` of a recipe declares them, which is written as classes.json is.

    Raises:
        UsageError: if they make no sense.

    Example:
        >>> recipe_classes({"tumour": [1, 2, 3]}).names
        ('background', 'tumour')
    """
    about = value if isinstance(value, Mapping) else {}
    try:
        return _labels(_named(list(value) if isinstance(value, tuple) else value), about)
    except _NonsenseError as nonsense:
        raise UsageError(f"classes (of the recipe): {nonsense.what}; {nonsense.remedy}") from None


def _named(value: Any) -> Any:
    """What names the classes: the value of `labels` or `classes`, or all but the words that stand beside them."""
    if not isinstance(value, Mapping):
        return value
    named = value.get("labels", value.get("classes"))
    if isinstance(named, Mapping | list):
        return named
    return {key: name for key, name in value.items() if key not in _BESIDE}


def parse_classes(value: Any, about: Mapping[str, Any], path: Path, problems: list[Problem]) -> Labels | None:
    """The classes; None, and a problem, where they make no sense.

    Args:
        value: a list, {"1": "liver"}, {"liver": 1} or {"liver": [1, 2]}.
        about: what may stand beside it: `mode`, `ignore`, `regions_class_order`, `instances`.
        path: the file.
        problems: what is wrong is added.
    """
    try:
        return _labels(value, about)
    except _NonsenseError as nonsense:
        problems.append(Problem(str(path), nonsense.what, nonsense.remedy))
        return None


class _NonsenseError(Exception):
    def __init__(self, what: str, remedy: str = _CLASSES) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what)


def _labels(value: Any, about: Mapping[str, Any]) -> Labels:
    mode, instances = about.get("mode"), about.get("instances", False)
    if mode not in (None, "multilabel", "exclusive", "multiclass"):
        raise _NonsenseError(f"has the mode {mode!r}", "leave `mode` out for exclusive classes, or write multilabel")
    if not isinstance(instances, bool):
        raise _NonsenseError(
            f"has {instances!r} for `instances`", "write true where label maps number objects, or leave it out"
        )
    ignore = _several("ignore", about["ignore"]) if about.get("ignore") is not None else ()
    if isinstance(value, Mapping) and any(isinstance(entry, list) for entry in value.values()):
        return _of_lists(value, about, ignore)
    names, own = _plain(value, multilabel=mode == "multilabel")
    return _made(names=names, multilabel=mode == "multilabel", ignore=_joined(ignore, own), instances=instances)


def _made(**fields: Any) -> Labels:
    try:
        return Labels(**fields)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        what = str(found["msg"]).removeprefix("Value error, ")
        if found["type"] != "value_error":
            what = f"has {str(found.get('input'))[:80]!r}: {what[0].lower()}{what[1:]}"
        raise _NonsenseError(what, _remedy_of(what)) from None


def _remedy_of(what: str) -> str:
    if "instances" in what:
        return 'write {"labels": {"1": "nucleus"}, "instances": true}'
    if "exclude each other" in what:
        return "keep it in one class, or write the mode multilabel for overlapping channels"
    if "regions_class_order" in what or "do not nest" in what:
        return (
            "write one value of its own for every region, from the outermost to the innermost, or leave regions_class_order "
            "out for one map a region"
        )
    return "take it out of one of the two" if "ignored" in what or "background" in what else _MERGED


def _plain(value: Any, *, multilabel: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of classes that have one value each, and the values that are called `ignore`."""
    by_value = _by_value(value)
    ignore = tuple(number for number, name in by_value.items() if name.lower() == "ignore")
    by_value = {number: name for number, name in by_value.items() if number not in ignore}
    if multilabel and 0 in by_value and by_value[0].lower() != "background":
        by_value = {number + 1: name for number, name in by_value.items()}  # counted from 0: there is no background
    by_value.setdefault(0, "background")
    if min(by_value) < 0 or max(by_value) != len(by_value) - 1:
        raise _skipping(by_value)
    names = [by_value[number] for number in sorted(by_value)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        own = [number for number, name in sorted(by_value.items()) if name == twice[0]]
        remedy = f"write {json.dumps({twice[0]: own})} to merge these values, or give every class a name of its own"
        raise _NonsenseError(f"gives the name {twice[0]!r} to two classes", remedy)
    if len(names) < 2:
        raise _NonsenseError("declares the background only")
    return tuple(names[1:] if multilabel else names), ignore


def _of_lists(value: Mapping[str, Any], about: Mapping[str, Any], ignore: tuple[int, ...]) -> Labels:
    """Classes of several values, which may overlap."""
    named = {str(name): _several(str(name), entry) for name, entry in value.items()}
    background = next((name for name in named if name.lower() == "background"), "background")
    ignored = next((name for name in named if name.lower() == "ignore"), "ignore")
    outside, ignore = named.pop(background, (0,)), _joined(ignore, named.pop(ignored, ()))
    if not named:
        raise _NonsenseError("declares the background only", _MERGED)
    everything = [number for values in named.values() for number in values]
    order = about.get("regions_class_order")
    multilabel = about.get("mode") == "multilabel" or (
        about.get("mode") is None and (order is not None or len(set(everything)) < len(everything))
    )
    # classes 1..K that only look like lists
    plain = everything == list(range(1, len(named) + 1)) and order is None and outside == (0,)
    return _made(
        names=tuple(named) if multilabel else (background, *named),
        multilabel=multilabel,
        values=None if plain else tuple(named.values()),
        background=outside,
        ignore=ignore,
        order=None if order is None else _in_order(order),
        instances=about.get("instances", False),
    )


def _joined(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*one, *other}))


def _several(name: str, entry: Any) -> tuple[int, ...]:
    """The values of one class, in ascending order, each once."""
    values = [whole(one) for one in (entry if isinstance(entry, list) else [entry])]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or min(numbers, default=0) < 0:
        what = f"gives {name!r} the values {str(entry)[:80]}, which are no whole numbers from 0 on"
        raise _NonsenseError(what, _MERGED)
    if not numbers:
        raise _NonsenseError(f"gives {name!r} no value", _MERGED)
    return tuple(sorted(set(numbers)))


def _in_order(order: Any) -> tuple[int, ...]:
    numbers = [whole(one) for one in order] if isinstance(order, list) else [None]
    if None in numbers:
        remedy = 'write one value for every region, such as "regions_class_order": [1, 2, 3]'
        raise _NonsenseError(f"has {str(order)[:80]!r} for regions_class_order", remedy)
    return tuple(number for number in numbers if number is not None)


def _skipping(by_value: Mapping[int, str]) -> _NonsenseError:
    missing = islice((number for number in range(max(by_value)) if number not in by_value), _SHOWN + 1)
    skipped = "below 0" if min(by_value) < 0 else _listed(missing)
    what = f"declares the label values {_listed(sorted(by_value))}, which skip {skipped}"
    if set(by_value) == {0, 255}:
        return _NonsenseError(
            what, f'write {{"1": {json.dumps(by_value[255])}}}; masks of 0 and 255 are read as 0 and 1'
        )
    return _NonsenseError(what, f'{_CLASSES}; classes of any values are lists, such as {{"tumour": [3]}}')


def _listed(values: Iterable[int]) -> str:
    shown = [str(value) for value in islice(values, _SHOWN + 1)]
    return f"[{', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}]"


def _by_value(value: Any) -> dict[int, str]:
    """Label value -> name. A list counts from 1, or from 0 where it begins with the background."""
    if isinstance(value, list) and value:
        names = [str(name) for name in value]
        return dict(enumerate(names, start=0 if names[0].lower() == "background" else 1))
    if not isinstance(value, Mapping) or not value:
        raise _NonsenseError("declares no classes")
    by_key, by_entry = [whole(key) for key in value], [whole(entry) for entry in value.values()]
    if None not in by_key:
        numbers, names = by_key, [str(name) for name in value.values()]
    elif None not in by_entry:
        numbers, names = by_entry, [str(name) for name in value]
    else:
        raise _NonsenseError("has labels that name no values")
    if len(set(numbers)) < len(numbers):
        remedy = (
            'give every class one value; structures that overlap are lists, such as {"kidney": [1, 2], "tumour": [2]}'
        )
        raise _NonsenseError("gives one label value to two classes", remedy)
    return {number: name for number, name in zip(numbers, names, strict=True) if number is not None}
