"""What is drawn: ranges, how often, the same by the same stream, and what thick slices forbid."""

import numpy as np
import pytest

from tests.data.pipeline.augment.nothing import only
from tests.plans import make
from ulna.data.pipeline.augment.draws import Drawing
from ulna.data.pipeline.patches import sample_stream
from ulna.recipe import Augmentation


def drawn(settings, count=200, **plan):
    drawing = Drawing(settings, make(**plan))
    return [drawing(sample_stream(0, 0, number)) for number in range(count)]


def test_a_stream_draws_the_same_again():
    """To the bit in one process, whatever the processor: a training that goes on repeats its samples so."""
    for one, two in zip(drawn(Augmentation(elastic=2.0)), drawn(Augmentation(elastic=2.0)), strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(two, name)), name


def test_every_change_comes_as_often_as_asked():
    everything = Augmentation(affine=0.4, intensity=0.3, gamma=0.15, noise=0.1, blur=0.2)
    found = drawn(everything, 2000)
    for name, share in {"matrix": 0.4, "scale": 0.3, "shift": 0.3, "gamma": 0.15, "noise": 0.1, "blur": 0.2}.items():
        assert np.mean([getattr(one, name) is not None for one in found]) == pytest.approx(share, abs=0.05)
    assert np.mean([one.scale is not None and one.shift is not None for one in found]) == pytest.approx(0.09, abs=0.03)
    assert np.mean([0 in one.flips for one in found]) == pytest.approx(0.5, abs=0.05)
    assert {one.quarters for one in found} == {0, 1, 2, 3}


def test_brightness_and_contrast_may_differ_and_are_else_as_before():
    contrast = drawn(only(intensity=0.5, brightness=0.0), 400)
    assert all(one.shift is None for one in contrast)
    assert np.mean([one.scale is not None for one in contrast]) == pytest.approx(0.5, abs=0.1)
    brightness = drawn(only(brightness=1.0), 100)
    assert all(one.scale is None and one.shift is not None for one in brightness)
    same = drawn(only(intensity=0.3, brightness=0.3, contrast=0.3))
    assert [(a.scale, a.shift) for a in same] == [(b.scale, b.shift) for b in drawn(only(intensity=0.3))]


def test_changes_of_intensity_stay_within_their_ranges():
    found = drawn(only(intensity=1.0, gamma=1.0, noise=1.0, blur=1.0))
    for values, low, high in (
        ([one.scale for one in found], -0.25, 0.25),
        ([one.shift for one in found], -0.2, 0.2),
        ([one.gamma for one in found], 0.7, 1.5),
        ([one.noise[1] for one in found], 0, 0.1),
        ([sigma for one in found for sigma in one.blur], 0.5, 1.0),
    ):
        width = high - low
        assert low <= min(values) < low + 0.1 * width
        assert high - 0.1 * width < max(values) <= high
    assert len({one.noise[0] for one in found}) == len(found)


def test_flips_and_quarter_turns_go_by_the_plan():
    found = drawn(only(flip=1.0, quarter_turn=1.0), spatial_dims=3, mirror_axes=(0, 2), turn_axes=None)
    assert {(one.flips, one.quarters) for one in found} == {((0, 2), 0)}


@pytest.mark.parametrize("dims", [2, 3])
def test_scaling_is_by_one_factor_along_every_axis(dims):
    found = drawn(only(affine=1.0, degrees=0, scale=0.15), spatial_dims=dims, spacing=(3.0, 0.8, 0.8)[:dims])
    factors = [one.matrix[0, 0] for one in found]
    for one, factor in zip(found, factors, strict=True):
        assert np.array_equal(one.matrix, factor * np.eye(dims))  # products with 0 and 1 are exact anywhere
    assert 0.85 <= min(factors) < 0.87
    assert 1.13 < max(factors) <= 1.15


@pytest.mark.parametrize("dims", [2, 3])
def test_turns_are_rigid_in_mm_whatever_the_spacing(dims):
    found = drawn(only(affine=1.0, degrees=15, scale=0), spatial_dims=dims, spacing=(1.25, 0.8, 1.0)[:dims])
    for one in found:
        np.testing.assert_allclose(one.matrix.T @ one.matrix, np.eye(dims), atol=1e-12)
        assert np.linalg.det(one.matrix) == pytest.approx(1)
    angles = [np.rad2deg(np.arcsin(one.matrix[1, 0])) for one in found]
    if dims == 2:
        assert -15 <= min(angles) < -14
        assert 14 < max(angles) <= 15
    else:
        assert all(abs(one.matrix[a, b]) > 0 for one in found for a, b in ((0, 1), (0, 2), (1, 2)))


def test_thick_slices_are_turned_sheared_and_bent_within_themselves_only():
    settings = only(affine=1.0, degrees=15, scale=0, shear=10, elastic=2.0)
    found = drawn(settings, spatial_dims=3, spacing=(0.8, 0.8, 5.0))
    for one in found:
        assert np.array_equal(one.matrix[2], [0, 0, 1])
        assert np.array_equal(one.matrix[:, 2], [0, 0, 1])
        assert not one.bends[2].any()
        assert one.bends[:2].all()
    assert max(abs(one.matrix[0, 1]) for one in found) > 0.2
    for one in drawn(settings, spatial_dims=3, spacing=(5.0, 0.8, 0.8)):
        assert np.array_equal(one.matrix[0], [1, 0, 0])


def test_a_deformation_alone_and_brightness_without_contrast_come_as_often_as_asked():
    found = drawn(
        only(affine=0.2, elastic=2.0, elastic_probability=0.5, intensity=0.9, brightness=0.0, contrast=0.3), 2000
    )
    assert np.mean([one.bends is not None for one in found]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([one.matrix is not None for one in found]) == pytest.approx(0.6, abs=0.05)
    alone = [one for one in found if one.bends is not None and np.array_equal(one.matrix, np.eye(2))]
    assert len(alone) == pytest.approx(0.4 * 2000, abs=100)
    assert not any(one.shift is not None for one in found)
    assert np.mean([one.scale is not None for one in found]) == pytest.approx(0.3, abs=0.05)


def test_what_is_left_out_draws_the_same_numbers_as_what_it_stands_for():
    """A run of an earlier recipe goes on with the same samples."""
    ours = drawn(only(affine=0.5, elastic=1.0, intensity=0.4, gamma=0.5))
    stated = drawn(only(affine=0.5, elastic=1.0, intensity=0.1, brightness=0.4, contrast=0.4, gamma=0.5))
    for one, other in zip(ours, stated, strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(other, name)), name


def test_elastic_deformations_are_drawn_in_mm():
    bends = np.stack([one.bends for one in drawn(only(affine=1.0, elastic=3.0), spatial_dims=3)])
    assert bends.shape == (200, 3, 3, 3, 3)
    assert bends.std() == pytest.approx(3.0, rel=0.05)
    assert all(one.bends is None for one in drawn(only(affine=1.0)))
