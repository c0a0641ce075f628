"""Grey pictures for a network of colour pictures, and the reverse: the same from files and Python, never a guess."""

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import run_folder
from tests.plans import make
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.colour import as_trained, to_grey
from ulna.data.quality.check import check
from ulna.errors import UsageError
from ulna.inference.inputs import as_volume
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import Normalization, Recipe, Training

COLOUR = {"in_channels": 3, "channel_names": ("r", "g", "b"), "normalization": (Normalization(kind="zscore"),) * 3}


def picture(path, *shape):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colour_for_a_grey_network_is_what_pillow_makes_of_it(tmp_path, suffix):
    path = picture(tmp_path / f"x.{suffix}", 24, 32, 3)
    volume, done = as_trained(read_image([Source(path)]), make())
    assert "in colour, and read as grey" in done and volume.array.dtype == np.uint8
    expected = np.asarray(Image.open(path).convert("L")).astype(int)
    assert np.abs(volume.array[0] - expected).max() <= 1  # Pillow cuts off, we round


def test_grey_that_is_stored_as_colour_stays_what_it_is():
    grey = np.random.default_rng(0).integers(0, 65535, (1, 24, 32)).astype(np.uint16)
    assert np.array_equal(to_grey(np.repeat(grey, 3, axis=0)), grey)


def test_grey_for_a_network_of_colour_is_repeated_with_one_note(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    files = [picture(folder / f"{name}.png", 24, 32) for name in "ab"]
    run = run_folder(tmp_path / "run", 0, colour=True, **COLOUR)
    ulna.predict(run, folder, out=tmp_path / "masks")
    assert sum("is grey, and read as colour" in message for message in caplog.messages) == 1
    same = np.repeat(np.asarray(Image.open(files[0]))[..., None], 3, axis=-1)
    Image.fromarray(same).save(tmp_path / "same.png")
    segment = ulna.load(run)
    wanted = segment(tmp_path / "same.png").mask
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "a.png")), wanted)
    assert np.array_equal(segment(files[0]).mask, wanted)


def test_one_channel_of_several_files_is_no_grey_picture(tmp_path):
    """Three channels that were three files may be anything."""
    image = picture(tmp_path / "a.png", 24, 32)
    run = run_folder(tmp_path / "run", 0, **COLOUR)
    with pytest.raises(
        UsageError, match=r"1 channel; this model reads 3 \(r, g, b\); save it as red, green and blue, or"
    ):
        ulna.predict(run, image, out=tmp_path / "masks")


def test_an_array_is_told_how_it_is_given():
    with pytest.raises(UsageError, match=r"picture @ \[0.299, 0.587, 0.114\]"):
        as_volume(np.zeros((24, 32, 3)), make())
    with pytest.raises(UsageError, match=r"numpy.stack\(\[grey\] \* 3\)"):
        as_volume(np.zeros((24, 32)), make(**COLOUR))


@pytest.mark.parametrize(("shape", "colour"), [((32, 32, 3), True), ((32, 32), False)])
def test_a_plan_knows_whether_its_images_are_colour_pictures(tmp_path, shape, colour):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(rng.integers(0, 2, (32, 32), np.uint8)).save(tmp_path / "labels" / f"{number}.png")
    assert check(tmp_path).ok
    data = read_training_data(Dataset.from_folder(tmp_path), Training())
    assert plan_training(data, Recipe(model="unet")).plan.colour is colour
