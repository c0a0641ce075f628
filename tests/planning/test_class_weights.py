"""Weights of classes that a recipe leaves to the data: counted from the training labels, kept as numbers, and said."""

import json

import numpy as np
import pytest

from tests.planning.test_plan import all_planned, data
from tests.training.tiny import TINY
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError
from ulna.losses import make_loss
from ulna.losses.weights import inverse_frequencies
from ulna.planning.class_weights import with_asked_weights
from ulna.recipe import Labels, Plan, Recipe, from_yaml, parse
from ulna.training.estimate import plan
from ulna.training.train import train

AUTO = "loss.options.weights=auto"


def test_weights_are_the_ratio_to_the_most_frequent_class_up_to_a_bound():
    assert inverse_frequencies([600, 300, 100], multilabel=False) == (1, 2, 6)
    assert inverse_frequencies([10, 300, 100], multilabel=False) == (20, 1, 3)  # 30 times as rare
    assert inverse_frequencies([9999, 1, 0], multilabel=False) == (1, 20, 20)
    assert inverse_frequencies([9999, 70, 30], multilabel=True) == (1, 2.33)  # one a map, without the background
    assert inverse_frequencies([100, 0], multilabel=True) == (20,)


def test_they_are_numbers_in_the_recipe_and_said_in_the_plan():
    found = all_planned(data(voxels=(900, 100)), AUTO)
    assert found.recipe.loss.options["weights"] == [1.0, 9.0]
    assert found.plan.reasons["class_weights"].startswith(
        "1 for background (0.9 of the voxels), 9 for foreground (0.1 of the voxels)"
    )
    overlapping = Labels(names=("a", "b"), multilabel=True)
    found = all_planned(data(voxels=(900, 100, 50)), AUTO, "loss.kind=focal", labels=overlapping)
    assert found.recipe.loss.options["weights"] == [1.0, 2.0]
    for change in ("loss.options.weights=[1,2]", "loss.options={}"):
        assert "class_weights" not in all_planned(data(voxels=(900, 100)), change).plan.reasons


def test_without_counts_or_in_another_loss_they_are_refused():
    with pytest.raises(UsageError, match="does not hold how many voxels each class has; make it anew"):
        all_planned(data(), AUTO)
    with pytest.raises(UsageError, match="weights"):
        all_planned(data(voxels=(900, 100)), AUTO, "loss.kind=dice")
    with pytest.raises(UsageError, match="it is auto, or a list of one number a class"):
        make_loss("focal", options={"weights": "automatic"}, multilabel=False)


@pytest.mark.slow
def test_a_training_keeps_and_repeats_them(discs, tmp_path):
    options = {"model": "unet", "epochs": 1, "set": (*TINY, AUTO)}
    run = train(discs, out=tmp_path / "a", **options)
    weights = from_yaml(Recipe, run.folder / "recipe.yaml").loss.options["weights"]
    made = from_yaml(Plan, run.folder / "plan.yaml")
    dataset = Dataset.from_folder(discs)
    counts = np.zeros(2)
    for case in dataset.cases_of(json.loads((run.folder / "splits.json").read_text())["train"]):
        counts += np.bincount((case.read_labels().array > 0).ravel(), minlength=2)
    assert made.fingerprint.voxels == tuple(counts.astype(int))
    assert weights == [1.0, pytest.approx(min(20, counts[0] / counts[1]), rel=5e-3)] and weights[1] > 2
    train(discs, out=run.folder, resume=True, **{**options, "epochs": 2})  # the same command, "auto" again
    again = train(discs, out=tmp_path / "b", recipe=run.folder / "recipe.yaml", epochs=1)
    assert from_yaml(Recipe, again.folder / "recipe.yaml").loss.options["weights"] == weights
    # a plan of `ulna plan`, and of another ulna without the counts
    told = plan(discs, model="unet", set=[*TINY, AUTO], untimed=True, out=tmp_path / "plan.yaml")
    assert told.planned.recipe.loss.options["weights"] == weights
    by_plan = train(discs, out=tmp_path / "c", plan=tmp_path / "plan.yaml", epochs=1)
    assert from_yaml(Recipe, by_plan.folder / "recipe.yaml").loss.options["weights"] == weights


def test_each_training_of_a_study_counts_for_itself():
    """The numbers of the first fold, which hold cases that the others keep aside, are not passed on."""
    asked = parse(Recipe, {"loss": {"kind": "cross_entropy", "options": {"weights": "auto"}}}, source="")
    planned = asked.replaced(loss=asked.loss.replaced(options={"weights": [1.0, 7.0]}))
    assert with_asked_weights(planned, asked).loss == asked.loss
    stated = asked.replaced(loss=asked.loss.replaced(options={"weights": [1.0, 3.0]}))
    assert with_asked_weights(planned, stated) is planned
