"""Sizes, crops, windows and percentiles from the recipe to the mask, through every verb that reads a run."""

import json

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.discs import draw_discs
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.evaluation.evaluate import evaluate
from ulna.explaining.explain import explain
from ulna.inference.predict import predict
from ulna.inference.segmenter import Segmenter
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.training.estimate import plan
from ulna.training.train import train

SETTINGS = ("planning.size=[40, 56]", "planning.crop=[32, 40]", "planning.window=[0, 200]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_discs(tmp_path_factory.mktemp("fixed"), 8, seed=0, size=(44, 63), smallest=4, contrast=100,
                      noise=10, foreground=1, train=5, val=2)  # fmt: skip


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, model="unet", out=tmp_path_factory.mktemp("runs") / "run", epochs=1, set=(*TINY, *SETTINGS))


def test_the_run_holds_what_was_asked_for_and_samples_are_no_larger(run):
    stored = from_yaml(Plan, run.folder / "plan.yaml")
    assert (stored.size, stored.crop, stored.patch) == ((40, 56), (32, 40), (32, 40))
    assert [(n.kind, n.clip) for n in stored.normalization] == [("rescale", (0, 200))]
    assert from_yaml(Recipe, run.folder / "recipe.yaml").planning.window == (0, 200)
    assert {"size", "crop", "window"} <= stored.reasons.keys()


def test_masks_lie_on_their_images_and_are_scored_there(run, data, tmp_path):
    predict(run.folder, data, out=tmp_path / "masks")
    for image in (data / "images").iterdir():
        mask = np.asarray(Image.open(tmp_path / "masks" / image.name))
        assert mask.shape == (44, 63)
        kept = np.zeros(mask.shape, bool)
        rows, columns = (
            [4 <= (i + 0.5) * 40 / 44 < 36 for i in range(44)],
            [8 <= (j + 0.5) * 56 / 63 < 48 for j in range(63)],
        )
        kept[np.ix_(rows, columns)] = True
        assert not mask[~kept].any()
    scores = evaluate(tmp_path / "masks", data / "labels", out=tmp_path / "scores")
    assert scores is not None and (tmp_path / "scores" / "summary.json").exists()


def test_a_run_goes_on_and_is_explained(run, data, tmp_path):
    before = json.loads((run.folder / "summary.json").read_text())
    again = train(data, out=run.folder, resume=True, epochs=2)
    assert again.summary["epochs"] == 2 or again.summary != before
    made = explain(run.folder, data / "images" / "disc0.png", out=tmp_path / "why")
    assert {"overlay.png", "saliency.png"} <= set(made.files)


def test_a_plan_from_a_file_trains_alike(run, data, tmp_path):
    told = plan(data, model="unet", set=(*TINY, *SETTINGS), untimed=True, out=tmp_path / "plan.yaml")
    other = train(data, plan=tmp_path / "plan.yaml", out=tmp_path / "run", epochs=1)
    assert from_yaml(Plan, other.folder / "plan.yaml").replaced(recipe=None) == told.plan.replaced(recipe=None)
    assert Segmenter.load(other.folder).plan.crop == (32, 40)
    with pytest.raises(UsageError, match=r"planning.crop is \[16, 16\], in the plan it is \[32, 40\]"):
        train(data, plan=tmp_path / "plan.yaml", out=tmp_path / "no", set=("planning.crop=[16, 16]",))


@pytest.mark.parametrize("normalization", ["zscore", "rescale"])
def test_a_percentile_is_of_all_values_of_the_training_cases(data, tmp_path, normalization):
    changes = (*TINY, "planning.cap=95", f"planning.normalization={normalization}", "planning.whitening=zca")
    made = plan(data, model="unet", untimed=True, out=tmp_path / "plan.yaml", set=changes)
    train_ids = made.planned.split.train
    values = np.concatenate([np.asarray(Image.open(data / "images" / f"{one}.png")).ravel() for one in train_ids])
    bound = float(np.percentile(values, 95, method="inverted_cdf"))
    (how,) = made.normalization
    assert (how.clip, how.cap) == ((None, bound), 95)
    assert f"{bound:g}: percentile 95 of all values of the 5 training cases" in made.reasons["cap"]
    assert how.kind != "rescale" or how.high == bound
    assert from_yaml(Plan, tmp_path / "plan.yaml").normalization == made.normalization
    trained = train(data, plan=tmp_path / "plan.yaml", out=tmp_path / "run", epochs=1)
    assert ulna.load(trained.folder).plan.normalization == made.normalization


def test_a_deformation_that_has_no_strength_is_refused(data):
    with pytest.raises(UsageError, match=r"augmentation.elastic_probability=0.3, but augmentation.elastic"):
        plan(data, set=("augmentation.elastic_probability=0.3",))


def test_the_command_says_in_one_line_what_is_wrong(data, capsys):
    assert cli.run(["plan", str(data), "--set", "planning.window=[9, 9]"]) == 2
    assert "planning.window: [9.0, 9.0] has no width; give the lowest value first" in capsys.readouterr().err
