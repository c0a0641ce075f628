"""What a run learned from its validation cases: post-processing of masks, and the temperature of probabilities.

ulna stores more of it in an exported file than is read here: what it says of a case is told by `ulna predict FILE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.values import maybe, number, one
from ulna_runtime.volume import Volume

FORMAT = 1
UNITS = ("px", "mm2", "ml")
COLDEST, HOTTEST = 0.2, 10.0
_TINY = 1e-7  # what float32 tells from 0 and 1


class NewerError(ValueError):
    """It has a format that came after this program."""


@dataclass(frozen=True)
class Rule:
    """What is done to one class.

    Args:
        largest: all but the largest object are taken away.
        smallest: objects below it are taken away, in the unit of volumes.
        holes: are filled.
    """

    largest: bool = False
    smallest: float | None = None
    holes: bool = False


@dataclass(frozen=True)
class Calibration:
    """Of one network, or what several have in common.

    Args:
        unit: of `Rule.smallest`; None where no reference was read, and then no rule is applied.
        rules: class -> its post-processing.
        temperature: that the logits are divided by; None for none.
    """

    unit: str | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)
    temperature: float | None = None

    def rules_for(self, volume: Volume) -> tuple[Mapping[str, Rule], float]:
        """What is done to a mask of an image, and what a voxel has of the unit of volumes."""
        unit, voxel = unit_of(volume)
        if self.unit is None:
            return {}, voxel
        if unit != self.unit:  # a volume in px is none in ml
            return {name: replace(rule, smallest=None) for name, rule in self.rules.items()}, voxel
        return self.rules, voxel


def unit_of(volume: Volume) -> tuple[str, float]:
    """The unit of volumes, and what a voxel has of it: ml, mm2 of a picture with a spacing, else px.

    Example:
        >>> unit_of(Volume(np.zeros((1, 4, 4, 4)), (1.0, 1.0, 2.0), "mm"))
        ('ml', 0.002)
    """
    if volume.unit != "mm":
        return "px", 1.0
    each = math.prod(volume.spacing)
    return ("ml", each / 1000) if len(volume.size) == 3 else ("mm2", each)


def read_calibration(values: Mapping[str, Any]) -> Calibration:
    """The calibration of one network in an exported file.

    Raises:
        NewerError: if its format came after this program.
        ValueError, KeyError, TypeError, AttributeError: if it cannot be right.
    """
    if one(values["format"], int) > FORMAT:
        raise NewerError(f"has a calibration of format {values['format']}, this program reads {FORMAT}")
    structures, temperature = values.get("structures"), values.get("temperature")
    unit = maybe(structures, lambda v: one(v["unit"], str))
    degrees = maybe(temperature, lambda v: number(v["value"]))
    kept = values.get("post_processing") or {}
    found = Calibration(unit, {name: _rule(rule["rule"]) for name, rule in kept.items()}, degrees)
    if values["format"] < 1 or unit not in (None, *UNITS):
        raise ValueError("calibration")
    if degrees is not None and not COLDEST <= degrees <= HOTTEST:
        raise ValueError("calibration.temperature")
    return found


def _rule(values: Mapping[str, Any]) -> Rule:
    smallest = maybe(values.get("smallest"), number)
    if smallest is not None and smallest <= 0:
        raise ValueError("calibration.smallest")
    return Rule(one(values["largest"], bool), smallest, one(values["holes"], bool))


def in_common(each: Sequence[Calibration | None]) -> Calibration | None:
    """What holds for the mean of several networks: the post-processing that all of them chose, in the unit of the first.

    Sizes in different units have no smallest of all. The temperature of one network does not hold for the mean.
    """
    known = [found for found in each if found is not None]
    if len(known) == len(each) == 1:
        return known[0]
    if not known or len(known) < len(each):
        return None
    one_unit = len({found.unit for found in known if found.unit is not None}) <= 1
    each_of = {name: [found.rules.get(name, Rule()) for found in known] for name in known[0].rules}
    shared = {name: _weakest(rules, one_unit=one_unit) for name, rules in each_of.items()}
    return Calibration(known[0].unit, {name: rule for name, rule in shared.items() if rule != Rule()})


def _weakest(rules: Sequence[Rule], *, one_unit: bool) -> Rule:
    smallest = [rule.smallest for rule in rules if rule.smallest is not None]
    return Rule(
        largest=all(rule.largest for rule in rules),
        smallest=min(smallest) if one_unit and len(smallest) == len(rules) else None,
        holes=all(rule.holes for rule in rules),
    )


def scaled(maps: NDArray[np.float32], temperature: float, *, exclusive: bool) -> NDArray[np.float32]:
    """Probabilities with their logits divided by the temperature: (K, *S) -> (K, *S), float32.

    Args:
        maps: probabilities.
        temperature: above 1 they come closer to each other.
        exclusive: they sum to 1; else each map has a sigmoid of its own.

    Example:
        >>> scaled(np.array([[0.8], [0.2]], np.float32), 2.0, exclusive=True).T.round(4)
        array([[0.6667, 0.3333]], dtype=float32)
    """
    if temperature == 1:
        return maps
    power, tiny = np.float32(1 / temperature), np.float32(_TINY)
    if exclusive:
        powers = np.maximum(maps, tiny) ** power
        return np.asarray(powers / powers.sum(0), np.float32)
    inside = np.clip(maps, tiny, 1 - tiny)
    odds = np.log(inside / (1 - inside)) * power
    return np.asarray(1 / (1 + np.exp(-odds)), np.float32)
