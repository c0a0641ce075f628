"""Colours by hand, slices, and pictures that are whole files of the promised size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tests.data.pipeline.test_orientation import ALL_48, stored_as
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation import figures
from ulna.evaluation.colours import CLASS_COLOURS, to_rgb
from ulna.evaluation.figures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    RIGHT,
    comparison,
    curves,
    outlines_alone,
    overlay,
    panels,
)
from ulna.evaluation.views import Sides, best_slice, flat, view

EPOCHS = [
    {"epoch": e, "lr": 1e-3, "train_loss": 1 / e, "val_dice": d, "val_iou": d / (2 - d), "seconds": 2.0}
    for e, d in ((1, 0.3), (2, 0.8), (3, 0.7))
]


def nearest(pixel: np.ndarray) -> tuple[int, int, int]:
    """Which of the three colours of an overlay a pixel is closest to in hue; None of them for a grey below white."""
    red, _, blue = (int(part) for part in pixel)
    if red - blue > 60:
        return FALSE_POSITIVE
    return FALSE_NEGATIVE if blue - red > 60 else RIGHT


def test_overlay_of_a_4x4_example_has_the_three_colours_in_their_places() -> None:
    image = np.full((1, 4, 4), 7.0)
    image[0, 3] = 9.0
    reference = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    prediction = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
    picture = overlay(image, prediction, reference)
    assert picture.shape == (4, 4, 3) and picture.dtype == np.uint8
    assert nearest(picture[0, 1]) == FALSE_NEGATIVE
    assert nearest(picture[0, 2]) == FALSE_POSITIVE
    assert nearest(picture[2, 1]) == FALSE_POSITIVE, "a wrong class is a false positive"
    for right in ((0, 0), (1, 0), (1, 1), (2, 0)):
        assert len(set(picture[right])) == 1 and picture[right][0] > 120, "right is white"
    assert (picture[0, 3] == 0).all() and 0 < picture[3, 0][0] < 130, "the image stays visible, and dark"
    assert len(set(picture[3, 0])) == 1, "nothing is painted where both are background"


def test_overlay_without_reference_outlines_each_class_and_leaves_its_inside() -> None:
    image = np.zeros((3, 9, 9), np.uint8)
    prediction = np.zeros((9, 9), int)
    prediction[1:6, 1:6], prediction[7, 7] = 1, 2
    picture = overlay(image, prediction)
    painted = picture.any(-1)
    assert painted[1, 1] and painted[7, 7] and not painted[3, 3] and not painted[0, 0]
    assert tuple(picture[1, 1]) != tuple(picture[7, 7])
    assert painted.sum() == 16 + 1  # the ring of a 5x5 square, and one pixel


def test_the_border_of_the_image_is_no_outline() -> None:
    assert not overlay(np.zeros((1, 5, 5)), np.ones((5, 5), int)).any()


@pytest.mark.parametrize("inner", [1, 2])
def test_the_border_of_two_classes_has_one_colour_that_of_the_one_within(inner) -> None:
    """Whichever has the higher number: the class within another one is outlined whole, the other one outside alone."""
    labels = np.zeros((13, 13), np.uint8)
    labels[1:12, 1:12], labels[4:9, 4:9] = 3 - inner, inner
    lines = outlines_alone(labels, 1)
    drawn = {value: (lines == (*CLASS_COLOURS[value - 1], 255)).all(axis=-1) for value in (1, 2)}
    rings = {}
    for value, (start, stop) in {3 - inner: (1, 12), inner: (4, 9)}.items():
        rings[value] = np.zeros((13, 13), bool)
        rings[value][start:stop, start:stop] = True
        rings[value][start + 1 : stop - 1, start + 1 : stop - 1] = False
    for value in (1, 2):
        assert np.array_equal(drawn[value], rings[value])


def test_best_slice_has_the_largest_area_and_is_the_middle_when_empty() -> None:
    labels = np.zeros((6, 7, 8), int)
    labels[2, 2, 1], labels[1:4, 1:4, 6] = 1, 2
    assert best_slice(labels) == (2, 6)
    assert best_slice(np.zeros((6, 7, 8))) == (2, 4)


def test_overlay_of_a_volume_shows_the_best_slice_of_the_reference_upright() -> None:
    reference, prediction = np.zeros((2, 5, 4, 6), int)
    reference[0:3, 0:2, 5] = 1
    prediction[4, 3, 5] = 1
    picture = overlay(np.zeros((1, 5, 4, 6)), prediction, reference)
    assert picture.shape == (4, 5, 3), "the first axis runs to the right"
    assert nearest(picture[3, 0]) == FALSE_NEGATIVE, "index (0, 0) is at the lower left"
    assert nearest(picture[0, 4]) == FALSE_POSITIVE


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_to_rgb_takes_any_number_of_channels(channels: int) -> None:
    image = np.random.default_rng(0).normal(500, 30, (channels, 8, 9))
    picture = to_rgb(image)
    assert picture.shape == (8, 9, 3) and picture.min() == 0 and picture.max() == 255
    assert (picture[..., 0] == picture[..., 1]).all() == (channels != 3)


def test_to_rgb_leaves_8_bit_colour_alone_and_survives_odd_values() -> None:
    colour = np.random.default_rng(0).integers(40, 240, (3, 5, 5), dtype=np.uint8)
    assert (to_rgb(colour) == np.moveaxis(colour, 0, -1)).all()
    assert not to_rgb(np.full((1, 3, 3), 4.0)).any()
    assert to_rgb(np.full((1, 3, 3), np.nan)).shape == (3, 3, 3)
    odd = np.array([[[0.0, 1.0], [np.inf, np.nan]]])
    assert to_rgb(odd)[1, 0, 0] == 255 and to_rgb(odd)[1, 1, 0] == 0
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        to_rgb(np.zeros((4, 4)))


@pytest.mark.parametrize("rows", [EPOCHS, EPOCHS[:1], [{"epoch": 1, "train_loss": math.nan}], []])
def test_curves_are_drawn_for_any_number_of_epochs(rows, tmp_path) -> None:
    path = curves(rows, tmp_path / "figures" / "curves.png")
    with Image.open(path) as picture:
        assert picture.size == (1800, 700)
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_curves_for_dark_pages_are_dark(tmp_path) -> None:
    light, dark = (
        np.asarray(Image.open(curves(EPOCHS, tmp_path / f"{d}.png", dark=d)).convert("L")).mean() for d in (False, True)
    )
    assert light > 200 and dark < 60


def test_panels_take_any_name_and_rows_of_different_length(tmp_path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    rows = [("case_$1$ 核 <b>", [("image", picture), ("errors", picture)]), ("b", [("image", picture)])]
    with Image.open(panels(rows, tmp_path / "panels.png")) as sheet:
        assert sheet.width > 500 and sheet.height > 500
    panels([], tmp_path / "empty.png", legend=())


def test_short_rows_of_a_sheet_stand_beside_each_other_on_light_paper(tmp_path) -> None:
    picture = figures.Picture("a", np.zeros((20, 20, 3), np.uint8))
    rows = [("long", [picture] * 4), ("one", [picture]), ("two", [picture] * 2), ("three", [picture] * 3), ("none", [])]
    packed = figures._packed(rows, 4)
    assert [[title for title, _ in strip] for strip in packed] == [["long"], ["one", "two"], ["three", "none"]]
    with Image.open(panels(rows, tmp_path / "sheet.png", legend=())) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert (pixels < 40).mean() < 0.65 and (pixels[:3] > 240).all() and (pixels[:, :3] > 240).all()


def test_an_outline_is_as_wide_as_its_picture_asks_for() -> None:
    small, large = np.zeros((2, 64, 64), int)[0], np.zeros((512, 512), int)
    small[20:40, 20:40], large[160:320, 160:320] = 1, 1
    for labels, width in ((small, 1), (large, 4)):
        painted = overlay(np.zeros((3, *labels.shape), np.uint8), labels).any(-1)
        assert painted[len(labels) // 2].sum() == 2 * width


def test_a_comparison_of_a_volume_shows_one_slice_four_times() -> None:
    image = np.arange(2 * 5 * 4 * 6, dtype=float).reshape(2, 5, 4, 6)
    reference, prediction = np.zeros((2, 5, 4, 6), int)
    reference[1:4, 1:3, 2], prediction[:, :, 4] = 1, 1
    pictures = dict(comparison(image, prediction, reference))
    assert list(pictures) == ["image", "reference", "prediction", "errors"]
    assert (pictures["image"] == to_rgb(np.rot90(image[0, :, :, 2])[None])).all()
    assert (pictures["errors"] == overlay(image, prediction, reference)).all()
    assert nearest(pictures["errors"][2, 2]) == FALSE_NEGATIVE


def test_overlapping_classes_are_compared_class_by_class() -> None:
    image = np.zeros((1, 4, 4))
    reference, prediction = np.zeros((2, 2, 4, 4), bool)
    reference[:, 0, 0] = prediction[:, 0, 0] = True  # both classes right
    prediction[0, 0, 2] = reference[1, 0, 2] = True  # the wrong one
    reference[:, 2, 0], prediction[0, 2, 0] = True, True  # one of two
    picture = overlay(image, prediction, reference)
    assert picture[0, 0].min() > 100
    assert nearest(picture[0, 2]) == FALSE_POSITIVE and nearest(picture[2, 0]) == FALSE_NEGATIVE
    assert overlay(image, prediction).any()


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path) -> None:
    (tmp_path / "curves.png").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        curves(EPOCHS, tmp_path / "curves.png")


def test_dark_8_bit_colour_is_brightened_by_one_factor() -> None:
    dark = np.zeros((3, 8, 8), np.uint8)
    dark[0, 2:6, 2:6], dark[1, 2:6, 2:6] = 40, 20
    picture = to_rgb(dark)
    assert picture[3, 3].tolist() == [255, 128, 0]
    assert not picture[0, 0].any()


def test_long_captions_fold_at_words():
    assert figures._folded("unet  0.913") == "unet  0.913"
    folded = figures._folded("laird/unet loss.kind=dice_squared  0.238")
    assert folded.split("\n") == ["laird/unet", "loss.kind=dice_squared  0.238"]
    assert figures._folded("one_word_that_is_longer_than_any_picture_is_wide") == (
        "one_word_that_is_longer_than_any_picture_is_wide"
    )


LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@pytest.mark.parametrize(
    ("spacing", "plane", "left", "top"),
    [((1.0, 1.0, 3.0), "axial", "R", "A"), ((1.0, 3.0, 1.0), "coronal", "R", "S"), ((3.0, 1.0, 1.0), "sagittal", "A", "S"),
     ((1.0, 1.0, 1.2), "axial", "R", "A")],
)  # fmt: skip
def test_volumes_are_drawn_in_the_radiological_convention_however_they_are_stored(spacing, plane, left, top) -> None:
    """Brightness rises towards the side that belongs on the left, and twice as fast towards the top."""
    affine = np.diag([*spacing, 1.0])
    index = np.stack(np.meshgrid(*map(np.arange, (8, 9, 10)), indexing="ij"), -1) * spacing
    (across, sign), (up, up_sign) = LETTERS[left], LETTERS[top]
    image = (sign * index[..., across] + 2 * up_sign * index[..., up]).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:4, 3:6, 4:9] = 1
    drawn = []
    for letters in ALL_48[::5]:
        (other, its), (mask, _) = stored_as(image, affine, letters), stored_as(label, affine, letters)
        steps = tuple(np.linalg.norm(its[:3, :3], axis=0).tolist())
        seen = view(Volume(other[None], steps, "mm", its), mask)
        assert seen.sides is not None
        assert (seen.sides.plane, seen.sides.left, seen.sides.top) == (plane, left, top)
        assert (np.diff(seen.image[0], axis=1) < 0).all() and (np.diff(seen.image[0], axis=0) < 0).all()
        assert seen.image.shape[1:] == seen.maps[0].shape
        drawn.append(seen)
    assert all(np.array_equal(one.maps[0], drawn[0].maps[0]) for one in drawn)
    assert drawn[0].maps[0].any()


def test_what_has_no_orientation_is_drawn_as_before() -> None:
    image, mask = np.random.default_rng(0).random((1, 5, 6, 7)), np.zeros((5, 6, 7), np.uint8)
    seen = view(Volume(image, (1.0, 1.0, 1.0)), mask)
    cut = flat(image, mask)
    assert seen.sides is None
    assert np.array_equal(seen.image, cut[0]) and np.array_equal(seen.maps[0], cut[1])


def test_sides_are_written_beside_a_picture(tmp_path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    sides = Sides("axial", "R", "L", "A", "P")
    bare, lettered = tmp_path / "bare.png", tmp_path / "lettered.png"
    panels([("a case", [("image", picture)])], bare, legend=())
    panels([("a case", [figures.Picture("image", picture, sides)])], lettered, legend=())
    with Image.open(bare) as one, Image.open(lettered) as other:
        assert (np.asarray(other.convert("RGB")) != np.asarray(one.convert("RGB"))).any()
