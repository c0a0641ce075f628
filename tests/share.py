"""Long series of like cases, such as the moments of a kill: CI runs a share of them, ULNA_TEST_ALL=1 all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

ALL = os.environ.get("ULNA_TEST_ALL") == "1"


def share(cases: Sequence[Case], part: int) -> list[Case]:
    """Every `part`-th of the cases and the last one; all of them with ULNA_TEST_ALL=1."""
    return list(cases) if ALL else [case for n, case in enumerate(cases) if n % part == 0 or n == len(cases) - 1]
