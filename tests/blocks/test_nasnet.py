"""The NASNet-A cells against their drawing, pixel by pixel; odd sizes, axes of length 1, every stride."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.nasnet import NormalCell, ReductionCell

EPS = 1e-3


def squeezed(p, name, x):
    y = literal.conv(literal.relu(x), p[f"{name}.conv.weight"])
    return literal.batch_norm(y, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], EPS)


def separable(p, name, x, stride=None):
    for half, step in ((0, stride), (1, None)):
        part = f"{name}.halves.{half}"
        x = literal.conv(literal.relu(x), p[f"{part}.0.weight"], stride=step, depthwise=True)
        x = literal.conv(x, p[f"{part}.1.weight"])
        x = literal.batch_norm(x, p[f"{part}.2.weight"], p[f"{part}.2.bias"], EPS)
    return x


def normal_cell(p, x):
    l, c = squeezed(p, "l", x), squeezed(p, "c", x)  # noqa: E741
    y0 = separable(p, "y0_c", c) + separable(p, "y0_l", l)
    y1 = separable(p, "y1_5", l) + separable(p, "y1_3", l)
    y2 = literal.average3(c) + l
    y3 = literal.average3(l) + literal.average3(l)
    y4 = separable(p, "y4_c", c) + c
    return torch.cat([l, y0, y1, y2, y3, y4], dim=1)


def reduction_cell(p, x, stride):
    l, c = squeezed(p, "l", x), squeezed(p, "c", x)  # noqa: E741
    y0 = separable(p, "y0_c", c, stride) + separable(p, "y0_l", l, stride)
    y1 = literal.max3(c, stride) + separable(p, "y1_l", l, stride)
    y2 = literal.average3(c, stride) + separable(p, "y2_l", l, stride)
    y3 = literal.average3(y0) + y1
    y4 = separable(p, "y4_y0", y0) + literal.max3(c, stride)
    return torch.cat([y1, y2, y3, y4], dim=1)


@pytest.mark.parametrize("size", [(5, 4), (3, 1), (3, 2, 3), (1, 3, 1)])
def test_normal_cell_is_its_drawing(size):
    block = literal.randomise(NormalCell(len(size), 3, 12))
    x = literal.random_map(2, 3, *size)
    literal.assert_equal(block, [x], block(x), normal_cell(dict(block.named_parameters()), x))


@pytest.mark.parametrize(
    ("size", "stride"), [((4, 6), (2, 2)), ((3, 6), (1, 3)), ((2, 4, 2), (2, 2, 2)), ((3, 2, 1), (1, 2, 1))]
)
def test_reduction_cell_is_its_drawing(size, stride):
    block = literal.randomise(ReductionCell(len(size), 3, 8, stride))
    x = literal.random_map(2, 3, *size)
    y = block(x)
    assert y.shape[2:] == tuple(n // s for n, s in zip(size, stride, strict=True))
    literal.assert_equal(block, [x], y, reduction_cell(dict(block.named_parameters()), x, stride))


@pytest.mark.parametrize("size", [(4, 3), pytest.param((2, 2, 3), marks=pytest.mark.slow)])
def test_gradients_are_those_of_finite_differences(size):
    x = literal.random_map(2, 2, *size)
    assert torch.autograd.gradcheck(literal.randomise(NormalCell(len(size), 2, 6)), (x,))
    assert torch.autograd.gradcheck(literal.randomise(ReductionCell(len(size), 2, 4, (2,) * len(size))), (x,))


def test_the_shortcut_adds_a_strided_convolution_of_the_input():
    block = literal.randomise(ReductionCell(2, 2, 4, (2, 2), shortcut=True))
    x = literal.random_map(2, 2, 4, 4)
    p = dict(block.named_parameters())
    extra = {}
    for r, c in literal.pixels((2, 2)):
        patch = x[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
        weighted = [(patch * kernel).sum((1, 2, 3)) for kernel in p["shortcut.weight"]]
        extra[r, c] = torch.stack(weighted, dim=1) + p["shortcut.bias"]
    expected = reduction_cell(p, x, (2, 2)) + literal.assembled(extra, (2, 2))
    literal.assert_equal(block, [x], block(x), expected)


def test_channels_are_rounded_to_whole_filters():
    assert [NormalCell(2, 1, want).out_channels for want in (1, 16, 96, 1530)] == [6, 18, 96, 1530]
    assert [ReductionCell(2, 1, want, (2, 2)).out_channels for want in (1, 9, 156)] == [4, 8, 156]
