"""A batch: every sample as it would be alone, the same on every device, labels exact and on their image."""

import numpy as np
import pytest
import torch

from tests.data.pipeline.augment.nothing import only
from tests.plans import make
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import sample_stream
from ulna.recipe import Augmentation

MUCH = Augmentation(affine=0.7, shear=5, elastic=1.5, intensity=0.5, gamma=0.5, noise=0.5, blur=0.5)


def batch_of(dims, settings=MUCH, *, count=12, overlapping=False, device="cpu"):
    """Pieces and draws of random images of different sizes."""
    plan = make(spatial_dims=dims, patch=(16,) * dims, spacing=(1.25, 0.8, 1.0)[:dims], turn_axes=None)
    augment = Augment(settings, plan)
    pieces, draws = [], []
    for number in range(count):
        stream = sample_stream(0, 0, number)
        size = tuple(int(n) for n in stream.integers(12, 40, dims))
        image = torch.from_numpy(stream.normal(size=(1, *size))).float()
        labels = torch.from_numpy(stream.integers(0, 4, (2, *size) if overlapping else size)).to(torch.uint8)
        start = tuple((n - 16) // 2 for n in size)
        draws.append(augment.draw(stream))
        piece = augment.cut(image, labels, start, draws[-1])
        pieces.append(piece.map(lambda tensor: tensor.to(device)))
    return augment, pieces, draws


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("overlapping", [False, True])
def test_a_batch_is_its_samples_one_by_one(dims, overlapping):
    augment, pieces, draws = batch_of(dims, overlapping=overlapping)
    images, labels = augment.apply(pieces, draws)
    assert images.shape == (12, 1, *(16,) * dims)
    assert labels.shape == (12, *((2,) if overlapping else ()), *(16,) * dims)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    for n, (piece, draw) in enumerate(zip(pieces, draws, strict=True)):
        image, maps = augment.apply([piece], [draw])
        # powers and exponentials are other numbers at the end of a row of registers, which a batch shifts
        torch.testing.assert_close(images[n], image[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(
            labels[n], maps[0]
        )  # places are sums and products alone, in one order: equal on any processor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dims", [2, 3])
def test_a_gpu_makes_the_same_of_the_same_draws(dims):
    (augment, here, draws), (_, there, _) = batch_of(dims), batch_of(dims, device="cuda")
    (a, b), (c, d) = augment.apply(here, draws), augment.apply(there, draws)
    assert c.is_cuda
    assert d.is_cuda
    torch.testing.assert_close(c.cpu(), a, atol=2e-3, rtol=0)  # places differ by some 1e-5 voxels, neighbours by units
    assert (d.cpu() == b).float().mean() > 0.999


def test_nothing_is_changed_of_the_image_itself():
    augment, pieces, draws = batch_of(2)
    before = [piece.image.clone() for piece in pieces]
    augment.apply(pieces, draws)
    assert all(torch.equal(piece.image, one) for piece, one in zip(pieces, before, strict=True))


def test_labels_follow_what_is_seen():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[20:40, 25:50] = 1
    augment = Augment(only(flip=0.5, affine=1.0, degrees=30, elastic=3.0), make(patch=(48, 48)))
    for seed in range(8):
        draw = augment.draw(np.random.default_rng(seed))
        image, maps = augment.apply([augment.cut(labels[None].float(), labels, (8, 8), draw)], [draw])
        assert set(maps.unique().tolist()) == {0, 1}
        assert ((image[0, 0] > 0.5) == (maps[0] > 0)).float().mean() > 0.98
