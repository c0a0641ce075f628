"""What several trainings, such as folds, chose alike to measure: a mean is of all of them, or it is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ulna.evaluation.choice import FAMILIES, Choice


@dataclass(frozen=True)
class Agreed:
    """The measures of every structure that each training has, and those that only some have.

    Args:
        choice: of all of them; None where none says what it chose.
        left_out: structure and family.
    """

    choice: Choice | None
    left_out: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, summaries: Iterable[Mapping[str, Any]]) -> Agreed:
        """From the summaries of trainings; one that does not say what was measured decides nothing."""
        told = [summary[summary["evaluated_on"]].get("measures") for summary in summaries]
        known = [one for one in told if one is not None]
        if not known:
            return cls(None)
        families: dict[str, tuple[str, ...]] = {}
        why: dict[str, dict[str, str]] = {}
        left_out: list[tuple[str, str]] = []
        for name in known[0]["of_classes"]:
            chosen = [one["of_classes"].get(name, ()) for one in known]
            families[name] = tuple(family for family in FAMILIES if all(family in one for one in chosen))
            left_out += [
                (name, family)
                for family in FAMILIES
                if family not in families[name] and any(family in one for one in chosen)
            ]
            reasons = [one.get("because", {}).get(name, {}) for one in known]
            why[name] = {
                family: "; ".join(dict.fromkeys(one[family] for one in reasons if family in one))
                for family in families[name]
                if any(family in one for one in reasons)
            }
        because = why if any("because" in one for one in known) else {}
        return cls(Choice(tuple(known[0]["asked"]), families, because), tuple(left_out))

    def kept(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a structure in a case: NaN for what is left out, without the measures that no structure keeps."""
        if self.choice is None or not self.left_out:
            return {**values}
        blank = {measure for of, family in self.left_out if of == name for measure in FAMILIES[family]}
        gone = self.measures - {*self.choice.further}
        return {
            measure: math.nan if measure in blank else value for measure, value in values.items() if measure not in gone
        }

    @property
    def measures(self) -> frozenset[str]:
        """Those that are left out, of some structure."""
        return frozenset(measure for _, family in self.left_out for measure in FAMILIES[family])

    @property
    def words(self) -> tuple[str, ...]:
        """What is left out, for people."""
        return tuple(f"{family} of {name}" for name, family in self.left_out)
