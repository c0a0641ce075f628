"""MBConv against its definition, pixel by pixel."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.mbconv import MBConv
from ulna.errors import UsageError


def silu(x):
    return x * literal.sigmoid(x)


def mbconv(p, x, residual):
    def normed(name, y):
        return literal.batch_norm(y, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], 1e-5)

    y = silu(normed("expand", literal.conv(x, p["expand.conv.weight"])))
    y = silu(normed("filter", literal.conv(y, p["filter.conv.weight"], depthwise=True)))
    factors = []
    for image in y:  # squeeze: one mean a channel, then two fully connected layers
        mean = torch.stack([channel.sum() / channel.numel() for channel in image])
        reduced = silu(p["excite.reduce.weight"].flatten(1) @ mean + p["excite.reduce.bias"])
        factors.append(literal.sigmoid(p["excite.expand.weight"].flatten(1) @ reduced + p["excite.expand.bias"]))
    y = y * torch.stack(factors).reshape(*y.shape[:2], *(1,) * (y.ndim - 2))
    y = normed("project", literal.conv(y, p["project.conv.weight"]))
    return x + y if residual else y


@pytest.mark.parametrize("size", [(3, 4), (1, 3), (2, 3, 2)])
@pytest.mark.parametrize("out_channels", [4, 3])
def test_mbconv_is_its_definition(size, out_channels):
    block = literal.randomise(MBConv(len(size), 4, out_channels))
    x = literal.random_map(2, 4, *size)
    expected = mbconv(dict(block.named_parameters()), x, residual=out_channels == 4)
    literal.assert_equal(block, [x], block(x), expected)


@pytest.mark.parametrize("size", [(3, 2), (2, 2, 2)])
def test_gradients_are_those_of_finite_differences(size):
    block = literal.randomise(MBConv(len(size), 2, 2, expansion=2))
    assert torch.autograd.gradcheck(block, (literal.random_map(2, 2, *size),))


def test_the_squeeze_is_a_quarter_of_the_input_but_at_least_one():
    assert [MBConv(2, c, 8).excite.reduce.out_channels for c in (2, 4, 35)] == [1, 1, 8]
    assert MBConv(2, 5, 8).expand.conv.out_channels == 30


@pytest.mark.parametrize("options", [{"kernel_size": 4}, {"expansion": 0}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(UsageError, match="kernel_size is odd and expansion 1 or more"):
        MBConv(2, 4, 4, **options)
