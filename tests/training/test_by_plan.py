"""`ulna train --plan FILE` trains by exactly the plan of a file, and refuses one that does not fit."""

import json
import logging
import shlex

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ulna.training.single as room
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.demonstration import make_phantom
from ulna.errors import UsageError
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.system.files import read_tensors
from ulna.training.estimate import plan
from ulna.training.train import train

FLAGS = {"model": "attention_unet", "seed": 2, "set": (*TINY, "planning.whitening=zca", "loss.kind=dice")}


@pytest.fixture(scope="module")
def planned(discs, tmp_path_factory):
    """A plan in a file."""
    file = tmp_path_factory.mktemp("plans") / "plan.yaml"
    plan(discs, out=file, untimed=True, **FLAGS)
    return file


def changed(file, out, **changes):
    """The same plan with some fields changed by hand."""
    values = yaml.safe_load(file.read_text())
    out.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return out


def weights(folder):
    return read_tensors(folder / "weights.safetensors").tensors


def same(one, two):
    """To the bit: both were trained in this process, by the same code with as many threads."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_the_plan_of_a_file_trains_as_its_command_does(discs, planned, tmp_path):
    by_flags = train(discs, out=tmp_path / "flags", epochs=2, **FLAGS)
    by_file = train(discs, plan=planned, out=tmp_path / "file", epochs=2)
    assert same(weights(by_flags.folder), weights(by_file.folder))
    assert (by_file.folder / "plan.yaml").read_bytes() == planned.read_bytes()
    assert (by_file.folder / "recipe.yaml").read_bytes() == (by_flags.folder / "recipe.yaml").read_bytes()
    longer = [
        train(folder, out=run.folder, resume=True, epochs=3) for folder, run in ((discs, by_flags), (discs, by_file))
    ]
    assert same(*(weights(run.folder) for run in longer))
    assert (by_file.folder / "plan.yaml").read_bytes() == planned.read_bytes()


def repeated(run, data, out):
    """The stored command with the places put back: it names folders and files alone."""
    words = shlex.split(run.summary["command"])
    places = {data.name: data, "NEW_FOLDER": out}
    places |= {name: run.folder / name for name in ("recipe.yaml", "plan.yaml")}
    assert words[:2] == ["ulna", "train"] and not any("/" in word for word in words)
    return [str(places.get(word, word)) for word in words]


def test_every_field_of_the_file_holds_and_the_run_can_be_repeated(discs, planned, tmp_path):
    rescale = {"kind": "rescale", "low": 10.0, "high": 99.0, "mean": 0.0, "std": 1.0}
    own = {"patch": [16, 24], "batch": 1, "spacing": [1.25, 1.0], "mirror_axes": [1], "turn_axes": None,
           "whole_image_limit": 9, "normalization": [rescale]}  # fmt: skip
    file = changed(planned, tmp_path / "own.yaml", **own)
    run = train(discs, plan=file, out=tmp_path / "run", epochs=1)
    stored = from_yaml(Plan, run.folder / "plan.yaml")
    assert stored == from_yaml(Plan, file)
    assert yaml.safe_load((run.folder / "plan.yaml").read_text()) == yaml.safe_load(file.read_text())
    assert "patch 16x24, batch 1" in (run.folder / "log.txt").read_text()
    words = repeated(run, discs, tmp_path / "again")
    assert cli.run([*words[1:], "--quiet"]) == 0
    assert from_yaml(Plan, tmp_path / "again" / "plan.yaml") == stored
    assert same(weights(run.folder), weights(tmp_path / "again"))


def test_the_command_of_a_run_that_planned_itself_repeats_it(discs, tmp_path, monkeypatch):
    """On a machine where the planner would choose another batch."""
    run = train(discs, model="unetpp", out=tmp_path / "run", epochs=1, set=("architecture.base_channels=4", TINY[2]))
    monkeypatch.setattr("ulna.planning.sizes.LARGEST_BATCH", {2: 1, 3: 1})
    words = repeated(run, discs, tmp_path / "again")
    assert cli.run([*words[1:], "--quiet"]) == 0
    assert same(weights(run.folder), weights(tmp_path / "again"))


REFUSED = {
    "model": ({"model": "unet"}, ["model is unet, the plan was made for attention_unet"]),
    "batch": ({"set": ["planning.batch=3"]}, ["planning.batch is 3, in the plan it is 2"]),
    "patch": ({"set": ["planning.patch=[8, 8]"]}, ["planning.patch is [8, 8], in the plan it is [32, 40]"]),
    "spacing": ({"set": ["planning.spacing=[2, 2]"]}, ["planning.spacing is [2.0, 2.0], in the plan it is [1.0, 1.0]"]),
    "normalization": ({"set": ["planning.normalization=none"]}, ["planning.normalization is none, in the plan it is zscore"]),
    "whitening": ({"set": ["planning.whitening=null"]}, ["planning.whitening is left out, and the plan holds a matrix"]),
    "levels": ({"set": ["architecture.channels=[4, 8]"]}, ["has 2 levels, the plan 3"]),
    "strides": ({"set": ["architecture.strides=[[2, 1], [2, 2]]"]},
                ["architecture.strides are [[2, 1], [2, 2]], in the plan they are [[2, 2], [2, 2]]"]),
    "block": ({"set": ["architecture.skip=concat"]}, ["architecture.skip is", "the plan was made for"]),
    "widths": ({"set": ["architecture.channels=[4, 8, 32]"]},
               ["architecture.channels is [4, 8, 32], the plan was made for [4, 8, 16]"]),
    "budget": ({"set": ["planning.parameters=20_000"]}, ["architecture.channels is"]),
    "points": ({"set": ["points.fraction=0.5"]}, ["points.fraction is 0.5, the plan was made for null"]),
    "several": ({"model": "unet", "set": ["planning.batch=3", "planning.patch=[8, 8]", "architecture.levels=2"]},
                ["model is unet", "planning.batch is 3", "planning.patch is [8, 8]", "has 2 levels", "planning.whitening"]),
}  # fmt: skip


@pytest.mark.parametrize(("beside", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_given_beside_a_plan_must_agree_before_data_are_read(
    discs, planned, tmp_path, monkeypatch, capfd, beside, told
):
    monkeypatch.setattr(room, "read_training_data", lambda *_: pytest.fail("data were read"))
    with pytest.raises(UsageError, match="plan does not fit") as error:
        train(discs, plan=planned, out=tmp_path / "run", **beside)
    assert all(text in str(error.value) for text in told), str(error.value)
    assert str(planned) in str(error.value)
    assert not (tmp_path / "run").exists()
    words = [word for one in beside.get("set", ()) for word in ("--set", one)]
    words += ["--model", beside["model"]] if "model" in beside else []
    assert (
        cli.run(["train", str(discs), "--plan", str(planned), "--out", str(tmp_path / "run"), *words, "--quiet"]) == 2
    )
    assert "this plan does not fit" in capfd.readouterr().err


def test_what_does_not_shape_a_plan_may_be_given_beside_it(discs, planned, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    told = from_yaml(Plan, planned).recipe
    recipe.write_text(yaml.safe_dump({
        "model": "attention_unet", "architecture": {"channels": [4, 8, 16]}, "training": {"min_steps": 1},
        "planning": {"whitening": "zca", "batch": 2, "patch": [32, 40]},
    }))  # fmt: skip
    run = train(
        discs, plan=planned, recipe=recipe, seed=5, epochs=1, set=["loss.kind=cross_entropy"], out=tmp_path / "run"
    )
    stored = from_yaml(Recipe, run.folder / "recipe.yaml")
    assert (stored.training.seed, stored.training.min_steps, stored.loss.kind) == (5, 1, "cross_entropy")
    assert told.loss.kind == "dice"
    assert (run.folder / "plan.yaml").read_bytes() == planned.read_bytes()


@pytest.fixture(scope="module")
def others(discs, tmp_path_factory):
    """Data sets that the plan was not made for, and what is told of each."""
    root = tmp_path_factory.mktemp("others")
    rng = np.random.default_rng(5)

    def written(name, colours=None, classes=None, noise=0):
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True)
        for number in range(6):
            labels = np.array(Image.open(discs / "labels" / f"disc{number}.png")) // 255
            if classes:
                labels = labels * (1 + number % 2)
            image = np.array(Image.open(discs / "images" / f"disc{number}.png"))
            image = np.clip(image + rng.integers(0, 1 + noise, image.shape), 0, 255).astype(np.uint8)
            image = image if colours is None else np.stack([image] * colours, -1)
            Image.fromarray(image).save(root / name / "images" / f"disc{number}.png")
            Image.fromarray(labels.astype(np.uint8)).save(root / name / "labels" / f"disc{number}.png")
        if classes:
            (root / name / "classes.json").write_text(json.dumps(classes))
        return root / name

    return {
        "cases": (written("cases", noise=9), ["it was made for other cases"]),
        "channels": (written("channels", colours=3), ["the channels of these data are"]),
        "classes": (
            written("classes", classes=["liver", "tumour"]),
            ["the classes of these data are background, liver, tumour, those of the plan background, foreground"],
        ),
        "volumes": (
            make_phantom(root / "volumes", count=4, size=(20, 24, 18)),
            ["the classes of these data are background, head, tail", "these images are 3D, those of the plan 2D"],
        ),
        "both": (written("both", 3, ["liver", "tumour"]), ["the channels of these data", "the classes of these data"]),
    }


@pytest.mark.parametrize("name", ["cases", "channels", "classes", "volumes", "both"])
def test_a_plan_for_other_data_is_refused(others, planned, tmp_path, name):
    data, told = others[name]
    with pytest.raises(UsageError, match="plan does not fit") as error:
        train(data, plan=planned, out=tmp_path / "run", epochs=1)
    assert all(text in str(error.value) for text in told), str(error.value)
    assert not (tmp_path / "run").exists()


def test_declared_classes_are_compared_before_data_are_read(others, planned, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "read_training_data", lambda *_: pytest.fail("data were read"))
    with pytest.raises(UsageError) as error:
        train(others["classes"][0], plan=planned, model="unet", out=tmp_path / "run")
    assert "the classes of these data are" in str(error.value) and "model is unet" in str(error.value)


@pytest.mark.slow
def test_another_split_of_the_same_data_is_noted(others, tmp_path, caplog):
    data, _ = others["cases"]
    plan(data, model="unet", set=TINY, fold=0, out=tmp_path / "plan.yaml", untimed=True)
    with caplog.at_level(logging.INFO, "ulna"):
        run = train(data, plan=tmp_path / "plan.yaml", fold=1, epochs=1, out=tmp_path / "run")
    note = "the plan was made for other training cases of these data"
    assert note in (run.folder / "log.txt").read_text()
    same_fold = train(data, plan=tmp_path / "plan.yaml", epochs=1, out=tmp_path / "same")
    assert note not in (same_fold.folder / "log.txt").read_text()
    assert same_fold.folder.joinpath("splits.json").read_text() != run.folder.joinpath("splits.json").read_text()


def test_a_plan_that_names_no_network_needs_one_beside_it(discs, planned, tmp_path):
    """Such as that of a run, which has its recipe beside it."""
    values = {name: value for name, value in yaml.safe_load(planned.read_text()).items() if name != "recipe"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=r"does not say for which network .* --model"):
        train(discs, plan=tmp_path / "plan.yaml", out=tmp_path / "run")
    given = {"model": "unet", "set": ("architecture.channels=[4, 8, 16]", "planning.whitening=zca", *TINY[2:])}
    run = train(discs, plan=tmp_path / "plan.yaml", out=tmp_path / "run", epochs=1, **given)
    assert from_yaml(Plan, run.folder / "plan.yaml") == from_yaml(Plan, tmp_path / "plan.yaml")
    assert "recipe" not in yaml.safe_load((run.folder / "plan.yaml").read_text())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 1}, "its format is 1, of an earlier ulna"),
        ({"patch": [1, 2]}, "its strides divide 1 pixels of the patch by 4, and the deepest map would have none"),
        ({"patch": [16]}, "patch has 1 entry"),
        ({"bach": 3}, "did you mean 'batch'"),
    ],
)
def test_a_plan_that_no_training_can_follow_is_refused(discs, planned, tmp_path, changes, told):
    file = changed(planned, tmp_path / "own.yaml", **changes)
    with pytest.raises(UsageError, match=told):
        train(discs, plan=file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_by_its_own_plan(discs, planned, tmp_path):
    run = train(discs, plan=planned, out=tmp_path / "run", epochs=1)
    train(discs, plan=planned, out=run.folder, resume=True)
    other = changed(planned, tmp_path / "other.yaml", batch=from_yaml(Plan, planned).batch + 1)
    with pytest.raises(UsageError, match="is not the plan that it was begun with"):
        train(discs, plan=other, out=run.folder, resume=True)
    with pytest.raises(UsageError, match=r"none\.yaml"):
        train(discs, plan=tmp_path / "none.yaml", out=tmp_path / "new")


def test_the_next_command_is_told(discs, tmp_path, capsys):
    assert cli.run(["plan", str(discs), "--untimed", "--out", str(tmp_path / "plan.yaml"), "--quiet"]) == 0
    assert f"--plan {tmp_path / 'plan.yaml'}" in capsys.readouterr().out.replace("\n", "")
