"""The base of recipes and plans: immutable, strict about names, read and written as YAML, with one line for every fault."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ulna.errors import LONGEST_SHOWN, UsageError, brief, printable, unknown
from ulna.system.reading import read_yaml

MOST_FAULTS = 20  # lines of one message


class Frozen(BaseModel):
    """Immutable, and strict about names: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replaced(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return parse(type(self), {**self.model_dump(), **changes})


M = TypeVar("M", bound=Frozen)


def parse(model: type[M], values: Any, source: str = "") -> M:
    """Validate `values`; every fault becomes one line that names the field and, for a wrong name, the nearest.

    Raises:
        UsageError: with all faults; of very many, the first.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_fault(model, e["loc"], e["type"], e["msg"], e.get("input")) for e in faults[:MOST_FAULTS]]
        if len(faults) > MOST_FAULTS:
            lines.append(f"{len(faults) - MOST_FAULTS} more faults")
        head = f"{printable(source)}: " if source else ""
        raise UsageError(head + "\n".join(lines)) from None


def _fault(model: type[Frozen], loc: tuple[Any, ...], kind: str, message: str, value: Any) -> str:
    path = printable(".".join(str(part)[:LONGEST_SHOWN] for part in loc))
    if kind == "extra_forbidden":
        owner = field_type(model, loc[:-1])
        valid = owner.model_fields if owner else ()
        return f"{path}: not a field; {str(unknown('field', loc[-1], valid)).split('; ', 1)[-1]}"
    if kind == "value_error":  # of a check that ulna makes itself: it says what came
        return (f"{path}: " if path else "") + message.removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {brief(value)}"


def field_type(model: type[Frozen], loc: Sequence[Any]) -> type[Frozen] | None:
    """The model of what stands at a place, such as `Slot` at ("architecture", "conv", 0); None where it is no model."""
    current: type[Frozen] | None = model
    for part in loc:
        if current is None:
            return None
        if isinstance(part, int):  # an entry of a list: its model was found with the list
            continue
        if part not in current.model_fields:
            return None
        current = next(_models_in(current.model_fields[part].annotation), None)
    return current


def _models_in(annotation: Any) -> Iterator[type[Frozen]]:
    """The models that an annotation names, such as `Slot` in `tuple[Slot, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def to_yaml(model: Frozen) -> str:
    """YAML of a recipe or plan: plain values only, in the order of the fields."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(model: type[M], path: Path) -> M:
    """Read a recipe or plan.

    Raises:
        UsageError: if the file is missing, not YAML, or does not fit.
    """
    return parse(model, read_yaml(path), source=str(path))
