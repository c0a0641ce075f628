"""Every key of a recipe with its values, default and meaning, from the JSON schema of `Recipe`.

What a key means is its description in the schema, else the comment at the field in the source, unless `MEANINGS` says it
better: a comment may stand for several fields, or assume what the line of code shows.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.docs.meanings import DEFAULTS, MEANINGS, SECTIONS
from ulna.recipe import Frozen, Recipe
from ulna.recipe.model import field_type

SLOTTED = ("conv", "skip", "up", "down", "head")  # lists of `Slot`, which has a table of its own


class Key(NamedTuple):
    """One key: its path in a recipe, what it takes, what holds without it, and what it means."""

    path: str
    values: str
    default: str
    meaning: str


def sections() -> dict[str, list[Key]]:
    """Heading -> keys, in the order of the schema; the keys of the recipe itself come first, under an empty heading."""
    schema = Recipe.model_json_schema()
    parts: dict[str, list[Key]] = {"": []}
    for name, field in schema["properties"].items():
        if reference := _reference(field, schema):
            model = field_type(Recipe, (name,))
            assert model is not None
            parts[name] = list(_keys(name, model, reference, schema))
        else:
            parts[""] += _keys("", Recipe, {"properties": {name: field}}, schema)
    slot = schema["$defs"]["Slot"]
    model = field_type(Recipe, ("architecture", "conv"))
    assert model is not None
    parts["slot"] = list(_keys("slot", model, slot, schema))
    return parts


def _keys(section: str, model: type[Frozen], schema: dict[str, Any], root: dict[str, Any]) -> Iterator[Key]:
    said = comments(model)
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        path = f"{section}.{name}".lstrip(".")
        meaning = MEANINGS.get(path) or field.get("description") or said.get(name, "")
        if name in SLOTTED and section == "architecture":
            values = "a slot" if name == "head" else "a slot, or a list of slots"
            default = field["default"]
            default = default if isinstance(default, dict) else default[0]
            shown = f"`{default['kind']}`"
        else:
            values, shown = _values(field, root), "" if name in required else _default(field.get("default"))
        yield Key(path, values, DEFAULTS.get(path, shown), _sentence(meaning))


def _reference(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the section that a field holds."""
    if "$ref" not in field:
        return None
    found: dict[str, Any] = root["$defs"][field["$ref"].rpartition("/")[2]]
    return found


def _values(field: dict[str, Any], root: dict[str, Any]) -> str:
    """What a field takes, in words."""
    if options := field.get("anyOf"):
        words = [_values(option, root) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in field:
        return ", ".join(f"`{_plain(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{_plain(field['const'])}`"
    kind = field.get("type")
    if kind == "array":
        items = field.get("items") or {"anyOf": field.get("prefixItems", [])}
        nullable = any(option.get("type") == "null" for option in items.get("anyOf", ()))
        count = field.get("minItems")
        many = f"{count} of " if count and count == field.get("maxItems") else ""
        inner = f"{many}{_values(items, root)}{' or `null`' if nullable else ''}"
        return f"list of lists: {inner.removeprefix('list: ')}" if inner.startswith("list: ") else f"list: {inner}"
    if kind == "object":
        return "names with values"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return words.get(str(kind), "any") + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    said = []
    if low is not None and high is not None:
        return f", {low:g} to {high:,g}" if isinstance(high, float) else f", {low} to {high:,}"
    if low is not None:
        said.append(f"from {low:g}")
    if above is not None:
        said.append(f"above {above:g}")
    if below is not None:
        said.append(f"below {below:g}")
    if high is not None:
        said.append(f"at most {high:g}")
    return (", " + ", ".join(said)) if said else ""


def _default(value: Any) -> str:
    return "left open" if value is None else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def comments(model: type[Frozen]) -> dict[str, str]:
    """Field -> the comment above it or behind it in the source of the class."""
    source = textwrap.dedent(inspect.getsource(model))
    lines = source.splitlines()
    (owner,) = ast.parse(source).body
    assert isinstance(owner, ast.ClassDef)
    found = {}
    for node in owner.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        assert node.end_lineno is not None
        above: list[str] = []
        number = node.lineno - 2
        while number >= 0 and lines[number].lstrip().startswith("#"):
            above.insert(0, lines[number].strip().lstrip("# "))
            number -= 1
        behind = [
            line.partition("  # ")[2].strip() for line in lines[node.lineno - 1 : node.end_lineno] if "  # " in line
        ]
        if said := " ".join([*above, *behind]).strip():
            found[node.target.id] = said
    return found


def _sentence(said: str) -> str:
    """A comment as the cell of a table."""
    said = re.sub(r"\bNone\b", "left open", said).replace("|", "\\|")
    return said[:1].upper() + said[1:] if said and not said.startswith("`") else said


def missing() -> list[str]:
    """Keys that nothing says the meaning of, and meanings of no key."""
    known = {key.path: key for keys in sections().values() for key in keys}
    silent = [f"{path}: no meaning; write a comment at the field" for path, key in known.items() if not key.meaning]
    headings = set(sections())
    said = (*MEANINGS, *DEFAULTS)
    silent += [f"{path}: a meaning of no key (tools/docs/meanings.py)" for path in said if path not in known]
    return silent + [f"{name}: no heading (tools/docs/meanings.py)" for name in headings - set(SECTIONS)]


def _path(path: str) -> str:
    """A path that narrow pages may break behind a dot."""
    return f"<code>{path.replace('.', '.<wbr>')}</code>"


def page() -> str:
    """The tables of all keys, as Markdown."""
    parts = []
    for name, keys in sections().items():
        heading, about = SECTIONS.get(name, (name, ""))
        parts.append(f"## {heading}\n\n{about}\n\n| key | takes | default | means |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n| {_path(key.path)} | {key.values} | {key.default} | {key.meaning} |" for key in keys)
    return "\n\n".join(parts)
