"""What chooses the epoch, how often it is looked at, and a length in steps: through training, resume, figures and pages."""

import json
import math

import pytest

import ulna.training.single as room
from tests.training.tiny import TINY, rows_of
from ulna.cli.tables import show
from ulna.errors import UsageError
from ulna.evaluation.origins import of_run
from ulna.planning.length import in_epochs, resolve_length
from ulna.recipe import Recipe, Training, from_yaml, set_value
from ulna.study.publishing import _curve
from ulna.system.device import Device
from ulna.system.files import read_tensors
from ulna.training.checkpoint import Progress, load_checkpoint
from ulna.training.loop import Loop
from ulna.training.state import State, learning_rate
from ulna.training.train import train

CPU, GPU = Device("cpu"), Device("cuda", 80e9)
# a validation after the other; Dice and IoU of means over cases need not agree
DICE, IOU = (0.5, 0.9, 0.6, 0.7), (0.4, 0.5, 0.6, 0.3)


@pytest.fixture
def scripted(monkeypatch):
    """Validations that give DICE and IOU in turn, counted."""
    seen = []

    def validate(loop):
        seen.append(loop.state.epoch)
        return {"dice": DICE[(len(seen) - 1) % 4], "iou": IOU[(len(seen) - 1) % 4]}

    monkeypatch.setattr(Loop, "validate", validate)
    return seen


def values(folder, name):
    return [row[name] for row in rows_of(folder)]


@pytest.mark.parametrize(("monitor", "best"), [("dice", 2), ("iou", 3)])
def test_the_best_epoch_is_that_of_what_is_monitored(discs, tmp_path, scripted, monitor, best, capsys):
    settings = (*TINY, f"training.monitor={monitor}")
    run = train(discs, model="unet", out=tmp_path / "run", epochs=4, set=settings)
    assert run.summary["best_epoch"] == best and run.summary["monitor"] == monitor
    assert (run.summary["val_dice"], run.summary["val_iou"]) == (DICE[best - 1], IOU[best - 1])
    assert read_tensors(run.folder / "weights.safetensors").state["epoch"] == best
    said = {"dice": "best validation Dice 0.9000 in epoch 2", "iou": "best validation IoU 0.6000 in epoch 3"}[monitor]
    assert said in (run.folder / "log.txt").read_text()
    show("train", run)
    shown = " ".join(capsys.readouterr().out.split())
    assert {"dice": "validation Dice 0.9000;", "iou": "validation IoU 0.6000 (Dice 0.6000);"}[monitor] in shown
    facts = dict(of_run(run.folder).facts)
    assert facts.get("Validation IoU") == (None if monitor == "dice" else "0.600")


def test_patience_counts_what_is_monitored(discs, tmp_path, scripted):
    settings = (*TINY, "training.monitor=iou", "training.patience=1")
    run = train(discs, model="unet", out=tmp_path / "run", epochs=9, set=settings)
    assert run.summary["epochs"] == 4
    assert "finished: no better validation IoU for 1 epoch;" in (run.folder / "log.txt").read_text()


def test_only_every_nth_epoch_is_validated_and_the_last(discs, tmp_path, scripted):
    run = train(discs, model="unet", out=tmp_path / "run", epochs=5, set=(*TINY, "training.validate_every=2"))
    assert values(run.folder, "val_dice") == ["", "0.5", "", "0.9", "0.6"]
    assert values(run.folder, "val_iou") == ["", "0.4", "", "0.5", "0.6"]
    assert run.summary["best_epoch"] == 4
    assert _curve(run.folder / "metrics.csv") == [(2, 0.5), (4, 0.9), (5, 0.6)]
    log = (run.folder / "log.txt").read_text()
    assert "epoch 1  loss" in log and "not validated" in log and "epoch 5, the last one: val Dice 0.6000" in log
    assert "best Dice 0.900, epoch 4" in {chart.said for chart in of_run(run.folder).charts}


@pytest.mark.slow
def test_a_training_too_short_for_a_validation_has_one(discs, tmp_path):
    run = train(discs, model="unet", out=tmp_path / "run", epochs=2, set=(*TINY, "training.validate_every=10"))
    assert [bool(value) for value in values(run.folder, "val_dice")] == [False, True]
    assert run.summary["best_epoch"] == 2 and (run.folder / "weights.safetensors").exists()


def test_a_training_that_its_time_ends_has_a_validation(discs, tmp_path):
    settings = (*TINY, "training.validate_every=1000")
    run = train(discs, model="unet", out=tmp_path / "run", epochs=500, max_hours=1 / 3600, set=settings)
    assert values(run.folder, "val_dice")[-1] and run.summary["epochs"] < 500


@pytest.mark.slow
def test_patience_counts_validations(discs, tmp_path, scripted):
    settings = (*TINY, "training.validate_every=2", "training.patience=2")
    run = train(discs, model="unet", out=tmp_path / "run", epochs=50, set=settings)
    assert run.summary["epochs"] == 8 and run.summary["best_epoch"] == 4
    assert "no better validation Dice for 2 validations" in (run.folder / "log.txt").read_text()


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_stopped_training_goes_on_exactly_between_validations_and_within_its_steps(discs, tmp_path, monkeypatch):
    settings = (*TINY, "training.validate_every=2", "training.monitor=iou", "training.steps=18")
    whole = train(discs, model="unet", out=tmp_path / "whole", set=settings)
    assert len(rows_of(whole.folder)) == 5  # four of four steps and one of two
    record = room.record_epoch

    def killed_after_three(folder, state, *rest):
        record(folder, state, *rest)
        if state.epoch == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "record_epoch", killed_after_three)
        train(discs, model="unet", out=tmp_path / "part", set=settings)
    train(discs, out=tmp_path / "part", resume=True)
    a, b = load_checkpoint(whole.folder / "checkpoints"), load_checkpoint(tmp_path / "part" / "checkpoints")
    assert all(a.tensors[name].equal(b.tensors[name]) for name in a.tensors)
    assert (whole.folder / "metrics.csv").read_text() == (tmp_path / "part" / "metrics.csv").read_text()


def test_a_length_in_steps_is_kept_to_the_step(discs, tmp_path, monkeypatch):
    taken = []
    step = Loop._step
    monkeypatch.setattr(Loop, "_step", lambda loop, *rest: taken.append(loop.state.epoch) or step(loop, *rest))
    run = train(discs, model="unet", out=tmp_path / "run", set=(*TINY, "training.steps=10"))
    assert taken == [0] * 4 + [1] * 4 + [2] * 2
    stored = from_yaml(Recipe, run.folder / "recipe.yaml").training
    assert (stored.steps, stored.epochs, stored.steps_per_epoch) == (10, 3, 4)
    assert run.summary["limits"]["steps"] == 10
    again = train(discs, recipe=run.folder / "recipe.yaml", out=tmp_path / "again")
    assert (again.folder / "metrics.csv").read_text() == (run.folder / "metrics.csv").read_text()
    longer = train(discs, out=run.folder, resume=True, epochs=4)
    assert longer.summary["epochs"] == 4 and taken[-4:] == [3] * 4


def test_the_last_steps_of_a_length_are_accumulated_into_an_update(discs, tmp_path, monkeypatch):
    updates = []
    from ulna.training.step import Step

    call = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda s, *a, update: updates.append(update) or call(s, *a, update=update))
    train(discs, model="unet", out=tmp_path / "run", set=(*TINY, "training.steps=6", "training.accumulate=3"))
    assert updates == [False, False, True, True, False, True]  # an epoch of four steps, and one of two


def length(*changes, device=CPU, cases=50, batch=2):
    recipe = Recipe()
    for change in changes:
        recipe = set_value(recipe, f"training.{change}")
    resolved, said = resolve_length(recipe, device)
    training = in_epochs(resolved.training, cases, batch)
    return (training.epochs, training.steps_per_epoch, training.steps), said


def test_steps_epochs_and_budgets_together():
    assert length("steps=1000")[0] == (40, 25, 1000)
    assert length("steps=1010")[0] == (41, 25, 1010)
    assert length("steps=1000", "epochs=7")[0] == (7, 25, 1000), "what ends first"
    assert length("steps=1000", "epochs=70")[0] == (40, 25, 1000)
    assert length("steps=1000", device=GPU)[0] == (40, 25, 1000), "a GPU adds no budget to a length that is stated"
    assert length("steps=1000", "budget=standard")[0] == (4, 250, 1000)
    assert length("steps=1000", "samples_per_epoch=99", batch=10)[0] == (100, 10, 1000)
    assert length("steps=1000")[1].startswith("1,000 steps, in epochs of every training case once")
    assert length("epochs=5")[0] == (5, None, None)
    said = length("epochs=5", "validate_every=3", "monitor=iou", "patience=4")[1]
    assert said.endswith("4 validations, one every 3 epochs, without a better IoU on whole validation images end it")


def test_the_rate_falls_over_the_steps():
    """Against the share of all steps that are done, a step at a time."""
    recipe = Recipe(training=Training(steps=10, steps_per_epoch=4, epochs=3), schedule={"warmup_epochs": 0})
    state = State()
    for step in range(10):
        state.epoch = step // 4
        rate = 0.5 * (1 + math.cos(math.pi * step / 10)) * recipe.optimizer.lr
        assert learning_rate(recipe, state, step % 4 / 4) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.monitor=hd95", "training.monitor"),
        ("training.validate_every=0", "training.validate_every"),
        ("training.steps=0", "training.steps"),
        ("training.split=80/30", "training.split: 80/30 adds up to 110"),
        ("training.folds=1", "training.folds"),
    ],
)
def test_wrong_settings_are_named(discs, tmp_path, setting, said):
    with pytest.raises(UsageError, match=said):
        train(discs, model="unet", out=tmp_path / "run", set=[*TINY, setting])
    assert not (tmp_path / "run").exists()


def test_checkpoints_and_recipes_of_earlier_versions_mean_what_they_meant(discs, tmp_path):
    run = train(discs, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    state = load_checkpoint(run.folder / "checkpoints").state["loop"]
    before = {name: value for name, value in state.items() if name != "monitor"}
    assert Progress.model_validate(before).monitor == "dice"
    recipe = run.folder / "recipe.yaml"
    new = ("monitor", "validate_every", "steps:", "split:", "folds:")
    kept = [line for line in recipe.read_text().splitlines() if not line.strip().startswith(new)]
    assert len(kept) == len(recipe.read_text().splitlines()) - 6  # folds of the training and of the study
    recipe.write_text("\n".join(kept))
    assert train(discs, out=run.folder, resume=True, epochs=2).summary["monitor"] == "dice"


@pytest.mark.parametrize("best", [1, 5])
def test_a_checkpoint_whose_best_epoch_was_not_validated_is_refused(discs, tmp_path, best):
    run = train(discs, model="unet", out=tmp_path / "run", epochs=2, set=(*TINY, "training.validate_every=2"))
    state = load_checkpoint(run.folder / "checkpoints").state["loop"]
    assert json.loads(json.dumps(state))["rows"][0]["val_dice"] is None
    Progress.model_validate(state)
    with pytest.raises(ValueError, match="is none of those that were validated"):
        Progress.model_validate({**state, "best_epoch": best - 1})
