"""An exported file, or zoo:NAME, where something else is wanted: one sentence, alike for every verb and in Python."""

import zipfile

import numpy as np
import pytest
from PIL import Image

import ulna
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.system.exported import TAKEN, is_exported

ZOO = "zoo:nuclei"  # known by its name alone: no package is needed to refuse it
RUN = "is an exported file, where the folder of a run is wanted; name the run that it was exported from"
DATA = "is an exported file, where a data set is wanted; name the folder of the images"
OF_RUN = "of the run that it was exported from"
MASKS = (
    "is an exported file, where masks are wanted; predict first: ulna predict {} INPUT --out MASKS; then: ulna evaluate"
)
IMAGE = "is an exported file, where the image is wanted; the"
REFUSED = {
    "export {} --out x.ulna": RUN,
    "explain {} data/images/a.png --out why": RUN,
    "prune {} --level 1 --out smaller": RUN,
    "evaluate {} data": f"{MASKS} MASKS data",
    "evaluate data/labels {}": f"{MASKS} MASKS LABELS",
    "compare data --models unet --beside {} --out study": "is an exported file, where the folder of a study is wanted",
    "train data --plan {} --out run": f"is an exported file, where a plan is wanted; name the plan.yaml {OF_RUN}",
    "train data --recipe {} --out run": f"is an exported file, where a recipe is wanted; name the recipe.yaml {OF_RUN}",
    "train {} --out run": DATA,
    "check {}": DATA,
    "plan {}": DATA,
    "compare {} --models unet,fcn --out study": DATA,
    "predict zoo:hippocampus {} --out masks": f"{IMAGE} image comes last: ulna predict zoo:hippocampus {{}} INPUT",
    "predict data/images {} --out masks": f"{IMAGE} run comes first: ulna predict {{}} data/images --out masks",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, and a file that begins as an exported one does, under a name that says nothing."""
    folder = tmp_path_factory.mktemp("place")
    for part in ("images", "labels"):
        (folder / "data" / part).mkdir(parents=True)
        for name in "abc":
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "data" / part / f"{name}.png")
    with zipfile.ZipFile(folder / "nuclei.png", "w") as archive:
        archive.writestr("manifest.json", "{}")
    return folder


@pytest.mark.parametrize("file", [ZOO, "nuclei.png"])
@pytest.mark.parametrize("words", REFUSED)
def test_every_verb_says_what_it_wants_instead(place, monkeypatch, capfd, words, file):
    monkeypatch.chdir(place)
    assert cli.run(words.format(file).split()) == 2
    (line,) = capfd.readouterr().err.strip().split("\n")
    assert line.startswith(f"error: {file}: {REFUSED[words].format(file)}")
    assert line.endswith(f"({TAKEN})") or "the image is wanted" in line
    assert sorted(one.name for one in place.iterdir()) == ["data", "nuclei.png"]


@pytest.mark.parametrize("file", [ZOO, "nuclei.png"])
def test_functions_say_the_same(place, monkeypatch, file):
    monkeypatch.chdir(place)
    for call in (
        lambda: ulna.explain(file, "data/images/a.png", out="why"),
        lambda: ulna.prune(file, out="smaller", level=1),
        lambda: ulna.export(file, out="x.ulna"),
    ):
        with pytest.raises(UsageError, match=f"{file}: {RUN}"):
            call()
    with pytest.raises(UsageError, match=f"{file}: {DATA}"):
        ulna.train(file, model="unet", out="run")


def test_what_begins_otherwise_is_no_exported_file(place, tmp_path):
    np.savez(tmp_path / "masks.npz", masks=np.zeros((1, 4, 4)))  # a zip too
    (tmp_path / "empty").touch()
    for other in (tmp_path, tmp_path / "none", tmp_path / "masks.npz", tmp_path / "empty", place / "data/images/a.png"):
        assert not is_exported(other)
