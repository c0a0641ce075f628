"""How long a training is: as stated, else as its budget says, else as its device is given."""

import pytest

from tests.planning.test_plan import CPU, all_planned, data
from ulna.errors import UsageError
from ulna.planning.choosing import choose
from ulna.planning.length import BUDGETS, FIELDS, resolve_length
from ulna.recipe import Recipe, set_value
from ulna.system.device import Device

GPU = Device("cuda", 80e9)


def length(device, *changes):
    recipe = Recipe()
    for change in changes:
        recipe = set_value(recipe, f"training.{change}")
    resolved, why = resolve_length(recipe, device)
    assert resolved.training.budget is None, "the numbers say it now"
    return tuple(getattr(resolved.training, field) for field in FIELDS), why


def test_a_cpu_trains_as_long_as_before():
    numbers, why = length(CPU)
    assert numbers == (100, None, 30, None)
    assert why.startswith("100 epochs of every training case once, at least 20 steps")
    assert length(CPU, "max_hours=2")[0] == (100, None, 30, 2.0)
    resolved = resolve_length(Recipe(), CPU)[0].training
    assert [resolved.samples_of_epoch(cases, 4) for cases in (7, 1000)] == [80, 1000]


def test_a_gpu_trains_by_the_standard_budget_unless_something_is_said():
    numbers, why = length(GPU)
    assert numbers == tuple(BUDGETS["standard"])
    assert why.startswith("standard, what a GPU is given where nothing is said, 100 epochs of 250 steps, 2 h at most")
    assert length(GPU, "epochs=7")[0] == (7, None, 30, None)  # of the cases, as on a CPU
    assert length(GPU, "max_hours=5")[0] == (1000, 250, 200, 5.0)  # the hours end it


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_the_same_length_everywhere(device, name):
    numbers, why = length(device, f"budget={name}")
    assert numbers == tuple(BUDGETS[name]) and why.startswith(f"{name}, ")
    resolved = resolve_length(set_value(Recipe(), f"training.budget={name}"), device)[0]
    assert {resolved.training.samples_of_epoch(cases, 3) for cases in (5, 10**6)} == {3 * BUDGETS[name].steps}
    other = GPU if device is CPU else CPU
    assert resolve_length(resolved, other)[0] == resolved, "what a run stores trains alike on another device"


def test_full_is_as_long_as_nnu_net():
    assert BUDGETS["full"].epochs * BUDGETS["full"].steps == 250_000


def test_what_is_stated_takes_the_place_of_a_part_of_the_budget():
    stated = ("budget=full", "epochs=50", "max_hours=24", "patience=5")
    assert length(GPU, *stated)[0] == (50, 250, 5, 24.0)
    assert length(GPU, "budget=quick", "samples_per_epoch=64")[0] == (25, None, 10, 0.25)


def test_a_flag_takes_the_place_of_what_a_file_says(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("training: {epochs: 500, patience: 3, max_hours: 9}\n")
    assert choose(model="unet", recipe=file).training.epochs == 500
    chosen = choose(model="unet", recipe=file, budget="quick", max_hours=0.1, set=["training.patience=4"]).training
    assert (chosen.budget, chosen.epochs, chosen.max_hours, chosen.patience) == ("quick", None, 0.1, 4)
    file.write_text("training: {samples_per_epoch: 64}\n")
    chosen = choose(model="unet", recipe=file, budget="full").training
    assert (chosen.budget, chosen.samples_per_epoch) == ("full", None)
    with pytest.raises(UsageError, match="--budget quik: no budget named 'quik'; did you mean 'quick'"):
        choose(model="unet", recipe=None, budget="quik")


def test_a_training_is_planned_with_its_length():
    made = all_planned(data((32, 32)), "training.budget=quick", device=GPU)
    assert made.recipe.training.epochs == 25 and made.length.startswith("quick, 25 epochs of 100 steps")
    assert "length" not in made.plan.reasons  # a plan is of sizes: by one file, trainings of any length
