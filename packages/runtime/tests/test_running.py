"""From an image file to a mask file, without torch; memory that does not follow the number of classes."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from packages.runtime.tests.conftest import plan_for
from ulna_runtime import UsageError, load
from ulna_runtime.card import card_text
from ulna_runtime.cli import run as command
from ulna_runtime.sliding import by_windows

SOURCE = Path(__file__).parents[1] / "src"
ALONE = """
import sys
for name in ("torch", "scipy", "ulna"):
    sys.modules[name] = None  # an import of it fails
from ulna_runtime import load
load(sys.argv[1])(sys.argv[2]).save(sys.argv[3])
"""


@pytest.fixture(scope="session")
def volume_file(deep, tmp_path_factory):
    plan = plan_for(3, orientation="RAS", spacing=(1.2, 1.2, 1.2), unit="mm", whole_image_limit=0)
    return deep.write(tmp_path_factory.mktemp("file") / "deep.ulna", plan)


@pytest.fixture
def scan(tmp_path, rng):
    affine = np.array([[0, 0, 2.0, -3], [-1.5, 0, 0, 5], [0, 1.1, 0, 7], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(rng.integers(-100, 900, (17, 21, 13)).astype(np.int16), affine)
    image.header["scl_slope"], image.header["scl_inter"] = 2.0, -7.0
    nibabel.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_scan_to_a_mask_without_torch(volume_file, scan, tmp_path):
    out = tmp_path / "mask.nii.gz"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", ALONE, volume_file, scan, out], check=True, env=environment)
    image, mask = nibabel.load(scan), nibabel.load(out)
    assert mask.shape == image.shape
    assert np.allclose(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8


def test_ulna_predicts_the_file_as_its_own_network(volume_file, deep, scan, tmp_path):
    import ulna

    plan = plan_for(3, orientation="RAS", spacing=(1.2, 1.2, 1.2), unit="mm", whole_image_limit=0)
    expected = deep.both(plan)[0](scan).mask
    assert np.array_equal(ulna.load(volume_file)(scan).mask, expected)
    assert np.array_equal(load(volume_file)(scan).mask, expected)
    ulna.predict(volume_file, scan, out=tmp_path / "masks")
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "masks" / scan.name).dataobj), expected)


def test_ulna_refuses_what_a_file_has_not(volume_file, scan, tmp_path):
    import ulna

    with pytest.raises(ulna.UsageError, match="whose level was chosen when it was exported"):
        ulna.predict(volume_file, scan, out=tmp_path / "masks", level=1)
    damaged = tmp_path / "b.ulna"
    damaged.write_bytes(volume_file.read_bytes()[:-50])
    with pytest.raises(ulna.UsageError, match="is damaged or no exported file"):
        ulna.predict(damaged, scan, out=tmp_path / "masks")


@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_with_an_orientation_tag(flat, tmp_path, rng, tag):
    """The mask lies on its image in viewers that follow the tag and in those that do not, as ulna writes it."""
    import ulna

    file = flat.write(tmp_path / "a.ulna", plan_for(2))
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(rng.integers(0, 255, (21, 34, 3), np.uint8)).save(tmp_path / "p.png", exif=exif)
    ulna.load(file)(tmp_path / "p.png").save(tmp_path / "ulna")
    load(file)(tmp_path / "p.png").save(tmp_path / "runtime")
    ours, theirs = (Image.open(tmp_path / f"{name}.png") for name in ("ulna", "runtime"))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert ours.getexif().get(274, 1) == theirs.getexif().get(274, 1) == tag


def test_arrays_and_channel_files(flat, tmp_path, rng):
    segment = load(flat.write(tmp_path / "a.ulna", plan_for(2)))
    pixels = rng.integers(0, 255, (21, 34, 3), np.uint8)
    for channel in range(3):
        Image.fromarray(pixels[..., channel]).save(tmp_path / f"c_{channel}.png")
    expected = segment(pixels).mask
    assert np.array_equal(segment(np.moveaxis(pixels, -1, 0)).mask, expected)
    assert np.array_equal(segment([tmp_path / f"c_{channel}.png" for channel in range(3)]).mask, expected)
    np.save(tmp_path / "x.npy", pixels)
    assert np.array_equal(np.load(segment(tmp_path / "x.npy").save(tmp_path / "y")), expected)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: p.write_bytes(b"no picture"), "p.png: cannot be read"),
        (lambda p: Image.new("L", (20, 20)).save(p), "1 channels; this model reads 3"),
        (lambda p: None, "no such file"),
    ],
)
def test_images_that_do_not_fit_are_named(flat, tmp_path, make, match):
    segment = load(flat.write(tmp_path / "a.ulna", plan_for(2)))
    make(tmp_path / "p.png")
    with pytest.raises(UsageError, match=match):
        segment(tmp_path / "p.png")


def test_not_a_number_is_refused_in_images_and_answers(flat, tmp_path, rng):
    segment = load(flat.write(tmp_path / "a.ulna", plan_for(2)))
    image = rng.normal(size=(3, 20, 20)).astype(np.float32)
    image[0, 3, 3] = np.nan
    with pytest.raises(UsageError, match="1 values are NaN or infinite"):
        segment(image)
    huge = load(flat.write(tmp_path / "b.ulna", plan_for(2, normalization=(_none(),) * 3)))
    with pytest.raises(UsageError, match="that it computed are NaN or infinite"):
        huge(np.full((3, 20, 20), 3e38, np.float32))


def _none():
    from ulna.recipe import Normalization

    return Normalization(kind="none")


def test_a_volume_without_orientation_is_refused(volume_file, rng):
    with pytest.raises(UsageError, match="states no orientation"):
        load(volume_file)(rng.normal(size=(1, 20, 20, 20)), spacing=(1, 1, 1))


def test_memory_follows_a_window_not_the_image():
    """Of 40 maps of an image, no more than those of a window's length are held."""
    image, maps = np.zeros((1, 4000, 16), np.float32), 40
    tracemalloc.start()
    try:
        parts = by_windows(lambda w: np.ones((maps, *w.shape[1:]), np.float32), image, (32, 16), overlap=0.5)
        rows = sum(part.shape[1] for part in parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 4000
    assert peak < maps * image.nbytes / 10


def test_the_command_line(flat, tmp_path, rng, capsys):
    file, images = flat.write(tmp_path / "a.ulna", plan_for(2)), tmp_path / "images"
    images.mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (21, 34, 3), np.uint8)).save(images / f"{name}.png")
    words = ["predict", str(file), str(images), "--out", str(tmp_path / "masks")]
    assert command(words) == 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "b.png"]
    assert command(words) == 2
    assert "holds a mask of" in capsys.readouterr().err
    (images / "c.png").write_bytes(b"damaged")
    assert command([*words, "--overwrite"]) == 3
    assert "1 of 3 images failed" in capsys.readouterr().err
    assert command(["predict", str(file), str(images), "--out", str(images)]) == 2
    assert command(["predict", str(tmp_path / "none.ulna"), str(images), "--out", str(tmp_path / "m")]) == 2
    assert command(["info", str(file)]) == 0
    assert capsys.readouterr().out == "model: unet\n"


def test_a_card_cannot_move_the_cursor():
    assert card_text({"model": "a\x1b[2Jb"}) == "model: a?[2Jb"
