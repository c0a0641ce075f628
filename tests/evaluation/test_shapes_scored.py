"""Skeletons, clDice, boundary IoU, volumes and calibration: by hand, by definition, and at the edges."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter, label

from ulna.evaluation.calibration import brier, calibration_scores, ece
from ulna.evaluation.centreline import cldice, skeleton
from ulna.evaluation.contour import boundary_iou
from ulna.evaluation.further import further_scores, volume_error


def smooth(seed, size, share):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=size), 2)
    return field > np.quantile(field, 1 - share)


def euler(mask):
    """Corners - edges + faces (- cubes) of the voxels of a mask, neighbours by a corner included."""
    total = 0
    for axes in np.ndindex(*(2,) * mask.ndim):  # 1: the cell is as long as a voxel along the axis, 0: its end
        padded = np.pad(mask, 1)
        for axis, long in enumerate(axes):
            if not long:
                near = [np.take(padded, range(a, padded.shape[axis] - 1 + a), axis) for a in (0, 1)]
                padded = near[0] | near[1]
        total += (-1) ** sum(axes) * np.count_nonzero(padded)
    return total


@pytest.mark.parametrize("size", [(40, 50), (18, 20, 22)])
@pytest.mark.parametrize("seed", range(4))
def test_a_skeleton_keeps_pieces_holes_and_tunnels(size, seed):
    mask = smooth(seed, size, 0.3)
    thin = skeleton(mask)
    assert not (thin & ~mask).any() and thin.sum() < mask.sum() / 2
    full = np.ones((3,) * mask.ndim)
    assert label(thin, full)[1] == label(mask, full)[1]
    assert label(np.pad(~thin, 1, constant_values=True))[1] == label(np.pad(~mask, 1, constant_values=True))[1]
    assert euler(thin) == euler(mask)
    assert np.array_equal(skeleton(thin), thin)


def test_the_skeleton_of_a_bar_is_its_axis():
    bar = np.zeros((9, 40), dtype=bool)
    bar[2:7, 3:37] = True
    rows, columns = np.nonzero(skeleton(bar))
    assert set(rows[(columns > 8) & (columns < 31)]) == {4} and np.ptp(columns) >= 25


def test_a_line_is_its_own_skeleton():
    line = np.zeros((7, 7, 9), dtype=bool)
    line[3, 3, 1:6] = line[3, 4, 6] = line[4, 5, 7] = True
    assert np.array_equal(skeleton(line), line)


def test_cldice_sees_a_gap_that_dice_forgives():
    vessel = np.zeros((20, 60), dtype=bool)
    vessel[8:13] = True
    thicker, half = vessel.copy(), vessel.copy()
    thicker[7:14], half[:, 30:] = True, False
    assert cldice(thicker, vessel) == 1.0
    assert cldice(vessel, vessel) == 1.0
    assert cldice(half, vessel) == pytest.approx(
        2 / 3, abs=0.04
    )  # all of its line is right, half of the vessel's is found
    empty = np.zeros_like(vessel)
    assert cldice(empty, vessel) == cldice(vessel, empty) == 0
    assert math.isnan(cldice(empty, empty)) and cldice(empty, empty, 1.0) == 1


def test_boundary_iou_of_images_is_that_of_erosions():
    """The authors' public code: as many 3x3 erosions as 2 % of the diagonal, beyond the border nothing."""
    for seed in range(12):
        prediction, reference = smooth(seed, (90, 120), 0.4), smooth(seed + 50, (90, 120), 0.5)
        bands = [
            mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=3, border_value=0)
            for mask in (prediction, reference)
        ]
        expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
        assert boundary_iou(prediction, reference, (1, 1)) == pytest.approx(expected, abs=1e-12)


def test_boundary_iou_of_volumes_is_of_a_band_of_2_mm():
    cube = np.zeros((20, 20, 20), dtype=bool)
    cube[5:15, 5:15, 5:15] = True
    hollow = cube.copy()
    hollow[8:12, 8:12, 8:12] = False
    assert boundary_iou(cube, cube, (1, 1, 1)) == 1
    # the band of the cube is 1000 - 6^3; a hole further in has a band of its own, of all voxels within 2 mm of it
    assert 0.5 < boundary_iou(hollow, cube, (1, 1, 1)) < 0.9
    assert boundary_iou(hollow, cube, (9, 9, 9)) < boundary_iou(hollow, cube, (1, 1, 1))  # a voxel at least
    empty = np.zeros_like(cube)
    assert boundary_iou(empty, cube, (1, 1, 1)) == 0 and math.isnan(boundary_iou(empty, empty, (1, 1, 1)))
    assert boundary_iou(empty, empty, (1, 1, 1), 1.0) == 1


def test_a_shifted_large_square_is_judged_by_its_contour():
    square = np.zeros((200, 200), dtype=bool)
    square[20:180, 20:180] = True
    shifted = np.roll(square, 3, axis=0)
    overlap = (square & shifted).sum() / (square | shifted).sum()
    assert overlap > 0.95 and boundary_iou(shifted, square, (1, 1)) < 0.7


def test_volume_error_is_in_ml_and_bias_has_a_sign():
    prediction, reference = np.zeros((2, 10, 10, 10), dtype=bool)
    prediction[:5], reference[:8] = True, True
    assert volume_error(prediction, reference, (2, 1, 5)) == pytest.approx((3.0, -3.0))  # 300 voxels of 10 mm3
    assert volume_error(reference, prediction, (2, 1, 5)) == pytest.approx((3.0, 3.0))
    empty = np.zeros_like(reference)
    assert volume_error(empty, reference, (2, 1, 5)) == pytest.approx((8.0, -8.0))
    assert all(map(math.isnan, volume_error(empty, empty, (1, 1, 1)))) and volume_error(
        empty, empty, (1, 1, 1), 1.0
    ) == (0, 0)


def test_calibration_by_hand():
    p = np.array([0.05, 0.05, 0.95, 0.95])
    assert ece(p, np.array([False, False, True, True])) == pytest.approx(0.05)
    assert ece(p, np.array([True, True, False, False])) == pytest.approx(0.95)
    assert brier(p, np.array([False, False, True, False])) == pytest.approx((3 * 0.05**2 + 0.95**2) / 4)
    assert ece(np.full(1000, 0.3), np.arange(1000) < 300) == pytest.approx(0, abs=1e-12)
    assert ece(np.array([1.0]), np.array([True])) == 0 and math.isnan(ece(np.zeros(0), np.zeros(0, dtype=bool)))


def test_ece_by_definition():
    rng = np.random.default_rng(0)
    p = rng.random(3000).astype(np.float32)
    true = rng.random(3000) < p**2
    expected = 0.0
    for low in range(15):
        inside = (p >= low / 15) & (p < (low + 1) / 15 if low < 14 else p <= 1)
        expected += inside.mean() * abs(p[inside].astype(float).mean() - true[inside].mean())
    assert ece(p, true) == pytest.approx(expected, abs=1e-6)  # float32: a value may stand on the edge of a bin


def test_a_large_background_hides_in_ece_but_not_in_that_of_the_structure():
    reference = np.zeros((100, 100), dtype=bool)
    reference[:5, :10] = True
    p = np.where(reference, 0.6, 0.0)
    scores = calibration_scores(p, reference, reference)
    assert scores["ece"] < 0.01 and scores["ece_foreground"] == pytest.approx(0.4)
    p[50:] = np.nan  # not known: left out
    assert calibration_scores(p, reference, reference)["ece"] == pytest.approx(2 * scores["ece"])
    assert all(map(math.isnan, calibration_scores(p, ~reference & reference, ~reference & reference).values()))


def test_nothing_is_computed_that_was_not_chosen():
    some = np.ones((3, 3), dtype=bool)
    assert further_scores(some, some, ("overlap", "surface"), spacing=(1, 1)) == ({}, None)
    assert set(further_scores(some, some, ("cldice",), spacing=(1, 1))[0]) == {"cldice"}
