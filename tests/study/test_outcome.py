"""What a study concludes from its rows: one mean in the table, in the ranks and in the drawing."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ulna.recipe import Recipe
from ulna.study import drawings, jobs
from ulna.study.outcome import RIGHTLY_EMPTY, analyse
from ulna.study.scores import MEASURES, Row

NAN = float("nan")
SUMMARY = {
    "evaluated_on": "test", "split_hash": "0", "epochs": 1, "best_epoch": 1, "training_seconds": 1.0,
    "peak_memory_mb": 1.0, "device": "cpu", "precision": "fp32", "threads": 1, "versions": {},
}  # fmt: skip


def job(model, fold=None, pooled=0.5):
    training = SimpleNamespace(max_hours=None, most_patience=1, most_epochs=1, validate_every=1)
    test = {"unit": "px", "pooled": {"a": {"iou": pooled}}}
    return SimpleNamespace(
        name=f"{model} {fold}", seed=0, fold=fold, variant=SimpleNamespace(name=model),
        recipe=SimpleNamespace(training=training), summary=lambda: {**SUMMARY, "test": test},
    )  # fmt: skip


def rows(model, values):
    return [Row(model, 0, None, f"c{n}", "", "mean", dict.fromkeys(MEASURES, value)) for n, value in enumerate(values)]


def concluded(scores, trained, beside=None):
    every = [row for model, values in scores.items() for row in rows(model, values)]
    return analyse(
        every, trained, None, margin=0.01, unit="case", footnotes=(), data="here", command="ulna compare",
        beside=beside or {},
    )  # fmt: skip


# a finds more where there is something; b leaves the empty case rightly empty: 1 in pairs, and not in the table
SCORES = {"a": [0.8, 0.8, 0.0], "b": [0.5, 0.5, NAN], "c": [0.1, 0.1, 0.0]}


def test_ranks_follow_the_means_of_the_table():
    there = {"a": 0.9, "b": 0.5, "c": 0.7}
    outcome = concluded(SCORES, [job(model) for model in "abc"], {"there": there})
    means = {model: outcome.described[model]["dice"].mean for model in "abc"}
    assert means == pytest.approx({"a": 1.6 / 3, "b": 0.5, "c": 0.2 / 3})
    assert outcome.scores.mean(axis=1)[1] > outcome.scores.mean(axis=1)[0]  # in pairs b comes first
    assert outcome.ranking.mean_ranks == pytest.approx((1, 2.5, 2.5))
    assert RIGHTLY_EMPTY.format(unit="case") in outcome.footnotes


def test_without_rightly_empty_cases_nothing_is_said_of_them():
    outcome = concluded({"a": [0.8, 0.6], "b": [0.5, 0.5]}, [job("a"), job("b")])
    assert not [note for note in outcome.footnotes if "rightly" in note]


def test_a_network_without_a_score_is_not_ranked():
    scores = SCORES | {"b": [NAN] * 3}
    outcome = concluded(scores, [job(model) for model in "abc"], {"there": dict.fromkeys("abc", 0.5)})
    assert outcome.ranking is None
    assert any("no ranking over data sets: b has no Dice" in note for note in outcome.footnotes)


def test_the_diamonds_are_the_means_of_the_table(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawings.figures, "write_figure", lambda figure, path: drawn.append(figure))
    drawings.boxes(["a", "b"], np.array([[0.8, 0.0], [0.5, 1.0]]), [0.4, 0.5], "case", tmp_path / "x.png")
    (axes,) = drawn[0].axes
    (diamonds,) = [line for line in axes.lines if line.get_marker() == "D"]
    assert list(diamonds.get_ydata()) == [0.4, 0.5]
    assert "mean of the table" in axes.get_xlabel()


def test_a_fold_without_a_structure_leaves_the_pooled_iou_to_the_others():
    trained = [job("a", 0, 0.4), job("a", 1, None), job("a", 2, 0.8), job("b", 0, None)]
    outcome = concluded({"a": [0.8, 0.6], "b": [0.5, 0.5]}, trained)
    assert outcome.pooled_iou["a"] == pytest.approx(0.6)
    outcome = replace(outcome, costs=SimpleNamespace(to_json=dict))
    assert outcome.to_json()["pooled_iou"] == {"a": pytest.approx(0.6), "b": None}


@pytest.mark.parametrize(("dice", "said"), [(0.5, "Dice 0.5000 on test"), (None, "no structure on test")])
def test_a_training_tells_its_dice_or_that_nothing_was_to_find(monkeypatch, caplog, tmp_path, dice, said):
    @dataclass
    class Done:
        name: str = "a seed 0"
        network: str = "a"
        begun: bool = False
        external: bool = False
        recipe: Recipe = field(default_factory=Recipe)
        run: Path = tmp_path / "run"
        done: bool = False

        def summary(self):
            return {"evaluated_on": "test", "test": {"mean": {"dice": {"mean": dice}}}}

    one = Done()

    def begin(*_):
        one.done = True
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.setattr("ulna.executors.local._begin", begin)
    with caplog.at_level("INFO"):
        assert jobs.run_jobs([one], tmp_path, resume_command="") == {}
    assert caplog.text.endswith(f"a seed 0: {said}\n")  # and no time to go
