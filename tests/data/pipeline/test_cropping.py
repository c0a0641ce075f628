"""What a plan keeps of an image, and the way of an answer back into the whole of it, against loops over single voxels."""

import itertools

import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.pipeline.cropping import crop_of, without_margins
from ulna.data.pipeline.preprocess import grid_of, pad_to_patch, prepare, prepare_labels, restored
from ulna.data.volume import Volume
from ulna.inference.volume import on_own_grid
from ulna.recipe import Normalization

NONE = (Normalization(kind="none"),)
SIZES = [
    ((9, 12), (4, 6)),
    ((8, 5), (5, 8)),  # cropped along one axis, padded along the other
    ((7, 7), (None, 3)),
    ((3, 2), (6, 7)),
    ((1, 9), (4, 1)),
    ((6, 5, 7), (3, None, 10)),
]


def volume(size, seed=0, spacing=None):
    array = np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)
    return Volume(array, spacing or (1.0,) * len(size), "mm")


def plan_for(shape, crop, **changes):
    dims = len(shape)
    fields = {"spatial_dims": dims, "spacing": (1.0,) * dims, "unit": "mm", "normalization": NONE, "crop": crop}
    return make(**fields | changes)


def literal_crop(array, crop):
    """(*S) -> (*crop), voxel by voxel."""
    wanted = [n if c is None else c for n, c in zip(array.shape, crop, strict=True)]
    made = np.empty(wanted, array.dtype)
    for place in np.ndindex(*wanted):
        source = []
        for i, n, c in zip(place, array.shape, wanted, strict=True):
            first = (n - c) // 2 if n >= c else -((c - n) // 2)
            source.append(min(max(first + i, 0), n - 1))
        made[place] = array[tuple(source)]
    return made


@pytest.mark.parametrize(("size", "crop"), SIZES)
def test_the_middle_of_an_image_is_kept_and_short_axes_repeat_their_ends(size, crop):
    v, plan = volume(size), plan_for(size, crop)
    prepared = prepare(v, plan)
    np.testing.assert_array_equal(prepared.image[0], literal_crop(v.array[0], crop))
    assert grid_of(v, plan) == tuple(prepared.image.shape[1:])
    assert prepared.image.untyped_storage().nbytes() == prepared.image.nbytes  # kept cases hold no more than they show
    labels = np.random.default_rng(1).integers(0, 300, size).astype(np.uint16)
    np.testing.assert_array_equal(prepare_labels(labels, v, plan), literal_crop(labels, crop))


@pytest.mark.parametrize(("size", "crop"), SIZES)
def test_an_answer_lies_where_it_was_taken_from_and_beyond_it_is_background(size, crop):
    v = volume(size)
    prepared = prepare(v, plan_for(size, crop))
    maps = torch.cat([prepared.image, prepared.image + 1])
    expected = np.stack([np.full(size, 0.25, np.float32), np.full(size, -1, np.float32)])
    for place in np.ndindex(*size):
        firsts = [max(n - (c or n), 0) // 2 for n, c in zip(size, crop, strict=True)]
        if all(f <= i < f + (c or n) for i, f, n, c in zip(place, firsts, size, crop, strict=True)):
            expected[(slice(None), *place)] = v.array[(0, *place)], v.array[(0, *place)] + 1
    for axis, rows in itertools.product(range(len(size)), (1, 2, 100)):
        slabs = without_margins((slab.clone() for slab in maps.split(rows, dim=axis + 1)), prepared.margins, axis)
        back = on_own_grid(slabs, prepared, axis, torch.tensor([0.25, -1.0])).maps()
        np.testing.assert_array_equal(back, expected)


def test_margins_come_off_slab_by_slab():
    maps = torch.arange(2 * 7 * 6, dtype=torch.float32).reshape(1, 2 * 7, 6)
    sides = ((3, 4), (1, 0))
    for axis, rows in itertools.product((0, 1), (1, 2, 3, 5, 14)):
        slabs = (slab.clone() for slab in maps.split(rows, dim=axis + 1))
        inner = torch.cat([one.clone() for one in without_margins(slabs, sides, axis)], dim=axis + 1)
        assert torch.equal(inner, maps[:, 3:-4, 1:])


def test_margins_of_a_crop_and_of_a_patch_add_up():
    v = volume((4, 9))
    plan = plan_for((4, 9), (7, 5), patch=(10, 8))
    prepared = pad_to_patch(prepare(v, plan), plan.patch)
    assert prepared.image.shape == (1, 10, 8)
    assert prepared.margins == ((1 + 1, 2 + 2), (1, 2))
    assert torch.equal(prepared.image[prepared.inside], torch.from_numpy(v.array[:, :, 2:7]))


@pytest.mark.parametrize("spacing", [(2.0, 0.5), (0.7, 1.3), (3.0, 3.0)])
def test_a_crop_is_of_the_resampled_image_and_goes_back_to_the_voxels_that_it_stands_for(spacing):
    """Within what is kept the answer is that of the whole image, up to the outermost point on each side."""
    v = volume((24, 21))
    whole = prepare(v, plan_for((24, 21), None, spacing=spacing))
    kept = prepare(v, plan_for((24, 21), (5, 6), spacing=spacing))
    corner = [(n - c) // 2 for n, c in zip(whole.image.shape[1:], (5, 6), strict=True)]
    inner = whole.image[:, corner[0] : corner[0] + 5, corner[1] : corner[1] + 6]
    assert torch.equal(kept.image, inner)
    back, reference = (
        torch.cat([slab.clone() for slab in restored([one.image.clone()], one)], dim=1) for one in (kept, whole)
    )
    assert back.shape == (1, 24, 21)
    inside = np.zeros((24, 21), bool)
    sure = np.zeros((24, 21), bool)  # between two points that are kept
    for place in np.ndindex(24, 21):
        at = [
            (i - (n - 1) / 2) / r + (count - 1) / 2 - first
            for i, n, r, count, first in zip(place, (24, 21), spacing, whole.image.shape[1:], corner, strict=True)
        ]
        inside[place] = all(-0.5 <= g < c - 0.5 for g, c in zip(at, (5, 6), strict=True))
        sure[place] = all(0 <= g <= c - 1 for g, c in zip(at, (5, 6), strict=True))
    assert sure.any()
    torch.testing.assert_close(back[0][torch.from_numpy(sure)], reference[0][torch.from_numpy(sure)])
    assert not back[0][torch.from_numpy(~inside)].any() and back[0][torch.from_numpy(inside)].all()


def test_one_voxel_at_least_is_kept():
    """Of an image that gets finer, a point may stand for less than a voxel."""
    crop = crop_of((5,), (0.1,), (1,))
    ((begin, end),) = crop.voxels
    assert end - begin == 1 and 0 <= begin < 5


def test_mean_and_deviation_are_those_of_what_is_kept():
    v = Volume(np.full((1, 8, 8), 1000.0, np.float32), (1.0, 1.0), "mm")
    v.array[0, 2:6, 2:6] = np.random.default_rng(0).normal(5, 2, (4, 4))
    plan = plan_for((8, 8), (4, 4), normalization=(Normalization(kind="zscore"),))
    made = prepare(v, plan).image
    assert float(made.mean()) == pytest.approx(0, abs=1e-6)
    assert float(made.std(correction=0)) == pytest.approx(1, abs=1e-6)
    padded = prepare(v, plan.replaced(crop=(10, 12))).image
    np.testing.assert_allclose(padded[0, 1:9, 2:10], prepare(v, plan.replaced(crop=None)).image[0])


@pytest.mark.parametrize("wanted", [(5, 7), (20, 4), (None, 6), (12, 9)])
def test_every_image_gets_the_size(wanted):
    """The step is exact: what is linear along an axis stays so, with the value at the middle of every new voxel."""
    for size in ((12, 9), (30, 41)):
        ramp = np.arange(size[0], dtype=np.float32)[:, None] + 100 * np.arange(size[1], dtype=np.float32)
        v = Volume(ramp[None], (0.3, 0.4), "mm")
        prepared = prepare(v, plan_for(size, None, size=wanted, spacing=(0.3, 0.4)))
        expected = tuple(w or n for w, n in zip(wanted, size, strict=True))
        assert tuple(prepared.image.shape[1:]) == expected
        places = [(np.arange(c) + 0.5) * n / c - 0.5 for n, c in zip(size, expected, strict=True)]
        far = [(r >= n / c) & (r <= n - 1 - n / c) for r, n, c in zip(places, size, expected, strict=True)]
        value = places[0][:, None] + 100 * places[1]
        inner = far[0][:, None] & far[1]
        np.testing.assert_allclose(prepared.image[0].numpy()[inner], value[inner], rtol=1e-4)
        assert torch.cat([*restored([prepared.image.clone()], prepared)], dim=1).shape == (1, *size)


def test_along_an_axis_that_is_kept_every_image_keeps_its_own_voxels():
    plan = plan_for((6, 5, 8), None, spacing=(0.7, 0.7, 2.5), kept_axes=(0, 1))
    for spacing in ((0.5, 0.9, 1.25), (2.0, 1.0, 5.0)):
        v = volume((6, 5, 8), spacing=spacing)
        prepared = prepare(v, plan)
        assert prepared.step == (1.0, 1.0, 2.5 / spacing[2])
        assert tuple(prepared.image.shape[1:]) == (6, 5, round(8 * spacing[2] / 2.5))
