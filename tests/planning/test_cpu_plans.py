"""Plans for a CPU are those of `cpu_plans.json`, which was written before there were plans for a GPU."""

import json

import pytest

from tests.planning.cpu_table import CASES, STORED, name_of, plan_of, told
from ulna.system.device import Device

ROWS = {name: list(row) for name, *row in json.loads(STORED.read_text())}
QUICK = ("unet",)  # the whole table takes too long
MARKED = [pytest.param(*case, id=name_of(*case), marks=() if case[0] in QUICK else pytest.mark.slow) for case in CASES]


def test_the_table_is_whole():
    assert list(ROWS) == [name_of(*case) for case in CASES]


@pytest.mark.parametrize(("model", "image", "change"), MARKED)
def test_plans_for_a_cpu_are_unchanged(model, image, change):
    assert told(plan_of(model, image, change, device=Device("cpu", 1e9))) == ROWS[name_of(model, image, change)]
