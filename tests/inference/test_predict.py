"""One run or several over many cases: ensembles, cases that fail, memory that does not follow the number of classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ulna
from tests.plans import make
from ulna.cli import main as cli
from ulna.data.volume import Volume
from ulna.errors import PartialFailure, UsageError
from ulna.inference import predict as prediction
from ulna.inference.ensemble import Ensemble
from ulna.inference.segmenter import Segmenter, network_for
from ulna.recipe import Labels, Recipe, Split, to_yaml
from ulna.system.files import Tensors, write_tensors, write_text


def run_folder(folder, seed, *, split=None, **plan):
    """A run folder with random weights."""
    plan = make(**{"strides": ((2, 2),), **plan})
    recipe = Recipe(model="unet").replaced(architecture={"channels": (4, 8), "strides": plan.strides})
    network = network_for(recipe, plan, torch.Generator().manual_seed(seed))
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_text(folder / "plan.yaml", to_yaml(plan))
    split = split or Split(train=("a",), val=("b",))
    write_text(folder / "splits.json", json.dumps(split.model_dump(mode="json")))
    write_tensors(folder / "weights.safetensors", Tensors(dict(network.state_dict()), {}))
    return folder


def four_images(folder, size):
    """a.png to d.png of noise in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    return four_images(tmp_path / "images", (37, 50))


def test_an_ensemble_is_the_mean_of_the_probabilities_whatever_the_grids(tmp_path):
    """Windows, mirrored copies and grids of its own for every member."""
    names = Labels(names=("background", "x", "y"))
    grids = [(1.0, 1.0), (0.7, 1.6), (2.0, 2.0)]
    runs = [
        run_folder(tmp_path / str(n), n, labels=names, spacing=g, unit="mm", whole_image_limit=300, patch=(16, 16))
        for n, g in enumerate(grids)
    ]
    image = Volume(np.random.default_rng(1).normal(size=(1, 37, 50)).astype(np.float32), (1.0, 1.0), "mm")
    for mirrored in (False, True):
        members = [ulna.load(run).mirrored() if mirrored else ulna.load(run) for run in runs]
        together = ulna.load(runs).mirrored() if mirrored else ulna.load(runs)
        expected = torch.stack([member.probabilities(image) for member in members]).mean(0)
        torch.testing.assert_close(together.probabilities(image), expected, atol=1e-6, rtol=0)
        assert np.array_equal(together.mask(image), expected.argmax(0).numpy())
        assert not torch.allclose(expected, members[0].probabilities(image), atol=1e-3)


def test_runs_that_differ_are_named_with_what_differs(tmp_path):
    a = run_folder(tmp_path / "a", 0)
    b = run_folder(tmp_path / "b", 1, labels=Labels(names=("background", "x", "y")))
    c = run_folder(tmp_path / "c", 2, in_channels=2, channel_names=("T1", "T2"), normalization=make().normalization * 2)
    with pytest.raises(UsageError, match=r"background, x, y, but .*a has background, foreground") as error:
        ulna.load([a, b, c])
    assert "channels are T1, T2" in str(error.value)
    with pytest.raises(UsageError, match="no run is given"):
        ulna.load([])
    assert not isinstance(ulna.load([a, str(a)]), Ensemble)


def test_the_command_line_takes_several_runs_and_then_the_input(tmp_path, images, capfd):
    runs = [run_folder(tmp_path / f"run{n}", n) for n in range(3)]
    out = tmp_path / "masks"
    assert cli.run(["predict", *map(str, runs), str(images), "--out", str(out), "--tta"]) == 0
    facts = json.loads((out / "predict.json").read_text())
    assert facts["runs"] == ["run0", "run1", "run2"]
    mask = ulna.load(runs).mirrored().mask(ulna.load(runs[0])._volume(images / "a.png"))
    assert np.array_equal(np.asarray(Image.open(out / "a.png")), mask)
    assert cli.run(["predict", str(images), "--out", str(out)]) == 2
    assert "missing: DATA" in capfd.readouterr().err


def test_a_part_of_the_split_needs_runs_that_share_it(tmp_path, images):
    a, b = run_folder(tmp_path / "1", 0), run_folder(tmp_path / "2", 1, split=Split(train=("b",), val=("a",)))
    assert [row["case"] for row in ulna.predict(a, images, out=tmp_path / "m", split="val").cases] == ["b"]
    with pytest.raises(UsageError, match="another split"):
        ulna.predict([a, b], images, out=tmp_path / "n", split="val")


def test_one_bad_case_of_many_costs_that_case_alone(tmp_path, images, capfd):
    run = run_folder(tmp_path / "run", 0)
    for number in range(60):
        shutil.copy(images / "a.png", images / f"copy{number:02}.png")
    (images / "copy30.png").write_bytes((images / "a.png").read_bytes()[:300])
    assert cli.run(["predict", str(run), str(images), "--out", str(tmp_path / "masks")]) == 3
    err = capfd.readouterr().err
    assert "1 of 64 cases failed" in err
    assert "copy30" in err
    assert "Traceback" not in err
    written = {path.stem for path in (tmp_path / "masks").glob("*.png")}
    assert written == {path.stem for path in images.glob("*.png")} - {"copy30"}
    assert list(json.loads((tmp_path / "masks" / "predict.json").read_text())["failed"]) == ["copy30"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError("x"), "defect of ulna"), (MemoryError(), "out of memory"), (OSError("gone"), "defect")],
)
def test_whatever_fails_in_one_case_the_others_are_written(tmp_path, images, monkeypatch, error, words):
    run, mask = run_folder(tmp_path / "run", 0), Segmenter.mask

    def fails(self, volume):
        if volume.path.stem == "c":
            raise error
        return mask(self, volume)

    monkeypatch.setattr(Segmenter, "mask", fails)
    with pytest.raises(PartialFailure, match=words) as failure:
        ulna.predict(run, images, out=tmp_path / "masks")
    assert list(failure.value.failed) == ["c"]
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3


def test_without_probabilities_no_more_than_a_slab_of_them_is_held(tmp_path, images, monkeypatch):
    run = run_folder(tmp_path / "run", 0)
    monkeypatch.setattr(prediction.Segmenter, "probabilities", None)
    ulna.predict(run, images, out=tmp_path / "masks")
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_an_image_of_other_dimensions_is_told_as_such(tmp_path):
    """Also where the plan resamples: the memory of such an image cannot be forecast."""
    run = run_folder(tmp_path / "run", 0, spacing=(1.0, 1.0))
    np.save(tmp_path / "volume.npy", np.zeros((9, 9, 9), np.float32))
    with pytest.raises(UsageError, match="a 3D image; this model was planned for 2D images"):
        ulna.predict(run, tmp_path / "volume.npy", out=tmp_path / "masks")
