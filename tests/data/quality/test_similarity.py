"""Nearly equal images are found, different ones of one apparatus are not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from ulna.data.quality.similarity import alike, thumbnail


def scene(seed, *size):
    """(1, *S), 0..255, with structure at several scales."""
    rng = np.random.default_rng(seed)
    parts = [gaussian_filter(rng.standard_normal(size), sigma) * sigma ** (len(size) / 2) for sigma in (1, 3, 6)]
    image = sum(parts)
    return (255 * (image - image.min()) / np.ptp(image))[None]


def as_jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image[0].astype(np.uint8)).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))[None]


CHANGES = {
    "none": lambda image: image,
    "brighter": lambda image: image * 1.2 + 10,
    "noise": lambda image: image + np.random.default_rng(9).normal(0, 0.1 * image.std(), image.shape),
    "blurred": lambda image: gaussian_filter(image, (0, *[0.7] * (image.ndim - 1))),
    "cut by a pixel": lambda image: image[..., 1:],
    "as colour": lambda image: np.repeat(image, 3, axis=0),
    "as 16 bits": lambda image: (image * 200).astype(np.uint16),
}


@pytest.mark.parametrize("size", [(160, 140), (40, 44, 36)])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_others_are_not(size, change):
    images = {f"c{seed}": scene(seed, *size) for seed in range(6)}
    images["copy"] = CHANGES[change](images["c2"])
    assert alike({name: thumbnail(image) for name, image in images.items()}) == [("c2", "copy")]


def test_jpeg_and_half_the_size():
    images = {f"c{seed}": scene(seed, 160, 140) for seed in range(6)}
    images["jpeg"], images["half"] = as_jpeg(images["c1"]), images["c4"].reshape(1, 80, 2, 70, 2).mean((2, 4))
    assert alike({name: thumbnail(image) for name, image in images.items()}) == [("c1", "jpeg"), ("c4", "half")]


def test_what_all_images_share_is_no_likeness():
    rows, columns = np.ogrid[:160, :160]
    eye = ((rows - 80) ** 2 + (columns - 80) ** 2 < 75**2) * 200.0
    eyes = {f"c{seed}": eye + 0.5 * scene(seed, 160, 160) for seed in range(8)}
    assert alike({name: thumbnail(image) for name, image in eyes.items()}) == []
    eyes["copy"] = eyes["c3"] * 0.9
    assert alike({name: thumbnail(image) for name, image in eyes.items()}) == [("c3", "copy")]


@pytest.mark.parametrize("array", [np.full((1, 9, 9), 7), np.full((1, 40, 40), np.nan), np.zeros((1, 1, 1))])
def test_an_image_without_detail_looks_like_nothing(array):
    assert thumbnail(array) is None


def test_small_and_flat_images_have_a_look():
    assert (
        thumbnail(scene(0, 5, 6)).size == 1024
        and thumbnail(scene(0, 1, 64)).size == 1024
        and thumbnail(scene(0, 3, 9, 9)).size == 1728
    )
