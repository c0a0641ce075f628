"""Networks in float64 compute in float64, every step of them."""

import math

import pytest
import torch

from ulna import build
from ulna.kernels.points.point_sample import point_sample
from ulna.kernels.sweep import dispatch as sweep
from ulna.networks.catalog import NAMED
from ulna.networks.heads.decoder import encode


def narrow(name, spatial_dims=2):
    generator = torch.Generator().manual_seed(1)
    net = build(name, in_channels=1, classes=2, spatial_dims=spatial_dims, channels=(2, 3, 4), generator=generator)
    return net.double().eval()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_gradients_of_a_network_in_float64_are_those_of_difference_quotients(name):
    net = narrow(name)
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert net(image).dtype == torch.float64
    assert torch.autograd.gradcheck(net, (image,), fast_mode=True)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_change_too_small_for_float32_shows(name):
    """Whatever is rounded to float32 on the way would not pass it on."""
    net = narrow(name)
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    image = image.requires_grad_()
    answer = net.outputs(image)
    for logits in answer.heads.values():
        assert logits.dtype == torch.float64
    (slope,) = torch.autograd.grad(answer.logits.sum(), image)
    step = 1e-11 * slope / slope.norm()
    with torch.no_grad():
        moved = (net(image + step) - answer.logits).sum()
    assert moved.item() == pytest.approx(1e-11 * slope.norm().item(), rel=0.05)


@pytest.mark.parametrize("path", ["native", "lines", "reference"])
def test_sweeps_in_float64_are_exact_on_every_path(path):
    generator = torch.Generator().manual_seed(4)
    gates = sweep.Gates(
        *(torch.randn(s, dtype=torch.float64, generator=generator) * 0.3 for s in ((9, 9), (9, 3), (9,), (9,)))
    )
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    with sweep.force(path):
        assert torch.autograd.gradcheck(lambda q: sweep.sweep(q, gates, sweep.Direction(1)), (x,))


def test_places_of_points_and_what_lies_between_voxels_are_exact_too():
    points = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij"), -1).reshape(1, -1, 2)
    made = encode(points, (6, 9), 10, dtype=torch.float64)[0]
    q = 2 * points[0].double() / (torch.tensor([6, 9]) - 1) - 1
    assert (made[:, -4:-2] - (math.pi * 2.0**9 * q).sin()).abs().max() < 1e-11
    fmap = torch.randn(1, 2, 2, 3, dtype=torch.float64)
    between = torch.nn.functional.interpolate(fmap, size=(6, 9), mode="bilinear").flatten(2).mT
    assert (point_sample(fmap, points, (6, 9), mode="linear") - between).abs().max() < 1e-14
