"""Runs of plan format 1 see what they saw: the axes of the file, fields of view aligned, torch's own interpolation."""

import numpy as np
import pytest
import tifffile
import torch
from torch.nn.functional import interpolate

from tests.plans import make
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.pipeline import format_1
from ulna.data.pipeline.preprocess import prepare, prepare_labels, restored
from ulna.data.volume import Volume
from ulna.recipe import Normalization

NONE = (Normalization(kind="none"),)
# `restore` interpolates one axis by itself and torch all at once: eight products of numbers about 1, added in another order
FLOAT32 = 1e-5
LAS = np.diag([-1.0, 1.0, 2.0, 1.0])


def image(seed=0):
    array = np.random.default_rng(seed).normal(size=(1, 9, 8, 11)).astype(np.float32)
    return Volume(array, (1.0, 1.0, 2.0), "mm", LAS)


def test_nothing_is_turned_and_nothing_resampled_where_the_plan_has_no_spacing():
    plan = make(format=1, spatial_dims=3, unit="mm", normalization=NONE)
    other = Volume(image().array, (3.0, 1.0, 1.0), "mm", LAS)
    assert torch.equal(prepare(other, plan).image, torch.from_numpy(other.array))


def test_images_and_labels_are_resampled_as_they_were():
    plan = make(format=1, spatial_dims=3, spacing=(1.3, 0.6, 1.0), unit="mm", normalization=NONE)
    v = image()
    size = (7, 13, 22)
    expected = interpolate(torch.from_numpy(v.array)[None], size=size, mode="trilinear", align_corners=False)[0]
    assert torch.equal(prepare(v, plan).image, expected)  # one and the same call of torch on the same numbers
    labels = (v.array[0] > 0).astype(np.uint8)
    nearest = interpolate(torch.from_numpy(labels)[None, None].float(), size=size, mode="nearest-exact")[0, 0]
    assert torch.equal(prepare_labels(labels, v, plan), nearest.to(torch.uint8))
    back = torch.cat([slab.clone() for slab in restored([expected], prepare(v, plan))], 1)
    there = interpolate(expected[None], size=v.size, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(back, there, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 5), (16, 5)), ((12, 9), (5, 20)), ((6, 1, 8), (9, 4, 8)), ((9, 8, 7), (4, 3, 15))]
)
def test_the_way_back_is_linear_interpolation_whatever_the_slabs(grid, size, monkeypatch):
    maps = torch.randn(3, *grid)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    expected = interpolate(maps[None], size=size, mode=mode, align_corners=False)[0]
    for chunk in (1, 1 << 20):
        monkeypatch.setattr("ulna.data.pipeline.resampling._CHUNK", chunk)
        for axis in range(len(size)):
            for heights in (1, 2, grid[axis], [1] * (grid[axis] - 1) + [1]):
                slabs = maps.split(heights, dim=axis + 1)
                back = torch.cat([slab.clone() for slab in format_1.restore(slabs, grid, size, axis)], dim=axis + 1)
                torch.testing.assert_close(back, expected, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_seen_as_they_are_stored_and_masks_come_back_upright(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 200, (6, 9)).astype(np.uint8)
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", extratags=tag)
    volume = read_image([Source(tmp_path / "a.tif")])
    old, new = (make(format=number, spatial_dims=2, normalization=NONE) for number in (1, 2))
    prepared = prepare(volume, old)
    assert torch.equal(prepared.image[0], torch.from_numpy(stored).float())
    assert np.array_equal(255 - prepared.turn.back(prepared.image.numpy()), volume.array)
    assert torch.equal(prepare(volume, new).image, torch.from_numpy(volume.array.copy()).float())
    labels = prepare_labels((volume.array[0] > 99).astype(np.uint8), volume, old)
    assert np.array_equal(labels.numpy(), 255 - stored > 99)
