"""Cascade multi-scale convolution against Eq. 14 of omega-Net (wang2020), pixel by pixel."""

import itertools

import pytest
import torch

from ulna.blocks.cascade import CascadeMultiScale

SIZES = {2: (2, 4), 3: (3, 1, 2)}


def convolved(x, conv):
    """A convolution of an image (C, *S) written out: every output value is a sum over kernel offsets inside the image."""
    size, radius = x.shape[1:], conv.weight.shape[2] // 2
    values = []
    for o in range(conv.weight.shape[0]):
        for pixel in itertools.product(*map(range, size)):
            total = conv.bias[o]
            for offset in itertools.product(range(-radius, radius + 1), repeat=len(size)):
                at = tuple(p + d for p, d in zip(pixel, offset, strict=True))
                if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                    tap = tuple(d + radius for d in offset)
                    for c in range(x.shape[0]):
                        total = total + conv.weight[(o, c, *tap)] * x[(c, *at)]
            values.append(total)
    return torch.stack(values).reshape(-1, *size)


def literal(block, x):
    """Eq. 14, one image: (C, *S) -> (C', *S)."""
    x1 = convolved(x, block.conv5.conv)
    x2 = convolved(x + x1, block.conv3.conv)
    x3 = convolved(x + x2, block.conv1.conv)
    return convolved(torch.cat([x, x1, x2, x3]), block.fuse.conv)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_computes_equation_14_values_and_gradients(spatial_dims):
    torch.manual_seed(0)
    block = CascadeMultiScale(spatial_dims, 2, 3).double()
    x = torch.randn(1, 2, *SIZES[spatial_dims], dtype=torch.float64, requires_grad=True)
    y, expected = block(x), literal(block, x[0])[None]
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    leaves = [x, *block.parameters()]
    got, wanted = (torch.autograd.grad((out * seed).sum(), leaves) for out in (y, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 6])
def test_parameters_are_those_of_the_kernels(spatial_dims, channels):
    block = CascadeMultiScale(spatial_dims, channels, channels)
    taps = 5**spatial_dims + 3**spatial_dims + 1 + 4  # 39 in 2D (docs/papers/omega_net.md, section 2)
    assert sum(p.numel() for p in block.parameters()) == taps * channels**2 + 4 * channels


def test_norm_and_activation_are_options_that_follow_every_convolution():
    block = CascadeMultiScale(2, 2, 2, norm="batch", activation="relu").train()
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in block.modules()) == 4
    assert block(torch.randn(3, 2, 5, 4)).min() >= 0
