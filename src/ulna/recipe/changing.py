"""Change a recipe: one field by its path, as `--set` does, or sections laid over sections."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, printable, unknown
from ulna.recipe.architecture import Architecture, Slot
from ulna.recipe.choices import Recipe
from ulna.recipe.former import renamed, renamed_path
from ulna.recipe.library import recipe_file
from ulna.recipe.model import Frozen, field_type, parse
from ulna.system.reading import parse_yaml, read_yaml

ALTERNATIVES = {"count": "fraction", "fraction": "count"}  # of the points of a patch


def set_value(recipe: Recipe, assignment: str) -> Recipe:
    """Change one field by its path: `optimizer.lr=3e-4`, `architecture.conv.double_conv.norm=instance`.

    A kind of block in the path addresses every entry of that kind; its `options` may be left out. The value is YAML.

    Raises:
        UsageError: for an assignment without "=", an unknown path (with the nearest name), or a value that does not fit.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"--set {assignment}: expected KEY=VALUE, for example --set optimizer.lr=3e-4")
    try:
        value = parse_yaml(text, f"--set {assignment}")
    except UsageError:
        raise UsageError(f"--set {assignment}: {text!r} is not a YAML value") from None
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        with suppress(ValueError):
            value = float(value)
    parts = renamed_path(path.strip(), value).split(".")
    return parse(Recipe, _assign(recipe.model_dump(), parts, value, path, Recipe), source=f"--set {assignment}")


def _assign(values: Any, parts: list[str], new: Any, path: str, model: type[Frozen]) -> Any:
    name, rest = parts[0], parts[1:]
    if name not in model.model_fields:
        raise UsageError(f"--set {path}: {unknown('field', name, model.model_fields)}")
    current = values.get(name)  # a network of others and one of ulna have different fields
    if model is Architecture and (name == "foreign") != ("foreign" in values):
        raise UsageError(f"--set {path}: {_other_kind(values)}")
    slots = model is Architecture and name in ("conv", "skip", "up", "down")
    if not rest:
        return merged(values, {name: new}) if name in ALTERNATIVES else {**values, name: new}
    if slots or (model is Architecture and name == "head"):
        entries = list(current) if slots else [current]
        kind = rest[0] if rest[0] in {e["kind"] for e in entries} else None
        keys = rest[1:] if kind else rest
        if kind is None and (not slots or rest[0] not in Slot.model_fields):
            raise UsageError(f"--set {path}: {unknown('block in this slot', rest[0], {e['kind'] for e in entries})}")
        changed = [_assign_slot(e, keys, new, path) if kind in (None, e["kind"]) else e for e in entries]
        return {**values, name: changed if slots else changed[0]}
    owner = field_type(model, [name])
    if current is None and owner is not None:  # a section that is off: with what is set it is on
        current = owner().model_dump()
    if isinstance(current, dict) and owner is None:
        return {**values, name: {**current, ".".join(rest): new}}
    if owner is None:
        raise UsageError(f"--set {path}: {name} holds one value, there is nothing below it")
    return {**values, name: _assign(current, rest, new, path, owner)}


def _other_kind(values: Mapping[str, Any]) -> str:
    """Why a field has no place in an architecture."""
    if "foreign" in values:
        return (
            f"{printable(values['foreign']['source'])} is a network of others, without levels, slots and heads of ulna; "
            "architecture.foreign.options.NAME=VALUE is a keyword of its constructor"
        )
    return "the network is one of ulna; a network of others is chosen by --model, such as monai:SegResNet"


def _assign_slot(entry: dict[str, Any], keys: list[str], new: Any, path: str) -> dict[str, Any]:
    if len(keys) == 1 and keys[0] in Slot.model_fields:
        return {**entry, keys[0]: new}
    if keys and keys[0] == "options":
        keys = keys[1:]
    if len(keys) != 1:
        raise UsageError(f"--set {path}: expected architecture.SLOT.KIND.OPTION=VALUE")
    return {**entry, "options": {**entry["options"], keys[0]: new}}


def stated(path: Path | str | None) -> dict[str, Any]:
    """What a person wrote into a recipe file, under the names of today; nothing without a file.

    Args:
        path: of a file, or the name of a recipe that comes with the package.

    Raises:
        UsageError: if there is none, it cannot be read, or gives a field by two names.
    """
    if path is None:
        return {}
    try:
        return renamed(read_yaml(recipe_file(path)), note=True)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{printable(path)}: {error}") from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; lists and single values are replaced.

    A value that is given takes the place of its alternative: a number of points that of a fraction.
    """
    both = dict(base)
    if "kind" in changes:  # a section that names its kind stands for itself: no options of another kind
        both.pop("options", None)
    for name, value in changes.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        other = ALTERNATIVES.get(name)
        if value is not None and other in both and other not in changes:
            both[other] = None
    return both
