"""Orientation tags: an image is upright, and its mask lies on it in viewers that follow the tag and in those that do not."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from tests.data.formats.test_read import image_of, labels_of, noise
from ulna.data.formats.write import write_labels, write_probabilities
from ulna.data.turning import as_stored, exchanged, upright

TURNS = range(2, 9)


def save(path, array, orientation):
    """A picture of these stored pixels, with the tag."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, extratags=[(274, 3, 1, orientation, True)], photometric="minisblack")
        return path
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif)
    return path


def as_shown(array, orientation):
    """What Pillow shows for these stored pixels."""
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_gives_what_was_stored(orientation):
    array = noise(3, 6, 9)
    shown = upright(array, orientation)
    assert np.array_equal(as_stored(shown, orientation), array)
    assert exchanged(shown.shape, orientation) == array.shape


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_image_is_upright_as_viewers_show_it(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a{suffix}", noise(6, 9), orientation)
    volume, shown = image_of(path), as_shown(noise(6, 9), orientation)
    assert volume.size == shown.shape and np.allclose(volume.array[0], shown, atol=40 if suffix == ".jpg" else 0)
    assert not np.array_equal(shown, noise(6, 9))
    assert volume.meta.notes == (
        f"orientation tag {orientation} is applied: rows and columns are as viewers show them",
    )


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_mask_is_stored_as_its_image_with_the_same_tag(tmp_path, suffix, orientation):
    stored = noise(6, 9)
    volume = image_of(save(tmp_path / f"a{suffix}", stored, orientation))
    labels = (volume.array[0] > 100).astype(np.uint8)
    path = write_labels(tmp_path / "out" / "a", labels, volume)
    assert np.array_equal(labels_of(path).array[0], labels)
    raw = tifffile.imread(path) if suffix == ".tif" else np.asarray(Image.open(path))
    assert np.array_equal(raw, as_stored(labels, orientation))
    assert np.array_equal(as_shown(raw, orientation), labels)
    with Image.open(path) as picture:
        assert picture.getexif()[0x0112] == orientation


def test_the_spacing_of_a_turned_tiff_is_turned_and_written_back(tmp_path):
    turned = [(274, 3, 1, 6, True)]
    options = {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "YX", "unit": "um"}}
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 9), extratags=turned, **options)
    volume = image_of(tmp_path / "a.tif")
    assert volume.size == (9, 6) and np.allclose(volume.spacing, (0.00025, 0.0005))
    mask = labels_of(write_labels(tmp_path / "m", volume.array[0] > 100, volume))
    assert np.allclose(mask.spacing, volume.spacing) and np.array_equal(mask.array[0], volume.array[0] > 100)
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert file.pages[0].resolution == (4, 2)


def test_a_tag_that_means_nothing_is_told_and_not_applied(tmp_path):
    volume = image_of(save(tmp_path / "a.tif", noise(6, 9), 9))
    assert np.array_equal(volume.array[0], noise(6, 9))
    assert volume.meta.notes == ("its orientation tag is 9, which means nothing and is not applied",)
    assert image_of(save(tmp_path / "b.tif", noise(6, 9), 1)).meta.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_probabilities_lie_on_the_pixels_of_the_mask_file(tmp_path, suffix, orientation):
    volume = image_of(save(tmp_path / f"a{suffix}", noise(6, 9), orientation))
    labels = (volume.array[0] > 100).astype(np.uint8)
    path = write_labels(tmp_path / "m", labels, volume)
    mask = tifffile.imread(path) if suffix == ".tif" else np.asarray(Image.open(path))
    maps = np.stack([1.0 - labels, labels]).astype(np.float32)
    with np.load(write_probabilities(tmp_path / "p", maps, volume)) as file:
        assert np.array_equal(file["probabilities"].argmax(0), mask)
