"""Turns to canonical axes: nibabel's where those are clear, the same in the world whatever the order, and back exactly."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from ulna.data.pipeline.orientation import AS_STORED, codes, to_canonical, turned, world_of
from ulna.data.volume import Volume

ALL_48 = ["".join(ends) for order in itertools.permutations(("LR", "PA", "IS")) for ends in itertools.product(*order)]


def stored_as(array, affine, letters):
    """The same image in another orientation, by nibabel."""
    image = nib.Nifti1Image(array, affine)
    other = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(letters)))
    return np.asarray(other.dataobj), other.affine


def oblique(degrees, spacing=(0.7, 1.1, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.0, 55.5)
    return affine


@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -14, 22), (-30, 5, 12)])
def test_all_48_orientations_become_one_and_go_back(degrees):
    array, affine = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16), oblique(degrees)
    assert to_canonical(affine, 3) == AS_STORED
    for letters in ALL_48:
        other, its = stored_as(array, affine, letters)
        turn = to_canonical(its, 3)
        assert codes(its, 3) == letters
        assert np.array_equal(turn.forward(other), array)
        assert np.array_equal(turn.back(turn.forward(other)), other)
        np.testing.assert_allclose(turn.affine(its, other.shape), affine, atol=1e-9)
        assert turn.order(other.shape) == array.shape
        assert turn.stored(turn.order(("a", "b", "c"))) == ("a", "b", "c")


def test_the_turn_is_nibabels_where_axes_are_near_the_worlds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        affine = oblique(rng.uniform(-35, 35, 3) / 1.5)
        affine[:3, :3] = affine[:3, rng.permutation(3)] * rng.choice([-1, 1], 3)
        array = rng.integers(0, 99, (3, 4, 5)).astype(np.int16)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        seen = turned(Volume(array[None], (1.0, 1.0, 1.0), "mm", affine), to_canonical(affine, 3))
        assert np.array_equal(seen.array[0], np.asarray(canonical.dataobj))
        np.testing.assert_allclose(seen.affine, canonical.affine, atol=1e-9)


@pytest.mark.parametrize("degrees", [(0, 0, 45), (45, 0, 0), (35, 45, 50), (60, 50, 40), (45, 35.26439, 45)])
def test_far_from_all_axes_the_world_decides_and_not_the_order_in_the_file(degrees):
    array, affine = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), oblique(degrees, (1.0, 1.0, 1.0))
    first = None
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            other = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            its = affine.copy()
            for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
                its[:3, new] = sign * affine[:3, old]
                its[:3, 3] += (sign < 0) * affine[:3, old] * (array.shape[old] - 1)
            turn = to_canonical(its, 3)
            seen, where = turn.forward(other), turn.affine(its, other.shape)
            first = first or (seen, where)
            assert np.array_equal(seen, first[0])
            np.testing.assert_allclose(where, first[1], atol=1e-9)


@pytest.mark.parametrize(("flat", "plane"), [(2, (0, 1)), (1, (0, 2)), (0, (1, 2))])
def test_slices_are_turned_in_their_plane(flat, plane):
    shape = [4, 5, 6]
    shape[flat] = 1
    array, affine = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16), oblique((5, 8, -9))
    straight = np.squeeze(array, flat)
    for letters in ALL_48:
        other, its = stored_as(array, affine, letters)
        thin = other.shape.index(1)
        its = its[:, [*(axis for axis in range(3) if axis != thin), thin, 3]]
        assert world_of(its, 2) == plane
        assert np.array_equal(to_canonical(its, 2).forward(np.squeeze(other, thin)), straight)
        assert codes(its, 2) == letters.replace(letters[thin], "")
