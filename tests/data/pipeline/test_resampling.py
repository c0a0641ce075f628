"""Grids with exact steps: against scipy's interpolation at the places that the definition names."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from ulna.data.pipeline.resampling import nearest, points, resample, restore, steps

GRIDS = [((16, 5), (2.3, 1.0)), ((5, 20), (0.4, 0.45)), ((9, 4, 8), (1.5, 4.0, 0.25)), ((8, 9, 30), (0.9, 1.13, 3.1))]


def places(count, step, length):
    return [(i - (count - 1) / 2) * step + (length - 1) / 2 for i in range(count)]


def at(maps, coordinates):
    """Linear between neighbours, the outermost voxels repeated."""
    where = np.meshgrid(*coordinates, indexing="ij")
    return np.stack([map_coordinates(one, where, order=1, mode="nearest") for one in maps.numpy().astype(np.float64)])


@pytest.mark.parametrize(("size", "step"), GRIDS)
def test_the_way_back_is_linear_between_exact_places_whatever_the_slabs(size, step, monkeypatch):
    grid = points(size, step)
    maps = torch.randn(3, *grid, generator=torch.Generator().manual_seed(0))
    expected = at(maps, [places(n, 1 / r, m) for n, r, m in zip(size, step, grid, strict=True)])
    for chunk in (1, 1 << 20):
        monkeypatch.setattr("ulna.data.pipeline.resampling._CHUNK", chunk)
        for axis in range(len(size)):
            for heights in (1, 2, grid[axis]):
                slabs = maps.split(heights, dim=axis + 1)
                back = torch.cat([slab.clone() for slab in restore(slabs, grid, size, step, axis)], dim=axis + 1)
                assert back.shape[1:] == size
                np.testing.assert_allclose(back, expected, atol=1e-5)  # float32


def test_finer_and_equal_axes_are_linear():
    maps = torch.randn(2, 7, 9, 6, generator=torch.Generator().manual_seed(1))
    step = (0.3, 1.0, 0.77)
    grid = points((7, 9, 6), step)
    expected = at(maps, [places(m, r, n) for m, r, n in zip(grid, step, (7, 9, 6), strict=True)])
    np.testing.assert_allclose(resample(maps, step), expected, atol=1e-5)


def test_a_ramp_is_seen_at_exact_places_on_short_axes():
    """8 to 30 voxels: rounding the number of points must not stretch the step, which was up to 12 % off."""
    for length, step in itertools.product(range(8, 31), (0.37, 0.9, 1.6, 2.4)):
        ramp = torch.arange(length, dtype=torch.float32)[None, :, None].expand(1, length, 2)
        seen = resample(ramp, (step, 1.0))[0, :, 0]
        inside = slice(int(max(1, step)) + 1, -int(max(1, step)) - 1)  # away from the border
        gaps = seen.diff()[inside]
        torch.testing.assert_close(gaps, torch.full_like(gaps, step), atol=2e-5, rtol=0)
        assert abs(len(seen) * step - length) <= step / 2 + 1e-6  # of the field of view


def test_a_coarser_grid_is_smoothed_first():
    """Stripes of one voxel: every second one alone would be all black or all white."""
    stripes = (torch.arange(64) % 2).float()[None, :, None].expand(1, 64, 4)
    coarse = resample(stripes, (2.0, 1.0))[:, 1:-1]
    torch.testing.assert_close(coarse, torch.full_like(coarse, 0.5), atol=1e-6, rtol=0)


def test_a_constant_stays_a_constant():
    assert resample(torch.full((1, 9, 7, 3), 0.3), (0.7, 0.51, 1.9)).sub(0.3).abs().max() < 1e-7
    assert resample(torch.full((1, 9, 7), 0.3), (0.7, 0.51)).unique().tolist() == [torch.tensor(0.3).item()]


def test_labels_take_the_nearest_voxel():
    labels = torch.randint(0, 5, (2, 9, 14), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    step = (0.45, 2.2)
    grid = points((9, 14), step)
    rows, columns = (
        [min(max(int(np.floor(p + 0.5)), 0), n - 1) for p in places(m, r, n)]
        for m, r, n in zip(grid, step, (9, 14), strict=True)
    )
    assert torch.equal(nearest(labels, step), labels[:, rows][:, :, columns])


def test_a_spacing_that_differs_by_rounding_is_the_same():
    assert steps((0.9766, 1.0, 5.0), (0.976562, 1.0009, 5.1)) == (1.0, 1.0, 5.1 / 5.0)
    maps = torch.randn(1, 5, 6)
    assert resample(maps, (1.0, 1.0)) is maps
