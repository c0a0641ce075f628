import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.preprocess import normalise, prepare, prepare_labels, restore
from ulna.data.whitening import fit_whitening, whiten
from ulna.errors import UsageError
from ulna.recipe import Normalization
from ulna.volume import Volume

NONE = (Normalization(kind="none"),)


def volume(size=(6, 8, 5), spacing=(1.0, 1.0, 2.0), channels=1, seed=0):
    array = np.random.default_rng(seed).normal(100, 20, (channels, *size)).astype(np.float32)
    return Volume(array, spacing, "mm", np.diag([*spacing, 1.0]))


def restored(maps, size, axis=0, heights=None):
    """Back from the grid, in slabs of some heights."""
    slabs = maps.split(heights or maps.shape[axis + 1], dim=axis + 1)
    return torch.cat([slab.clone() for slab in restore(slabs, tuple(maps.shape[1:]), size, axis)], dim=axis + 1)


def test_on_the_grid_of_the_plan_nothing_is_resampled():
    v = volume()
    prepared = prepare(v, make(spatial_dims=3, spacing=v.spacing, unit="mm", normalization=NONE))
    assert torch.equal(prepared.image, torch.from_numpy(v.array))
    assert torch.equal(restored(prepared.image, prepared.size), torch.from_numpy(v.array))


def test_resampling_changes_the_size_by_the_spacing_and_comes_back():
    v = volume((8, 8, 4), (1.0, 1.0, 2.0))
    smooth = v.with_array(np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32)[:, None, None], (1, 8, 8, 4)))
    prepared = prepare(smooth, make(spatial_dims=3, spacing=(1.0, 2.0, 1.0), unit="mm", normalization=NONE))
    assert prepared.image.shape == (1, 8, 4, 8)
    back = restored(prepared.image, prepared.size)
    assert back.shape == (1, 8, 8, 4)
    torch.testing.assert_close(back, torch.from_numpy(smooth.array.copy()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 5), (16, 5)), ((12, 9), (5, 20)), ((6, 1, 8), (9, 4, 8)), ((9, 8, 7), (4, 3, 15))]
)
def test_the_way_back_is_linear_interpolation_whatever_the_slabs(grid, size, monkeypatch):
    maps = torch.randn(3, *grid)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    expected = torch.nn.functional.interpolate(maps[None], size=size, mode=mode, align_corners=False)[0]
    for chunk in (1, 1 << 20):
        monkeypatch.setattr("ulna.data.preprocess._CHUNK", chunk)
        for axis in range(len(size)):
            for heights in (1, 2, grid[axis], [1] * (grid[axis] - 1) + [1]):
                torch.testing.assert_close(restored(maps, size, axis, heights), expected, atol=1e-5, rtol=0)


def test_an_image_that_is_linear_comes_back_as_it_was():
    """Up to the border, where a coarser grid has no neighbour to go between."""
    ramp = np.linspace(0, 1, 24, dtype=np.float32)[None, :, None, None] * np.ones((1, 24, 6, 10), np.float32)
    v = Volume(ramp, (1.0, 2.0, 1.0), "mm")
    for spacing in ((2.0, 1.0, 0.7), (0.5, 2.0, 1.0), (1.3, 3.0, 2.5)):
        prepared = prepare(v, make(spatial_dims=3, spacing=spacing, unit="mm", normalization=NONE))
        back = restored(prepared.image, prepared.size, axis=0, heights=3)
        inside = slice(3, -3)
        torch.testing.assert_close(back[:, inside], torch.from_numpy(ramp)[:, inside], atol=1e-5, rtol=0)


def test_labels_are_resampled_by_nearest_neighbour():
    labels = np.zeros((4, 4), np.uint8)
    labels[2:] = 7
    plan = make(spacing=(0.5, 0.5), unit="mm")
    bigger = prepare_labels(labels, (1.0, 1.0), plan)
    assert bigger.shape == (8, 8)
    assert bigger.unique().tolist() == [0, 7]
    assert torch.equal(bigger[4:], torch.full((4, 8), 7, dtype=torch.uint8))
    two = np.stack([labels > 0, labels == 0]).astype(np.uint8)
    assert prepare_labels(two, (1.0, 1.0), plan).shape == (2, 8, 8)


def test_normalisations_are_their_formulas():
    x = np.array([[0.0, 50.0, 100.0, 1000.0]], np.float32)
    z = normalise(x, Normalization(kind="zscore"))
    assert (z.mean(), z.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    ct = normalise(x, Normalization(kind="ct", low=10, high=100, mean=40, std=20))
    np.testing.assert_allclose(ct, [[-1.5, 0.5, 3.0, 3.0]])
    np.testing.assert_allclose(normalise(x, Normalization(kind="rescale", low=0, high=100)), x / 100)
    assert normalise(x, Normalization(kind="none")) is x


def test_a_constant_image_becomes_zero_and_not_nan():
    assert not normalise(np.full((4, 4), 9.0, np.float32), Normalization(kind="zscore")).any()


def test_zscore_of_huge_values_does_not_overflow():
    x = np.random.default_rng(0).uniform(0, 1.7e6, (64, 64)).astype(np.float32) * 1e18
    assert abs(normalise(x, Normalization(kind="zscore")).mean()) < 1e-4


def test_whitening_decorrelates_the_channels_of_all_voxels_and_is_symmetric():
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.2, 0.5], [0.0, 2.0, 1.0], [0.3, 0.0, 0.7]])
    images = [torch.from_numpy((mix @ rng.normal(3, 1, (3, n))).reshape(3, n // 4, 4)).float() for n in (400, 240)]
    how = fit_whitening(images)
    voxels = np.concatenate([image.flatten(1).numpy() for image in images], axis=1).astype(np.float64)
    W = np.array(how.matrix)
    np.testing.assert_allclose(how.mean, voxels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(W, W.T)
    np.testing.assert_allclose(W @ np.cov(voxels, bias=True) @ W.T, np.eye(3), atol=1e-5)
    white = whiten(images[0], how)
    assert white.shape == images[0].shape
    literal = W @ (images[0][:, 7, 2].numpy() - np.array(how.mean))
    np.testing.assert_allclose(white[:, 7, 2], literal, atol=1e-5)


def test_whitening_of_two_channels_by_hand():
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, -2.0]]).reshape(2, 2, 2)
    how = fit_whitening([x + 5])  # uncorrelated, variances 1 and 4
    assert how.mean == pytest.approx((5, 5))
    np.testing.assert_allclose(how.matrix, [[1, 0], [0, 0.5]], atol=1e-5)


def test_a_channel_that_never_changes_stays_finite():
    assert whiten(torch.ones(2, 3, 3), fit_whitening([torch.ones(2, 3, 3)])).abs().max() == 0


def test_an_image_is_whitened_after_it_is_normalised():
    v = volume(channels=2)
    both = (Normalization(kind="zscore"),) * 2
    plain = make(spatial_dims=3, in_channels=2, channel_names=("a", "b"), normalization=both)
    normalised = prepare(v, plain).image
    how = fit_whitening([normalised])
    assert torch.equal(prepare(v, plain.replaced(whitening=how)).image, whiten(normalised, how))


@pytest.mark.parametrize(
    ("v", "message"),
    [(volume(channels=2), "2 channels; this model reads 1"), (Volume(np.zeros((1, 4, 4)), (1.0, 1.0)), "a 2D image")],
)
def test_an_image_that_does_not_fit_the_plan_is_refused(v, message):
    with pytest.raises(UsageError, match=message):
        prepare(v, make(spatial_dims=3, normalization=NONE))


def test_a_grid_in_mm_needs_an_image_that_states_its_spacing():
    plan = make(spacing=(0.5, 0.5), unit="mm", normalization=NONE)
    with pytest.raises(UsageError, match="its spacing is in px"):
        prepare(Volume(np.zeros((1, 8, 8), np.float32), (1.0, 1.0)), plan)


def test_values_that_are_not_finite_are_refused():
    array = np.zeros((1, 4, 4), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(UsageError, match="2 values are NaN or infinite"):
        prepare(Volume(array, (1.0, 1.0)), make())
