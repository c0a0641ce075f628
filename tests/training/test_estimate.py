"""What `ulna plan` tells is what `ulna train` does, and the hours are those of its own steps."""

import inspect
import json
import math
import time

import pytest
import torch

from tests import plans
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.inference.segmenter import Segmenter, read_split
from ulna.planning.choosing import choose
from ulna.planning.plan import planned_by
from ulna.recipe import Labels, Plan, Recipe, Split, from_yaml
from ulna.training import estimate as room
from ulna.training.duration import LONGEST_S, STEPS, MadeCases, Timing, made_labels, time_training, windows
from ulna.training.estimate import plan
from ulna.training.train import train


@pytest.mark.parametrize("model", [pytest.param("unetpp", marks=pytest.mark.slow), "implicit_unet"])
def test_the_plan_told_is_the_one_that_a_training_makes(discs, tmp_path, model):
    flags = {"model": model, "seed": 3, "set": (*TINY[1:], "architecture.base_channels=4", "planning.whitening=zca")}
    told = plan(discs, untimed=True, **flags)
    run = train(discs, out=tmp_path / "run", epochs=1, **flags)
    trained = from_yaml(Plan, run.folder / "plan.yaml")
    assert "this machine has" in told.plan.reasons["memory"] and "epochs of" in told.plan.reasons["length"]
    reasons = {name: why for name, why in told.plan.reasons.items() if name not in ("length", "memory")}
    assert told.plan.replaced(reasons=reasons, recipe=None) == trained
    assert told.plan.recipe == choose(recipe=None, **flags)
    assert (told.patch, told.batch) == (trained.patch, trained.batch)
    with pytest.raises(AttributeError, match="no 'pach'"):
        _ = told.pach
    assert told.planned.split == read_split(run.folder)
    assert told.planned.parameters == run.summary["parameters"]
    recipe = from_yaml(Recipe, run.folder / "recipe.yaml")
    assert told.planned.recipe.replaced(training=recipe.training) == recipe


def test_plan_takes_what_train_takes():
    theirs = inspect.signature(train).parameters
    for name in ("model", "recipe", "set", "seed", "fold"):
        assert inspect.signature(plan).parameters[name].default == theirs[name].default
        assert inspect.signature(plan).parameters[name].annotation == theirs[name].annotation


def test_memory_that_is_allowed_bounds_the_plan(discs):
    assert choose(model="unet", recipe=None, max_ram=2).planning.memory_gb == 2
    for stated, kept in ((3, 2), (1, 1)):  # the limit lowers what is stated, and never raises it
        chosen = choose(model="unet", recipe=None, max_ram=2, set=[f"planning.memory_gb={stated}"])
        assert chosen.planning.memory_gb == kept
    assert choose(model="unet", recipe=None, max_ram=8).planning.memory_gb is None
    with pytest.raises(UsageError, match="--max-ram 0: must be above 0"):
        plan(discs, max_ram=0)


def test_a_wrong_name_costs_no_reading_of_data(discs, monkeypatch):
    monkeypatch.setattr(room, "read_training_data", lambda *_: pytest.fail("data were read"))
    with pytest.raises(UsageError, match="did you mean 'attention_gate'"):
        plan(discs, set=["architecture.skip=atention_gate"])


def test_a_plan_replaces_a_plan_and_nothing_else(discs, tmp_path):
    out = tmp_path / "plan.yaml"
    for _ in range(2):
        assert plan(discs, model="unet", out=out, untimed=True).file == out
    (tmp_path / "notes.yaml").write_text("mine: 1")
    (tmp_path / "run").mkdir()
    for name in ("plan.yaml", "recipe.yaml"):
        (tmp_path / "run" / name).write_bytes(out.read_bytes())
    for other in ("notes.yaml", "run/plan.yaml"):
        before = (tmp_path / other).read_bytes()
        with pytest.raises(UsageError, match="is not written by ulna, and would be replaced"):
            plan(discs, model="unet", out=tmp_path / other, untimed=True)
        assert (tmp_path / other).read_bytes() == before


def test_the_command_line_tells_all(discs, capsys):
    small = [word for one in TINY for word in ("--set", one)]
    assert cli.run(["plan", str(discs), *small, "--quiet"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "parameters" in table and "GMACs a patch" in table and "s of validation: an estimate from steps on" in table
    assert "each at most: quick" in table and "100 epochs of every training case once" in table
    assert cli.run(["plan", str(discs), *small, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["patch"] == [32, 40] and told["split"] == {"train": 5, "val": 2, "test": 1}
    assert told["parameters"] > 0 and told["gmacs"] > 0 and told["memory"]["bytes"] > 0
    assert list(told["time"]["budgets"]) == ["quick", "standard", "full"]
    assert told["time"]["hours"] > 0 and told["time"]["epochs"] == 100 and told["untimed"] is None
    assert cli.run(["plan", str(discs), *small, "--untimed", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["time"] is None and "--untimed" in told["untimed"]


def test_hours_are_those_of_all_steps_and_validations():
    timing = Timing("x", 1, step_s=0.5, validation_s=8.0, steps=20, epochs=100, max_hours=None)
    assert timing.epoch_s == 18.0
    assert timing.hours == pytest.approx(0.5)
    assert Timing("x", 1, 0.5, 8.0, 20, 100, max_hours=0.2).hours == 0.2


def test_one_timing_tells_the_hours_of_every_budget():
    timing = Timing("x", 1, step_s=0.036, validation_s=9.0, steps=20, epochs=7, max_hours=None)
    hours = {"quick": 25 * (100 * 0.01 + 2.5) / 1e3, "standard": 100 * (250 * 0.01 + 2.5) / 1e3, "full": 1000 * 5e-3}
    assert timing.budgets == pytest.approx(hours)
    slow = Timing("x", 1, step_s=1.0, validation_s=0.0, steps=20, epochs=7, max_hours=None)
    assert slow.budgets == pytest.approx({"quick": 0.25, "standard": 2.0, "full": 250_000 / 3600})


def planned_for(plan, *changes, train=9, val=2):
    recipe = choose(model="unet", recipe=None, set=("architecture.channels=[4, 8, 16]", *changes))
    split = Split(train=tuple(map(str, range(train))), val=tuple(f"v{n}" for n in range(val)))
    return planned_by(plan, recipe, split)


LABELS = {
    "one": Labels(),
    "three": Labels(names=("background", "a", "b", "c")),
    "overlapping": Labels(names=("a", "b"), multilabel=True),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_steps_of_any_training_can_be_timed(dims, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = planned_for(plans.make(spatial_dims=dims, labels=labels, turn_axes=None), "training.min_steps=7")
    random = torch.get_rng_state()
    timing = time_training(planned)
    assert timing.steps == 7 and timing.epochs == 100
    assert timing.step_s > 0 and timing.validation_s > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_made_labels_hold_every_structure(labels):
    made = made_labels(plans.make(patch=(16, 20), labels=labels))
    if labels.multilabel:
        assert made.shape == (2, 16, 20) and made.flatten(1).any(1).all()
    else:
        assert made.shape == (16, 20) and made.unique().tolist() == list(range(len(labels.names)))
    cases = MadeCases(plans.make(labels=labels), 5)
    assert len(cases) == 5 and cases[4][0].image.shape == (1, 16, 16)


def test_windows_of_the_median_image():
    size = {"size": dict.fromkeys(("min", "median", "max"), (40.0, 24.0))}
    by_windows = plans.make(fingerprint=size, whole_image_limit=100)
    assert windows(planned_for(by_windows)) == 4 * 2  # 16 of 40 pixels at 0, 8, 16, 24 and of 24 at 0, 8
    whole = plans.make(fingerprint=size)
    assert windows(planned_for(whole)) == pytest.approx(40 * 24 / 16**2)
    small = {"size": dict.fromkeys(("min", "median", "max"), (12.0, 40.0))}
    flat = plans.make(fingerprint=small, whole_image_limit=0)
    assert windows(planned_for(flat)) == pytest.approx(4 * 12 / 16)  # windows of 12 x 16
    finer = plans.make(fingerprint=size, spacing=(0.5, 1.0), whole_image_limit=100)
    assert windows(planned_for(finer)) == math.prod((4, 2))  # the fingerprint's spacings are those of the plan


def test_no_step_begins_after_the_time_allowed(monkeypatch):
    from ulna.training import duration

    clock = iter(range(0, 10_000, 9))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    made = duration._several(lambda number: number, "steps")
    assert len(made) == math.ceil(LONGEST_S / 9) - 1 < STEPS - 1
    clock = iter(range(0, 10**6, 1000))
    assert duration._several(lambda number: number, "steps") == [0]  # one, cold


def test_what_does_not_fit_into_the_memory_is_not_timed(discs, monkeypatch):
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 10**8)
    monkeypatch.setattr(room, "time_training", lambda planned: pytest.fail("it was tried"))
    told = plan(discs, model="unet")
    assert told.timing is None and "this machine has 0.1 GB" in told.untimed


def test_a_run_is_built_as_it_was_told(discs, tmp_path):
    told = plan(discs, model="unet", set=TINY, untimed=True)
    run = train(discs, model="unet", set=TINY, epochs=1, out=tmp_path / "run")
    stored = Segmenter.load(run.folder).network.state_dict()
    assert {name: t.shape for name, t in stored.items()} == {
        n: t.shape for n, t in told.planned.network.state_dict().items()
    }
