"""Words of a command that stand in each other's place are recognised, and the message holds the command that is meant."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import run_folder
from ulna.cli import main as cli
from ulna.errors import UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, a data set, masks of the run, and a folder of photographs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("data/images", "data/labels", "photos"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "abc":
        inside = np.zeros((24, 32), np.uint8)
        inside[4:12, 6:20] = 255
        Image.fromarray(inside).save(tmp_path / f"data/labels/{name}.png")
        grey = rng.integers(0, 255, (24, 32), np.uint8)
        Image.fromarray(grey).save(tmp_path / f"data/images/{name}.png")
        Image.fromarray(np.stack([grey, grey // 2, grey], axis=-1)).save(tmp_path / f"photos/{name}.png")
    run_folder(tmp_path / "run", 0)
    ulna.predict("run", "data/images", out="masks")
    return tmp_path


def said(capfd, *words):
    """What a command that cannot be says, in one line; exit code 2."""
    capfd.readouterr()
    assert cli.run(list(words)) == 2
    (line,) = capfd.readouterr().err.strip().split("\n")
    return line


def meant(line):
    """The command in a message, which is its end."""
    return shlex.split(line.rpartition(": ulna ")[2])


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_the_run_comes_before_the_image(place, capfd, verb):
    line = said(capfd, verb, "data/images", "run", "--out", "there", *(["--overwrite"] if verb == "predict" else []))
    assert "run: is a run folder, where the image is wanted; the run comes first: ulna" in line
    right = meant(line)
    assert right[:3] == [verb, "run", "data/images"] and right[3:5] == ["--out", "there"]
    if verb == "predict":
        assert cli.run(right) == 0  # what is said can be done


def test_two_runs_are_no_image(place, capfd):
    run_folder(place / "other", 1)
    line = said(capfd, "predict", "run", "other", "--out", "there")
    assert line.endswith("the image comes last: ulna predict run other INPUT --out there")


def test_masks_come_before_references(place, capfd):
    right = meant(said(capfd, "evaluate", "data", "masks", "--out", "scores"))
    assert right == ["evaluate", "masks", "data", "--out", "scores"] and cli.run(right) == 0
    assert cli.run(["evaluate", "masks", "data/labels"]) == 0


@pytest.mark.parametrize(
    ("words", "what", "right"),
    [
        (("data/images", "data"), "data/images: holds images, where masks are wanted", "evaluate MASKS data"),
        (("masks", "data/images"), "where the references are wanted", "evaluate masks data/labels"),
        (("photos", "data"), r"photos: holds images (a.png), where masks are wanted", "evaluate MASKS data"),
        (("masks", "photos"), "photos: holds images (a.png), where the references are wanted", "evaluate masks LABELS"),
        (("run", "data"), "run: is a run folder, where masks are wanted; predict first", "evaluate MASKS data"),
    ],
)
def test_images_and_runs_are_no_masks(place, capfd, words, what, right):
    line = said(capfd, "evaluate", *words)
    assert what in line and line.endswith(right)


@pytest.mark.parametrize("verb", ["train", "plan", "check"])
def test_a_run_is_no_data_set(place, capfd, verb):
    with pytest.raises(UsageError, match="to go on with the run: ulna train DATA --out run --resume"):
        result = getattr(ulna, verb)("run")
        result.raise_if_bad()


def test_the_images_of_a_data_set_are_not_all_of_it(place):
    with pytest.raises(UsageError, match=f"give the folder {re.escape(str(place / 'data'))} itself"):
        ulna.train("data/images")


def test_a_plan_is_no_data_set(place):
    with pytest.raises(UsageError, match="a plan goes with --plan"):
        ulna.train("run/plan.yaml")


def test_masks_that_do_not_fit_are_told_as_masks(place):
    """Numbered objects and a few odd values are no image."""
    numbered = np.zeros((24, 32), np.uint8)
    for number in range(48):
        y, x = 3 * (number // 8), 4 * (number % 8)
        numbered[y : y + 2, x : x + 3] = number + 1
    for name in "abc":
        Image.fromarray(numbered).save(place / "photos" / f"{name}.png")
    with pytest.raises(UsageError, match="label values"):
        ulna.evaluate("photos", "data")


def test_masks_are_compared_with_masks(place):
    shutil.copytree(place / "masks", place / "again")
    assert ulna.evaluate("masks", "again").summary["mean"]["dice"]["mean"] == 1.0
    facts = json.loads((place / "masks" / "predict.json").read_text())
    assert facts["asked"] == ["a", "b", "c"]
