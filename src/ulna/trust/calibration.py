"""calibration.json of a run: what its validation cases and its training references say about its answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from ulna.recipe import Frozen, parse
from ulna.system.files import write_text
from ulna.system.outputs import file_digest
from ulna.system.reading import read_json
from ulna.trust.choosing import Kept
from ulna.trust.cleaning import Rule
from ulna.trust.dice import Lines, Origin
from ulna.trust.structures import Structures
from ulna.trust.temperature import Temperature

log = logging.getLogger("ulna")

CALIBRATION_FILE = "calibration.json"
CALIBRATION_FORMAT = 1


class Calibration(Frozen):
    """What was found at the end of a training, for the weights of this digest alone.

    A run without the file, or with other weights, predicts as it would without all of it.
    """

    format: int = Field(default=CALIBRATION_FORMAT, ge=1, le=CALIBRATION_FORMAT)
    weights: str  # SHA-256 of weights.safetensors
    cases: int = Field(ge=0)  # of validation that were predicted
    seconds: float = Field(ge=0)  # that all of it took
    cut_short: str = ""  # why not all cases were taken that the rules allow
    structures: Structures | None = None
    temperature: Temperature | None = None
    post_processing: dict[str, Kept] = Field(default_factory=dict)  # class -> what is done
    dice: dict[Origin, Lines] = Field(default_factory=dict)

    @property
    def rules(self) -> dict[str, Rule]:
        """Class -> its post-processing."""
        return {name: kept.rule for name, kept in self.post_processing.items()}

    def write(self, folder: Path) -> None:
        """Put it into a run folder."""
        write_text(folder / CALIBRATION_FILE, json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False))

    def summary(self, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What summary.json says of it.

        Args:
            error: of the predicted Dice on the cases that were kept for the end.
        """
        temperature = None if self.temperature is None else self.temperature.model_dump(mode="json")
        lines = {
            origin: {
                "mean_absolute_error": round(fitted.mean.error, 4),
                "of_the_mean_alone": round(fitted.mean.error_of_mean, 4),
                "cases": fitted.mean.cases,
            }
            for origin, fitted in self.dice.items()
            if fitted.mean is not None
        }
        rules = {
            name: {"does": kept.rule.words, **kept.model_dump(mode="json", exclude={"rule"})}
            for name, kept in self.post_processing.items()
        }
        told: dict[str, Any] = {
            "validation_cases": self.cases,
            "seconds": self.seconds,
            "temperature": temperature,
            "post_processing": rules,
            "predicted_dice": lines,
        }
        if error is not None:
            told["predicted_dice_on_test"] = dict(error)
        return told if not self.cut_short else {**told, "cut_short": self.cut_short}


def read_calibration(run: Path) -> Calibration | None:
    """The calibration of a run; None where there is none for its weights.

    Raises:
        UsageError: if the file is damaged.
    """
    path = run / CALIBRATION_FILE
    if not path.exists():
        return None
    found = parse(Calibration, read_json(path), source=str(path))
    if found.weights != file_digest(run / "weights.safetensors"):
        _note_other(str(path))
        return None
    return found


def of_exported(members: Sequence[Mapping[str, Any]], source: str) -> Calibration | None:
    """The calibration of the networks of an exported file, without the Dice that their heads tell: a graph has one.

    Raises:
        UsageError: if it is damaged.
    """
    each: list[Calibration | None] = []
    for member in members:
        given = member.get("calibration")
        found = None if given is None else parse(Calibration, given, source=source)
        kept = {} if found is None else {origin: lines for origin, lines in found.dice.items() if origin != "heads"}
        each.append(None if found is None else found.replaced(dice=kept))
    return each[0] if len(each) == 1 else in_common(each)


@cache
def _note_other(path: str) -> None:
    """Once a process."""
    log.warning(
        "note: %s is of other weights than lie beside it, and is not used; ulna train --resume makes it anew", path
    )


def in_common(each: list[Calibration | None]) -> Calibration | None:
    """What holds for the mean of several networks: the post-processing that all of them chose, the structures of the first.

    Sizes in different units have no smallest of all. Neither the temperature nor the line to Dice of one network holds for
    the mean.
    """
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None
    first, *others = known
    one_unit = len({one.structures.unit for one in known if one.structures is not None}) <= 1
    kept = {}
    for name, own in first.post_processing.items():
        rules = [own.rule, *(other.rules.get(name, Rule()) for other in others)]
        smallest = [rule.smallest for rule in rules if rule.smallest is not None]
        rule = Rule(
            largest=all(rule.largest for rule in rules),
            smallest=min(smallest) if one_unit and len(smallest) == len(rules) else None,
            holes=all(rule.holes for rule in rules),
        )
        if rule != Rule():
            kept[name] = own.replaced(rule=rule)
    return first.replaced(temperature=None, dice={}, post_processing=kept)
