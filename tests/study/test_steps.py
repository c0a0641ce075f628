"""A hundred steps of a training in a process of its own."""

import pytest

import ulna
from tests import miniatures
from tests.training.tiny import TINY
from ulna.inference.segmenter import read_split
from ulna.planning.plan import planned_by
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.study.steps import MANY, hundred_steps
from ulna.training.duration import time_steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = miniatures.arrays(folder / "data", size=(32, 32), channels=1)
    return ulna.train(data, model="unet", out=folder / "run", epochs=1, set=TINY).folder


@pytest.mark.slow
def test_they_are_made_and_measured(run):
    found = hundred_steps(run)
    assert 0 < found.made <= MANY  # fewer where the machine is busy
    assert found.seconds > 0
    assert found.mb > 50  # torch alone takes more


@pytest.mark.slow
def test_where_it_fails_there_is_nothing(run, tmp_path):
    assert hundred_steps(tmp_path) is None


def test_slow_steps_are_fewer(run):
    recipe, plan = from_yaml(Recipe, run / "recipe.yaml"), from_yaml(Plan, run / "plan.yaml")
    planned = planned_by(plan, recipe, read_split(run))
    assert time_steps(planned, most=5, longest_s=60)[1] == 5
    assert time_steps(planned, most=100, longest_s=0)[1] == 1


@pytest.mark.slow
def test_a_study_beside_a_table_with_times_measures_them(tmp_path):
    data = miniatures.decathlon(tmp_path / "Task06_Lung", size=(36, 34, 33), names=["cancer"])
    study = ulna.compare(data, models="marimont/unet", out=tmp_path / "study", epochs=1, set=[
        "planning.patch=[32, 32, 32]", "planning.batch=1", "architecture.channels=[2, 2, 2, 2, 2, 2]",
    ])  # fmt: skip
    for cost in study.outcome.costs.models.values():
        assert cost.image_s > 0
        assert cost.steps_s > 0
        assert cost.steps_mb > 50
    text = (study.folder / "table.md").read_text()
    assert "s / image" in text
    assert "MB of 100 steps, published | MB of 100 steps, here" in text
    assert "| 64.1 ± 27.3 |" in text
    page = (study.folder / "report.html").read_text()
    assert "64.1 ± 27.3" in page
