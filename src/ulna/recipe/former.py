"""Names that fields of a recipe had before: they go on working in this version, with a note where a person wrote them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

FIELDS = {  # section -> old name -> name
    "training": {"recompute": "activation_checkpointing"},
    "inference": {"spacing": "mesh_step"},
}
OPTIONS = {"reinject": "skip_layer"}  # of a block or head


def renamed(values: Mapping[str, Any], *, note: bool = False) -> dict[str, Any]:
    """The values of a recipe under the names of today; what is no recipe comes back for the validation to name.

    Args:
        note: say once for every old name how it is called now; for what a person wrote, not for stored runs.

    Raises:
        ValueError: if a field is given by both of its names.
    """
    found = dict(values)
    for section, names in FIELDS.items():
        if isinstance(found.get(section), Mapping):
            found[section] = _renamed(found[section], names, f"{section}.", note)
    points = found.get("points")
    if isinstance(points, Mapping) and _is_share(points.get("count")):
        if points.get("fraction") is not None:
            raise ValueError("points.count is below 1, a share of the voxels, beside points.fraction; give one of them")
        found["points"] = {**points, "count": None, "fraction": points["count"]}
        _say("points.count below 1", "points.fraction", note)
    architecture = found.get("architecture")
    if isinstance(architecture, Mapping):
        found["architecture"] = {
            name: [_renamed_slot(one, name, note) for one in value]
            if isinstance(value, list | tuple)
            else _renamed_slot(value, name, note)
            for name, value in architecture.items()
        }
    return found


def renamed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a block or head under the names of today.

    Raises:
        ValueError: if one is given by both of its names.
    """
    return _renamed(options, OPTIONS, "", note=False)


def renamed_path(path: str, value: Any) -> str:
    """The path of a field, as `--set` takes it, under the names of today; notes an old one.

    Example:
        >>> renamed_path("inference.spacing", 2), renamed_path("points.count", 0.1), renamed_path("points.count", 100)
        ('inference.mesh_step', 'points.fraction', 'points.count')
    """
    section, _, name = path.partition(".")
    now = FIELDS.get(section, {}).get(name)
    if path == "points.count" and _is_share(value):
        section, now = "points", "fraction"
    if section == "architecture" and path.rpartition(".")[2] in OPTIONS:
        section, _, name = path.rpartition(".")
        now = OPTIONS[name]
    if now is None:
        return path
    _say(path if path != "points.count" else "points.count below 1", f"{section}.{now}", True)
    return f"{section}.{now}"


def _renamed_slot(value: Any, field: str, note: bool) -> Any:
    """A block or head with its options under the names of today; any other value of an architecture as it is."""
    if not isinstance(value, Mapping) or not isinstance(value.get("options"), Mapping):
        return value
    return {**value, "options": _renamed(value["options"], OPTIONS, f"architecture.{field}.options.", note)}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str], where: str, note: bool) -> dict[str, Any]:
    found = dict(values)
    for old, now in names.items():
        if old in found:
            if now in found:
                raise ValueError(f"{where}{old} is the former name of {where}{now}; give one of them")
            found[now] = found.pop(old)
            _say(f"{where}{old}", f"{where}{now}", note)
    return found


def _is_share(count: Any) -> bool:
    return isinstance(count, int | float) and not isinstance(count, bool) and 0 < count < 1


def _say(old: str, now: str, note: bool) -> None:
    if note:
        _said_once(old, now)


@cache
def _said_once(old: str, now: str) -> None:
    log.warning("note: %s is called %s now; the former name works in this version", old, now)
