"""Components by slabs are those of scipy on the whole array, and cleaning never mixes classes."""

import numpy as np
import pytest
from scipy import ndimage

from ulna.recipe import Labels
from ulna.trust.cleaning import Changed, Rule, clean
from ulna.trust.components import box_of, find_components


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size", [(37,), (23, 31), (13, 17, 11), (1, 9, 9)])
@pytest.mark.parametrize("slab", [1, 150, 1 << 20])
def test_slabs_give_the_components_of_the_whole(size, corners, slab):
    for seed in range(5):
        mask = np.random.default_rng(seed).random(size) < (0.25 if corners else 0.5)
        structure = ndimage.generate_binary_structure(len(size), len(size) if corners else 1)
        expected, count = ndimage.label(mask, structure)
        found = find_components(lambda rows, mask=mask: mask[rows], size, corners=corners, slab=slab)
        numbers = np.concatenate([part for _, part in found.numbers()])
        assert len(found.sizes) == count + 1
        pairs = np.unique(np.stack([expected.ravel(), numbers.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(expected))  # one to one
        assert found.sizes.tolist() == np.bincount(numbers.ravel(), minlength=count + 1).tolist()
        faces = np.zeros(size, bool)
        for axis in range(len(size)):
            faces[tuple(slice(None) if a != axis else [0, -1] for a in range(len(size)))] = True
        assert found.outer[1:].tolist() == [bool(faces[numbers == n].any()) for n in range(1, count + 1)]


def test_an_empty_mask_has_no_component_and_no_box():
    mask = np.zeros((4, 5), bool)
    assert find_components(lambda rows: mask[rows], mask.shape).sizes.tolist() == [20]
    assert box_of(mask) is None


TWO = Labels(names=("background", "organ", "tumour"))


@pytest.mark.parametrize("slab", [1, 1 << 20])
def test_holes_are_filled_as_scipy_fills_them(slab, monkeypatch):
    monkeypatch.setattr("ulna.trust.components.SLAB", slab)
    for seed in range(5):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(30, 28, 20)), 0.8)
        mask = (noise > -0.15).astype(np.uint8)
        expected = ndimage.binary_fill_holes(mask)
        assert expected.sum() > mask.sum()
        changed = clean(mask, Labels(), {"foreground": Rule(holes=True)}, 1.0)
        assert np.array_equal(mask, expected)
        assert changed["foreground"].removed == 0


def test_a_hole_that_another_class_borders_on_stays_open():
    mask = np.zeros((9, 9), np.uint8)
    mask[1:8, 1:8] = 1
    mask[2:4, 2:4] = 0  # a hole of the organ
    mask[5:7, 5:7] = 0  # one that a tumour borders on
    mask[5, 4] = 2
    before = mask.copy()
    changed = clean(mask, TWO, {"organ": Rule(holes=True), "tumour": Rule(holes=True)}, 1.0)
    assert changed == {"organ": Changed(0, 4), "tumour": Changed(0, 0)}
    assert (mask[2:4, 2:4] == 1).all() and (mask[5:7, 5:7] == 0).all()
    assert np.array_equal(mask[before != 0], before[before != 0])


def test_a_hole_with_a_way_out_stays_open():
    mask = np.ones((6, 6), np.uint8)
    mask[2:4, 2:4] = 0
    closed = mask.copy()
    clean(closed, Labels(), {"foreground": Rule(holes=True)}, 1.0)
    assert closed.all()
    mask[:2, 2] = 0  # a way to the border of the image
    before = mask.copy()
    clean(mask, Labels(), {"foreground": Rule(holes=True)}, 1.0)
    assert np.array_equal(mask, before)


def test_only_small_objects_of_the_class_go_and_become_background():
    mask = np.zeros((10, 20), np.uint8)
    mask[1:5, 1:5] = 1  # 16
    mask[1:3, 8:11] = 1  # 6
    mask[7, 7] = 1
    mask[6:9, 12:15] = 2
    mask[0, 19] = 2
    largest, small = mask.copy(), mask.copy()
    assert clean(largest, TWO, {"organ": Rule(largest=True)}, 1.0) == {"organ": Changed(7, 0)}
    assert (largest == 1).sum() == 16 and np.array_equal(largest == 2, mask == 2)
    assert clean(small, TWO, {"organ": Rule(smallest=1.0)}, 0.5) == {"organ": Changed(1, 0)}  # two voxels are 1.0
    assert (small == 1).sum() == 22
    everything = mask.copy()
    clean(everything, TWO, {"organ": Rule(smallest=100.0)}, 1.0)
    assert np.array_equal(everything == 1, largest == 1)  # never all of a class


def test_overlapping_classes_are_cleaned_each_in_its_map():
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[0, 1:6, 1:6] = 1
    mask[0, 3, 3] = 0
    mask[1, 3, 3] = 1
    labels = Labels(names=("a", "b"), multilabel=True)
    clean(mask, labels, {"a": Rule(holes=True), "b": Rule(largest=True)}, 1.0)
    assert mask[0, 3, 3] == 1 and mask[1].sum() == 1
