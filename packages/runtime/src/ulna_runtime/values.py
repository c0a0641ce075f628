"""Plain values of JSON, each of the type and range that it must have; ValueError where it has not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def one(value: Any, kind: type[T]) -> T:
    """A value of exactly that type."""
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]} is no {kind.__name__}")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no number")
    return float(value)


def maybe(value: Any, read: Callable[[Any], T]) -> T | None:
    """What `read` makes of a value; None of None."""
    return None if value is None else read(value)


def among(value: Any, valid: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in valid:
        raise ValueError(f"{str(value)[:40]} is none of {', '.join(valid)}")
    return str(value)


def several(values: Any, kind: type[T]) -> tuple[T, ...]:
    """A list whose entries have that type."""
    return tuple(one(value, kind) for value in one(values, list))


def ints(values: Any) -> tuple[int, ...]:
    """A list of whole numbers."""
    return several(values, int)


def counts(values: Any) -> tuple[int | None, ...]:
    """A list of whole numbers, of which some may be None."""
    return tuple(maybe(value, lambda v: one(v, int)) for value in one(values, list))


def numbers(values: Any) -> tuple[float, ...]:
    """A list of finite numbers."""
    return tuple(map(number, one(values, list)))
