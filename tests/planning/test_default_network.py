"""The network where nobody names one: by the images, with the evidence, which is that of the studies."""

import csv
import re
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

import ulna
from tests.training.tiny import TINY
from ulna.demonstration import make_phantom
from ulna.planning.default_network import IMAGES, VOLUMES, by_size, choose_network
from ulna.recipe import Plan, from_yaml
from ulna.training.estimate import plan

STUDIES = Path(__file__).parents[2] / "docs" / "studies"


@pytest.mark.parametrize(
    ("sizes", "wanted", "model"),
    [
        ([(96, 96)], None, "unet"),
        ([(256, 256)], None, "unet"),
        ([(520, 700)], None, "nnunet"),
        ([(96, 96), (2000, 2000), (90, 90)], None, "unet"),
        ([(35, 51, 35)], None, "nnunet"),
        ([(128, 128, 1)], None, "unet"),
        ([(128, 128, 3)], None, "unet"),
        ([(128, 128, 40)], 2, "unet"),
        ([(40, 512, 512)], 2, "nnunet"),
    ],
)
def test_dimensions_and_size_decide(sizes, wanted, model):
    found = by_size(sizes, wanted)
    assert found.model == model and found.why.startswith(model)
    assert "docs/studies/" in found.why and "were not compared" in found.why


def dice(study, model):
    """Mean Dice of a network, over its seeds and cases, as the study's table has it."""
    scores = {}
    with (STUDIES / study / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"] == model:
                scores.setdefault((row["seed"], row["case"]), []).append(float(row["dice"]))
    return 100 * mean(mean(of_case) for of_case in scores.values())


def test_the_figures_are_those_of_the_studies():
    nnunet, unet, unetpp, implicit = (dice("hippocampus", m) for m in ("nnunet", "unet", "unetpp", "implicit_unet"))
    told = f"{nnunet - unet:.1f} points of Dice ahead of unet and {nnunet - unetpp:.1f} ahead of unetpp"
    assert told in VOLUMES and f"another {implicit - nnunet:.1f} ahead" in VOLUMES
    unet, *others = (dice("nuclei", f"carvalho/{m}_nuclei") for m in ("unet", "unetpp"))
    others.append(dice("nuclei", "zhou/unetpp_ds"))
    assert (
        f"{unet - max(others):.1f} to {unet - min(others):.1f} points of Dice ahead of two builds of UNet++" in IMAGES
    )
    assert abs(unet - dice("nuclei", "nnunet")) < 1


def test_what_is_named_is_taken_and_no_image_is_read(discs, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("model: fcn\n")
    nowhere = tmp_path / "absent"
    assert choose_network(nowhere, model="fcn", recipe=None) == ("fcn", "")
    assert choose_network(nowhere, model=None, recipe=recipe) == (None, "")
    recipe.write_text("optimizer: {lr: 0.1}\n")
    assert choose_network(discs, model=None, recipe=recipe).model == "unet"


def test_volumes_and_their_slices(tmp_path):
    data = make_phantom(tmp_path / "data", count=3, size=(16, 20, 12))
    assert choose_network(data, model=None, recipe=None).model == "nnunet"
    assert choose_network(data, model=None, recipe=None, set="planning.spatial_dims=2").model == "unet"


@pytest.mark.parametrize("said", ["3", "[2]", "{spatial_dims: two}"])
def test_a_section_that_is_none_is_told_with_the_recipe(discs, tmp_path, said):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"planning: {said}\n")
    with pytest.raises(ulna.UsageError, match="planning"):
        ulna.train(discs, recipe=recipe, out=tmp_path / "run")


def test_what_cannot_be_read_is_left_to_the_check(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for number in range(4):
            (tmp_path / part / f"c{number}.png").write_bytes(b"no image")
    assert choose_network(tmp_path, model=None, recipe=None) == ("unet", "")
    with pytest.raises(ulna.UsageError, match=r"c0\.png"):
        ulna.train(tmp_path, out=tmp_path / "run")


def test_the_plan_of_a_run_says_why(discs, tmp_path):
    run = ulna.train(discs, out=tmp_path / "run", epochs=1, set=TINY)
    assert run.summary["model"] == "unet"
    assert from_yaml(Plan, run.folder / "plan.yaml").reasons["model"].startswith("unet, the default for images")
    assert "network: unet, the default for images" in (run.folder / "log.txt").read_text()
    assert plan(discs, untimed=True).reasons["model"].startswith("unet, the default")
    assert "model" not in plan(discs, model="fcn", untimed=True).reasons


def test_a_check_and_an_estimate_are_short_to_read(discs):
    assert repr(ulna.check(discs)) == f"{discs}: 8 cases, no problems"
    said = repr(plan(discs, model="fcn", untimed=True))
    assert re.fullmatch(
        rf"Estimate for fcn on {discs}: [\d,]+ parameters, 2D, patch 32x40, batch \d; memory about .*", said
    )


def test_a_result_a_run_and_an_evaluation_are_short_to_read(discs, tmp_path):
    run = ulna.train(discs, out=tmp_path / "run", epochs=1, set=TINY)
    found = run.summary["test"]["mean"]["dice"]["mean"]
    assert repr(run) == f"Run {run.folder}: unet on {discs.name}: Dice {found:.3f} over 1 test case, best epoch 1 of 1"
    segment = ulna.load(run.folder)
    assert repr(segment) == "Segmenter unet: foreground in 2D, 1 channel, patch 32x40"
    result = segment(discs / "images" / "disc0.png")
    share = np.mean(result.mask == 1)
    assert str(result) == f"Result disc0.png: mask of 32x40, foreground {share:.2%}"
    masks = ulna.predict(run.folder, discs, out=tmp_path / "masks", split="test")
    assert repr(masks) == f"Predictions {tmp_path / 'masks'}: 1 mask"
    scores = ulna.evaluate(masks.folder, discs)
    assert repr(scores).startswith(f"Evaluation: Dice {found:.3f} over 1 case")
