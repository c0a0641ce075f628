"""Long series of like cases, such as the moments of a kill: every run has a share of them, others are slow or left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")

ALL = os.environ.get("ULNA_TEST_ALL") == "1"


def share(cases: Sequence[Case], part: int) -> list[Case]:
    """Every `part`-th of the cases and the last one; all of them with ULNA_TEST_ALL=1."""
    return list(cases) if ALL else [case for n, case in enumerate(cases) if n % part == 0 or n == len(cases) - 1]


def rest_slow(cases: Sequence[Any], part: int) -> list[Any]:
    """Parameters of which every `part`-th and the last one are quick tests, the others slow ones."""
    last = len(cases) - 1
    return [
        case if n % part == 0 or n == last else pytest.param(*_values(case), marks=pytest.mark.slow)
        for n, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
