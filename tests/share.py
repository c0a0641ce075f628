"""Long series of like cases, such as the moments of a kill: every run has a share, the others are slow or left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

from tests.budget import FIRST

Case = TypeVar("Case")

ALL = os.environ.get("ULNA_TEST_ALL") == "1"


def share(cases: Sequence[Case], part: int) -> list[Case]:
    """Every `part`-th of the cases and the last one; all of them with ULNA_TEST_ALL=1."""
    return list(cases) if ALL else [case for n, case in enumerate(cases) if n % part == 0 or n == len(cases) - 1]


def mark_the_rest_slow(items: Sequence[pytest.Item]) -> None:
    """Of a test that is marked `share(4)`, every fourth of the quick cases stays one, and the others are slow ones.

    Which of the four comes first is another one with each commit, in CI (ULNA_TEST_FIRST).
    """
    phase = int(hashlib.sha256(FIRST.encode()).hexdigest(), 16) if FIRST else 0
    series: dict[tuple[str, str, int], list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("share")
        if marker is not None and item.get_closest_marker("slow") is None:
            test = str(item.path), getattr(item, "originalname", item.name), marker.args[0]
            series.setdefault(test, []).append(item)
    for (_, _, wanted), cases in series.items():
        part = min(wanted, len(cases))  # so that one at least is quick
        for number, item in enumerate(cases):
            if (number + phase) % part:
                item.add_marker(pytest.mark.slow)
