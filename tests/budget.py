"""What a limit of minutes leaves of the slow tests: CI gives them one, and every commit begins with other modules.

ULNA_TEST_MINUTES=11 skips the slow tests that are not begun by then; ULNA_TEST_FIRST=ANY_TEXT (in CI the commit) says with
which module they begin. Without the first, all run, in their usual order.
"""

from __future__ import annotations

import hashlib
import math
import os
import time

import pytest

MINUTES = float(os.environ.get("ULNA_TEST_MINUTES", "inf"))
FIRST = os.environ.get("ULNA_TEST_FIRST", "")
LIMITED = math.isfinite(MINUTES)

_began = time.monotonic()


def in_turn(modules: list[str], first: str) -> list[str]:
    """The modules, each once, from the one on that the text names by its digest; those before it follow.

    Example:
        >>> in_turn(["a", "a", "b", "c"], "another commit")
        ['c', 'a', 'b']
    """
    once = list(dict.fromkeys(modules))
    start = int(hashlib.sha256(first.encode()).hexdigest(), 16) % max(1, len(once))
    return once[start:] + once[:start]


def order(items: list[pytest.Item]) -> None:
    """Sort the tests so that the slow ones of another module begin with every commit."""
    slow = [str(item.path) for item in items if item.get_closest_marker("slow")]
    place = {path: number for number, path in enumerate(in_turn(slow, FIRST))}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def skip_what_is_late(item: pytest.Item) -> None:
    """Skip a slow test for which no time is left."""
    if LIMITED and item.get_closest_marker("slow") and time.monotonic() - _began > MINUTES * 60:
        pytest.skip(f"the {MINUTES:g} minutes of this run are over; `make slow` without ULNA_TEST_MINUTES runs all")
