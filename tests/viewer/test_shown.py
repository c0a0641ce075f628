"""What a browser is given: values, places and letters, of pictures and volumes, of all kinds of masks."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from ulna.data.volume import Meta, Volume
from ulna.viewer import shown
from ulna.viewer.sets import joined
from ulna.viewer.shown import write_shown

RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def grey(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_picture_is_shown_as_it_is(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 7), np.uint8)
    colours[:, 0, 0] = 255
    mask = np.arange(35).reshape(5, 7).astype(np.uint8) % 3
    told = write_shown(tmp_path, Volume(colours, (1.0, 1.0)), mask, 2)
    assert np.array_equal(grey(tmp_path / told["shown"]), np.moveaxis(colours, 0, -1))
    assert np.array_equal(grey(tmp_path / told["overlay"]), mask)
    assert (told["dims"], told["values"], told["sides"], told["aspect"], told["step"]) == (
        2,
        [[], [0], [1]],
        None,
        1.0,
        1,
    )


def test_a_slice_lies_as_radiologists_look_at_it(tmp_path):
    """Axes 0 and 1 run to the patient's right and back: what is at the right and in front is drawn top left."""
    affine = np.diag([1.0, -2.0, 1.0, 1.0])
    mask = np.zeros((4, 6), np.uint8)
    mask[-1, 0] = 1  # right and front
    volume = Volume(np.zeros((1, 4, 6), np.float32), (1.0, 2.0), "mm", affine)
    told = write_shown(tmp_path, volume, mask, 1)
    assert told["sides"] == {"plane": "axial", "left": "R", "right": "L", "top": "A", "bottom": "P", "aspect": 2.0}
    assert np.argwhere(grey(tmp_path / told["overlay"])).tolist() == [[0, 0]]
    told = write_shown(tmp_path, Volume(volume.array, (1.0, 2.0), "mm", affine, meta=Meta(oriented=False)), mask, 1)
    assert told["sides"] is None


def test_a_large_picture_is_thinned_with_its_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "MOST_PIXELS", 100)
    mask = np.arange(400).reshape(20, 20).astype(np.uint16)
    told = write_shown(tmp_path, Volume(np.zeros((1, 20, 20), np.uint8), (1.0, 1.0)), mask, 400)
    assert told["step"] == 2
    assert np.array_equal(grey(tmp_path / told["overlay"]), mask[::2, ::2])
    assert grey(tmp_path / told["shown"]).shape == (10, 10, 3)


@pytest.mark.parametrize("kind", [np.int16, np.float64, bool])
def test_a_volume_keeps_values_and_place(tmp_path, kind):
    array = (np.random.default_rng(1).normal(size=(2, 4, 5, 6)) * 50).astype(kind)
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 2
    told = write_shown(tmp_path, Volume(array, (1.0, 2.0, 3.0), "mm", RAS), mask, 2)
    image, overlay = (nibabel.load(tmp_path / told[what]) for what in ("shown", "overlay"))
    assert np.allclose(np.asarray(image.dataobj), array[0].astype(np.float32))
    assert np.allclose(image.affine, RAS) and np.allclose(overlay.affine, RAS)
    assert np.array_equal(np.asarray(overlay.dataobj), mask)
    assert told["window"][0] < told["window"][1] and told["oriented"]


@pytest.mark.parametrize("affine, oriented", [(RAS, True), (RAS, False), (None, False)])
def test_a_place_that_is_assumed_turns_a_volume_and_gives_no_letters(tmp_path, affine, oriented):
    """As `evaluation.views.view` turns what the reports show."""
    array = np.zeros((1, 4, 5, 6), np.uint8)
    volume = Volume(array, (1.0, 2.0, 3.0), "mm", affine, meta=Meta(oriented=oriented))
    told = write_shown(tmp_path, volume, None, 0)
    assert (told["radiological"], told["oriented"]) == (affine is not None, oriented)


def test_values_that_are_no_numbers_are_not_passed_on(tmp_path):
    array = np.full((1, 3, 3, 3), np.nan, np.float32)
    for number, fill in enumerate((np.nan, 4.0)):
        array[0, 0, 0, 0], array[0, 1, 1, 1] = fill, np.inf
        told = write_shown(tmp_path, Volume(array, (1.0, 1.0, 1.0), "mm", RAS), None, 0)
        values = np.asarray(nibabel.load(tmp_path / told["shown"]).dataobj)
        assert np.isfinite(values).all(), number
        assert np.isfinite(told["window"]).all()
        assert told["overlay"] is None


def test_an_array_without_a_place_is_laid_out_by_its_axes(tmp_path):
    """The last axis to the right, the second downwards, and no letters."""
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[0, 1, 5] = 1
    told = write_shown(tmp_path, Volume(np.zeros((1, 4, 5, 6), np.uint8), (3.0, 2.0, 1.0)), mask, 1)
    overlay = nibabel.load(tmp_path / told["overlay"])
    assert overlay.shape == (6, 5, 4) and not told["oriented"]
    assert np.argwhere(np.asarray(overlay.dataobj)).tolist() == [[5, 1, 0]]
    assert np.allclose(np.diag(overlay.affine)[:3], (1, -2, 3))


def test_overlapping_classes_are_sets_of_which_the_smallest_is_drawn_last(tmp_path):
    maps = np.zeros((3, 4, 4), np.uint8)
    maps[1] = 1
    maps[0, :2] = 1
    maps[2, 0, 0] = 1
    told = write_shown(tmp_path, Volume(np.zeros((1, 4, 4), np.uint8), (1.0, 1.0)), maps, 3)
    index = grey(tmp_path / told["overlay"])
    assert [told["values"][index[at]] for at in ((3, 3), (1, 1), (0, 0))] == [[1], [1, 0], [1, 0, 2]]


def test_many_overlapping_classes_need_no_bit_each():
    maps = np.random.default_rng(2).integers(0, 2, (70, 6, 6)).astype(np.uint8)
    index, sets = joined(maps)
    assert index.dtype == np.uint8
    for at in np.ndindex(6, 6):
        assert sorted(sets[index[at]]) == np.flatnonzero(maps[(slice(None), *at)]).tolist()


def test_numbers_of_objects_become_colours_of_one_class(tmp_path):
    objects = np.array([[0, 1, 7, 8], [0, 70000, 2, 2]], np.uint32)
    told = write_shown(tmp_path, Volume(np.zeros((1, 2, 4), np.uint8), (1.0, 1.0)), objects != 0, 1, objects)
    index = grey(tmp_path / told["overlay"])
    assert index.tolist() == [[0, 1, 7, 1], [0, (70000 - 1) % 7 + 1, 2, 2]]
    assert told["objects"] and told["values"] == [[], *[[0]] * 7]


def test_ct_is_shown_in_the_window_for_what_is_segmented(tmp_path):
    array = np.random.default_rng(3).integers(-200, 300, (1, 6, 6, 6)).astype(np.int16)
    volume = Volume(array, (1.0, 1.0, 1.0), "mm", RAS, meta=Meta(format="dicom", modality="CT"))
    told = write_shown(tmp_path, volume, np.ones((6, 6, 6), np.uint8), 1)
    assert told["ct"] and told["window"] == [-160, 240]
