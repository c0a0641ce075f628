"""Long series of like cases, such as the moments of a kill: every run has a share, the others are slow or left out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
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
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        marker = item.get_closest_marker("share")
        if marker is None or item.get_closest_marker("slow"):
            continue
        test = str(item.path), getattr(item, "originalname", item.name)
        if (seen[test] + phase) % marker.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[test] += 1
