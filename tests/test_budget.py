"""A limit of minutes: over many commits no slow module is left out; what is late is skipped before its fixtures are made."""

from __future__ import annotations

import pytest

from tests import budget


def test_every_module_is_the_first_of_some_commit():
    modules = [f"test_{name}.py" for name in "abcdef" for _ in range(3)]
    begun = {budget.in_turn(modules, f"commit {number}")[0] for number in range(200)}
    assert begun == set(modules)
    for number in range(20):
        assert sorted(budget.in_turn(modules, str(number))) == sorted(set(modules))


@pytest.mark.parametrize(
    ("marks", "everything", "began", "skipped"),
    [
        (["slow"], False, -61, True),
        (["slow"], False, -59, False),
        ([], False, -61, False),
        ([], True, -61, True),
        ([], True, -59, False),
    ],
)
def test_what_is_limited_is_skipped_when_it_is_late(monkeypatch, marks, everything, began, skipped):
    class Item:
        def get_closest_marker(self, name):
            return name if name in marks else None

    monkeypatch.setattr(budget, "MINUTES", 1.0)
    monkeypatch.setattr(budget, "LIMITED", True)
    monkeypatch.setattr(budget, "ALL", everything)
    monkeypatch.setattr(budget, "_began", budget.time.monotonic() + began)
    if skipped:
        with pytest.raises(pytest.skip.Exception, match="without ULNA_TEST_MINUTES"):
            budget.skip_what_is_late(Item())
    else:
        budget.skip_what_is_late(Item())
