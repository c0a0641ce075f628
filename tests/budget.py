"""What a limit of minutes leaves of the tests: CI gives the slow ones and those under imitated processors one.

ULNA_TEST_MINUTES=11 skips the slow tests that are not begun by then, with ULNA_TEST_LIMITED=all any test;
ULNA_TEST_FIRST=ANY_TEXT (in CI the commit) says with which module they begin, so that every commit begins with another.
Without the first, all run, in their usual order.
"""

from __future__ import annotations

import hashlib
import math
import os
import time

import pytest

MINUTES = float(os.environ.get("ULNA_TEST_MINUTES", "inf"))
FIRST = os.environ.get("ULNA_TEST_FIRST", "")
ALL = os.environ.get("ULNA_TEST_LIMITED") == "all"
LIMITED = math.isfinite(MINUTES)

_began: float | None = None  # of the first test: finding 10,000 of them takes half a minute on a slow machine


def in_turn(modules: list[str], first: str) -> list[str]:
    """The modules, each once, from the one on that the text names by its digest; those before it follow.

    Example:
        >>> in_turn(["a", "a", "b", "c"], "another commit")
        ['c', 'a', 'b']
    """
    once = list(dict.fromkeys(modules))
    start = int(hashlib.sha256(first.encode()).hexdigest(), 16) % max(1, len(once))
    return once[start:] + once[:start]


def is_limited(item: pytest.Item) -> bool:
    """Whether the limit is of this test."""
    return LIMITED and (ALL or item.get_closest_marker("slow") is not None)


def order(items: list[pytest.Item]) -> None:
    """Sort the tests so that limited ones of another module begin with every commit."""
    limited = [str(item.path) for item in items if is_limited(item)]
    place = {path: number for number, path in enumerate(in_turn(limited, FIRST))}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def skip_what_is_late(item: pytest.Item) -> None:
    """Skip a limited test for which no time is left."""
    global _began
    if _began is None:
        _began = time.monotonic()
    if is_limited(item) and time.monotonic() - _began > MINUTES * 60:
        pytest.skip(f"the {MINUTES:g} minutes of this run are over; without ULNA_TEST_MINUTES all run")
