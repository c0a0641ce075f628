"""Classes that a recipe declares, through every verb: they mean the same as classes.json beside the data."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.test_merged_classes import KIDNEY, declare, drawn
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.data.layout.dataset import RECIPE, Dataset
from ulna.data.layout.declared import recipe_classes
from ulna.errors import DataError, UsageError
from ulna.planning.choosing import check_words
from ulna.recipe import Plan, Recipe, from_yaml, parse, set_value, stated, to_yaml

MERGED = "classes={tumour: [1, 3]}"


def test_a_recipe_declares_what_classes_json_would(tmp_path):
    """Train, go on, predict, evaluate, explain: the same weights and scores, to the bit."""
    (tmp_path / "recipe.yaml").write_text("classes: {tumour: [1, 3]}\n")
    with_file = declare(drawn(tmp_path / "declared", inner=3), {"tumour": [1, 3]})
    plain = drawn(tmp_path / "plain", inner=3)
    runs = [
        ulna.train(data, model="unet", out=tmp_path / name, epochs=2, set=TINY, recipe=recipe)
        for data, name, recipe in ((with_file, "a", None), (plain, "b", tmp_path / "recipe.yaml"))
    ]
    plans = [from_yaml(Plan, run.folder / "plan.yaml") for run in runs]
    assert plans[0].labels == plans[1].labels
    assert plans[1].labels.values == ((1, 3),)
    assert runs[0].summary["test"]["mean"] == runs[1].summary["test"]["mean"]
    longer = ulna.train(plain, out=tmp_path / "b", resume=True, epochs=3)
    assert longer.summary["epochs"] == 3
    ulna.predict(tmp_path / "b", plain, out=tmp_path / "masks", split="test")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "masks" / "c5.png")))) <= {0, 1}
    again = ulna.evaluate(tmp_path / "masks", plain)
    assert again.summary["mean"]["dice"] == longer.summary["test"]["mean"]["dice"]
    ulna.explain(tmp_path / "b", plain / "images" / "c5.png", out=tmp_path / "why")
    assert list((tmp_path / "why").iterdir())


@pytest.mark.slow
def test_overlapping_classes_of_a_recipe_are_channels_and_the_run_repeats_them(tmp_path):
    data = drawn(tmp_path / "data")
    recipe = Recipe(model="unet", classes=KIDNEY)
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    run = ulna.train(data, recipe=tmp_path / "r.yaml", out=tmp_path / "a", epochs=1, set=TINY)
    plan = from_yaml(Plan, run.folder / "plan.yaml")
    assert (plan.labels.foreground, plan.labels.multilabel) == (("kidney", "tumour"), True)
    again = ulna.train(
        data, recipe=run.folder / "recipe.yaml", plan=run.folder / "plan.yaml", out=tmp_path / "b", epochs=1
    )
    assert again.summary["test"]["mean"] == run.summary["test"]["mean"]


@pytest.mark.slow
def test_a_plan_file_brings_them_along_and_a_pruned_run_keeps_them(tmp_path):
    data = drawn(tmp_path / "data", inner=3)
    ulna.plan(data, model="unetpp", set=[*TINY, MERGED], out=tmp_path / "plan.yaml", untimed=True)
    run = ulna.train(data, plan=tmp_path / "plan.yaml", out=tmp_path / "run", epochs=1)
    assert [*run.summary["test"]["classes"]] == ["tumour"]
    ulna.prune(tmp_path / "run", data=data, level=1, out=tmp_path / "small")
    assert from_yaml(Plan, tmp_path / "small" / "plan.yaml").labels.values == ((1, 3),)


@pytest.mark.slow
def test_a_study_and_folds_take_them(tmp_path):
    data = drawn(tmp_path / "data", inner=3)
    (data / "splits.json").unlink()
    run = ulna.train(data, model="unet", out=tmp_path / "cv", folds=2, epochs=1, set=(*TINY, MERGED))
    assert run.summary["all"]["cases"] == 6
    assert [*run.summary["all"]["classes"]] == ["tumour"]
    study = ulna.compare(data, models="unet", out=tmp_path / "study", epochs=1, set=[*TINY, MERGED])
    (plan,) = study.folder.glob("runs/**/plan.yaml")
    assert from_yaml(Plan, plan).labels.foreground == ("tumour",)
    with pytest.raises(UsageError, match="classes: is one for all rows, it cannot be varied"):
        ulna.compare(data, models="unet", out=tmp_path / "s", vary=[f"{MERGED},{{t: [1]}}"], epochs=1)
    with pytest.raises(UsageError, match="the recipe of unet: tumour: there, tumor: now"):
        ulna.compare(data, models="unet", out=tmp_path / "study", epochs=1, set=[*TINY, "classes={tumor: [1, 3]}"])


def test_classes_json_must_say_the_same(tmp_path, capsys):
    data = declare(drawn(tmp_path / "data"), {"1": "organ", "2": "tumour"})
    for verb in ("plan", "train", "compare"):
        flags = ["--models" if verb == "compare" else "--model", "unet", "--set", f"classes={json.dumps(KIDNEY)}"]
        assert cli.run([verb, str(data), *flags, "--out", str(tmp_path / "out")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "classes.json: declares the classes background, organ, tumour, the recipe kidney (1, 2), tumour (2)" in said
        )
        assert '{"mode": "multilabel", "labels": {"kidney": [1, 2], "tumour": [2]}}' in said
        assert "--set classes=null" in said
        assert not (tmp_path / "out").exists()
    printed = re.search(r"write (\{.*?\}\}) into it", said)[1]
    declare(data, json.loads(printed))
    dataset = Dataset.from_folder(data).declaring(KIDNEY)
    assert (dataset.labels, dataset.declared_in) == (recipe_classes(KIDNEY), "classes.json")


def test_they_take_the_place_of_dataset_json_with_a_note(tmp_path):
    data = drawn(tmp_path / "data")
    for old, new in (("images", "imagesTr"), ("labels", "labelsTr")):
        (data / old).rename(data / new)
    told = {"labels": {"background": 0, "organ": 1, "tumour": 2}, "channel_names": {"0": "CT"}, "file_ending": ".png"}
    (data / "dataset.json").write_text(json.dumps(told))
    dataset = Dataset.from_folder(data).declaring(KIDNEY)
    assert dataset.declared_in == RECIPE
    assert (
        "the recipe names the classes kidney (1, 2), tumour (2), in place of the labels of dataset.json"
        in dataset.notes
    )
    assert Dataset.from_folder(data).declaring(None).labels.names == ("background", "organ", "tumour")


def test_values_that_are_absent_are_told_of_the_recipe(tmp_path):
    changes = ["classes={organ: [1, 2], cyst: [5, 6]}"]
    with pytest.raises(
        DataError, match=r"data: the recipe makes 'cyst' of the label values 5, 6, and none of them occurs"
    ):
        ulna.plan(drawn(tmp_path / "data"), model="unet", set=changes, untimed=True)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"t": [1], "u": [0]}, "classes (of the recipe): gives 'u' the value 0, which is background"),
        ({"labels": {"a": [1, 2], "b": [2, 3]}, "regions_class_order": [1, 2]}, "has regions that do not nest"),
        ({"mode": "exclusive", "labels": KIDNEY}, "exclude each other"),
        ({"t": "x"}, "has labels that name no values"),
        (["background"], "declares the background only"),
    ],
)
def test_nonsense_is_refused_before_data_are_read(classes, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        check_words(parse(Recipe, {"classes": classes}))


@pytest.mark.parametrize("classes", [["liver", "tumour"], {1: "liver", 2: "tumour"}, {"1": "liver", "2": "tumour"}])
def test_they_are_written_as_in_classes_json(classes, tmp_path):
    recipe = parse(Recipe, {"classes": classes})
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert parse(Recipe, stated(tmp_path / "r.yaml")) == recipe
    assert recipe_classes(recipe.classes).names == ("background", "liver", "tumour")
    assert set_value(recipe, "classes=null").classes is None


def test_a_value_in_no_class_says_where_to_add_it(tmp_path):
    with pytest.raises(
        DataError, match=r"label values 2 belong to no class .* add them where the classes are declared"
    ):
        ulna.plan(drawn(tmp_path / "data"), model="unet", set=["classes={organ: [1, 3]}"], untimed=True)
