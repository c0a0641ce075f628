"""Trainings by a budget: what a run stores, how it goes on, and what is said before it begins."""

import pytest

from tests.training.tiny import TINY, rows_of
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.planning.length import BUDGETS, Budget
from ulna.recipe import Recipe, from_yaml
from ulna.study.compare import compare
from ulna.training.train import train

FLAGS = {"model": "unet", "set": TINY}


@pytest.fixture
def short(monkeypatch):
    """Budgets that take a second."""
    for name, budget in {"quick": Budget(2, 3, 9, None), "full": Budget(1, 2, 9, None)}.items():
        monkeypatch.setitem(BUDGETS, name, budget)


@pytest.mark.slow
def test_a_run_stores_its_length_in_numbers_and_goes_on_by_them(discs, tmp_path, short):
    run = train(discs, out=tmp_path / "run", budget="quick", **FLAGS)
    stored = from_yaml(Recipe, run.folder / "recipe.yaml").training
    assert (stored.budget, stored.epochs, stored.steps_per_epoch, stored.patience) == (None, 2, 3, 9)
    assert len(rows_of(run.folder)) == 2
    assert "length: quick, 2 epochs of 3 steps" in (run.folder / "log.txt").read_text()
    with pytest.raises(UsageError, match=r"training\.epochs is 2 there, 1 now"):
        train(discs, out=run.folder, budget="full", resume=True)
    train(discs, out=run.folder, resume=True, epochs=3)
    assert len(rows_of(run.folder)) == 3
    again = train(discs, out=tmp_path / "again", recipe=run.folder / "recipe.yaml", epochs=3)
    assert from_yaml(Recipe, again.folder / "recipe.yaml").training == stored.replaced(epochs=3)


def test_epochs_take_the_place_of_those_of_a_budget(discs, tmp_path, short):
    run = train(discs, out=tmp_path / "run", budget="quick", epochs=1, **FLAGS)
    assert len(rows_of(run.folder)) == 1
    assert from_yaml(Recipe, run.folder / "recipe.yaml").training.steps_per_epoch == 3


def test_full_on_a_cpu_says_the_hours(discs, tmp_path, short, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = train(discs, out=tmp_path / "run", budget="full", **FLAGS)
    assert (
        "note: --budget full on a CPU takes about 0.0 h (0.0 days) on this machine"
        in (run.folder / "log.txt").read_text()
    )
    assert (
        "on a CPU takes"
        not in (train(discs, out=tmp_path / "b", budget="quick", **FLAGS).folder / "log.txt").read_text()
    )


def test_a_wrong_budget_costs_no_reading_of_data(discs, tmp_path):
    with pytest.raises(UsageError, match="no budget named 'fulll'; did you mean 'full'"):
        train(discs, out=tmp_path / "run", budget="fulll", **FLAGS)
    with pytest.raises(UsageError, match="no budget named 'hour'"):
        compare(discs, models="unet", out=tmp_path / "study", budget="hour")
    with pytest.raises(UsageError, match="--budget quick: says the length of a study alone"):
        compare(discs, models="unet", out=tmp_path / "study", budget="quick", max_hours=1)


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_the_help_names_the_budgets(verb, capsys):
    assert cli.run([verb, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--budget quick|standard|full" in words
