"""Changes of intensity beside MONAI's single transforms, with the same numbers."""

import pytest
import torch

from ulna.data.pipeline.augment import Draw
from ulna.data.pipeline.augment.intensity import add_noise, adjust_gamma, change, smooth
from ulna.data.pipeline.augment.noise import normals


def images(dims, count=3):
    size = (17, 20) if dims == 2 else (9, 12, 7)
    return torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(dims))


@pytest.fixture(scope="module")
def monai():
    return pytest.importorskip("monai.transforms")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.filterwarnings("ignore")  # what MONAI and its imports warn of is not ours
def test_every_change_is_that_of_the_transform_it_is_named_after(monai, dims):
    batch = images(dims)
    scaled = change(batch.clone(), [Draw(), Draw(scale=-0.2), Draw(scale=0.1)])
    torch.testing.assert_close(scaled[1], monai.ScaleIntensity(minv=None, maxv=None, factor=-0.2)(batch[1]))
    torch.testing.assert_close(scaled[2], monai.ScaleIntensity(minv=None, maxv=None, factor=0.1)(batch[2]))
    shifted = change(batch.clone(), [Draw(), Draw(shift=0.17), Draw()])
    torch.testing.assert_close(shifted[1], monai.ShiftIntensity(0.17)(batch[1]))
    gammas = [0.7, 1.5, 1.1]
    for made, one, gamma in zip(adjust_gamma(batch.clone(), gammas), batch, gammas, strict=True):
        torch.testing.assert_close(made, monai.AdjustContrast(gamma)(one), atol=1e-5, rtol=1e-5)  # powers of float32
    sigmas = [(0.5, 1.0, 0.7)[:dims], (1.0, 0.6, 0.9)[:dims], (0.51, 0.5, 0.55)[:dims]]  # tails of 2 to 4 voxels
    for made, one, sigma in zip(smooth(batch, sigmas), batch, sigmas, strict=True):
        torch.testing.assert_close(made, monai.GaussianSmooth(list(sigma))(one), atol=1e-6, rtol=1e-5)
    for other in (scaled, shifted):
        assert torch.equal(other[0], batch[0])


def test_a_blur_reaches_no_further_than_a_short_axis():
    thin = torch.ones(1, 1, 2, 9)
    made = smooth(thin, [(1.0, 1.0)])
    inside = made[0, 0, :, 4]
    assert torch.allclose(inside, torch.full((2,), 0.3829 + 0.2417), atol=1e-3)  # of a Gaussian: |x| < 0.5, 0.5 to 1.5


def test_noise_has_the_deviation_that_was_drawn_and_another_value_everywhere():
    batch = torch.zeros(2, 3, 40, 50)
    made = add_noise(batch.clone(), [(11, 0.05), (12, 0.1)])
    assert torch.equal(made[0].flatten(), 0.05 * normals([11], 6000, batch.device)[0])
    assert made[0].std() == pytest.approx(0.05, rel=0.05)
    assert made[1].std() == pytest.approx(0.1, rel=0.05)
    assert len(made[1].unique()) > 5900


def test_changes_come_in_their_order_and_to_those_alone_that_drew_them():
    batch = images(2)
    draw = Draw(scale=0.2, shift=-0.1, gamma=1.3, noise=(5, 0.1), blur=(0.6, 0.9))
    expected = batch[1:2] * 1.2 - 0.1
    expected = smooth(add_noise(adjust_gamma(expected, [1.3]), [(5, 0.1)]), [(0.6, 0.9)])
    made = change(batch.clone(), [Draw(), draw, Draw()])
    assert torch.equal(made[1:2], expected)
    assert torch.equal(made[[0, 2]], batch[[0, 2]])


def test_a_constant_image_stays_constant():
    assert torch.equal(adjust_gamma(torch.full((1, 1, 4, 4), 3.0), [0.7]), torch.full((1, 1, 4, 4), 3.0))
    assert adjust_gamma(torch.zeros(1, 1, 4, 4), [1.5]).isfinite().all()
