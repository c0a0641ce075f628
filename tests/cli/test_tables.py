"""What verbs print: paths and commands whole, a dash for what is not defined."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ulna.cli.printing import mean_and_interval
from ulna.cli.tables import show
from ulna.data.quality.check import Report
from ulna.data.volume import Volume
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.inference.predict import Predictions
from ulna.recipe import Labels
from ulna.training.train import Run

FOLDER = Path("a-folder-with-a-long-name", "and another one", "that no line of sixty letters holds")


def evaluation():
    scores, mask = Scores(Labels()), np.eye(8, dtype=np.uint8)
    scores.add(Pair("a", mask, mask, Volume(mask[None], (1.0, 1.0))))
    return scores.evaluation()


def run():
    facts = {"model": "unet", "best_epoch": 1, "epochs": 2, "val_dice": 0.5, "wall_seconds": 3, "peak_memory_mb": 4}
    return Run(FOLDER, {**facts, "evaluated_on": "test", "test": evaluation().summary})


RESULTS = {
    "check": lambda: Report(FOLDER, labels=Labels()),
    "demo": lambda: SimpleNamespace(report=FOLDER, evaluation=evaluation()),
    "predict": lambda: Predictions(FOLDER, []),
    "train": run,
}


@pytest.mark.parametrize("verb", RESULTS)
def test_paths_and_commands_are_not_broken(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    show(verb, RESULTS[verb]())
    lines = capsys.readouterr().out.splitlines()
    assert any(str(FOLDER) in line for line in lines)
    assert all(f"'{FOLDER}'" in line for line in lines if line.startswith("next: "))


def test_what_is_not_defined_is_a_dash():
    assert mean_and_interval({"mean": None, "low": None, "high": None}) == "-"
    assert mean_and_interval({"mean": float("nan"), "low": float("nan"), "high": float("nan")}) == "-"
    assert mean_and_interval({"mean": 0.5, "low": float("nan"), "high": float("nan")}) == "0.500"
    assert mean_and_interval({"mean": 0.5, "low": 0.25, "high": 0.75}) == "0.500 \\[0.250, 0.750]"
