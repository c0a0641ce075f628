"""What predict.json told of a case's trust, read again: docs/trust.md has the fields."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from ulna.errors import UsageError
from ulna.recipe import Frozen, parse
from ulna.trust.report import TRUST_FORMAT


class _Lenient(Frozen):
    """A field may be added within a format."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ToldFlag(_Lenient):
    """One thing that is odd."""

    about: str = ""
    what: str = ""
    text: str = ""
    structure: str = ""


class ToldStructure(_Lenient):
    """One structure in the mask."""

    volume: float
    objects: int
    largest_share: float = 0.0
    touches_border: bool = False


class ToldDice(_Lenient):
    """A Dice, and the interval where one is known."""

    dice: float
    low: float | None = None
    high: float | None = None


class ToldEstimate(_Lenient):
    """The predicted Dice of a case."""

    origin: str = Field(default="", alias="from")
    calibrated: bool = False
    by_case: bool = True
    mean: ToldDice | None = None
    classes: dict[str, ToldDice] = Field(default_factory=dict)


class Told(_Lenient):
    """`trust` of a row."""

    format: int = Field(ge=1, le=TRUST_FORMAT)
    flags: tuple[ToldFlag, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    unit: str = ""
    structures: dict[str, ToldStructure] = Field(default_factory=dict)
    predicted_dice: ToldEstimate | None = None

    @property
    def mean(self) -> ToldDice | None:
        """The predicted Dice over all classes."""
        return None if self.predicted_dice is None else self.predicted_dice.mean


def read_told(values: Any) -> Told | None:
    """`trust` of a row; None where an earlier version wrote none, a later one wrote it, or it was damaged."""
    if not values:
        return None
    try:
        return parse(Told, values)
    except UsageError:
        return None
