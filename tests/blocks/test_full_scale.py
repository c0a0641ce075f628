"""Full-scale skips against their definition, pixel by pixel."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.conv import ConvBlock
from ulna.blocks.full_scale import FullScale


@pytest.mark.parametrize("size", [(3, 4), (1, 2), (2, 3, 2)])
def test_full_scale_is_its_definition(size):
    widths = (4, 2, 3)
    block = literal.randomise(FullScale(len(size), widths[0], widths[1:]))
    maps = [literal.random_map(2, width, *size, seed=seed) for seed, width in enumerate(widths)]
    p = dict(block.named_parameters())
    parts = []
    for number, x in enumerate(maps):
        y = literal.conv(x, p[f"convs.{number}.conv.weight"], p[f"convs.{number}.conv.bias"])
        at = f"convs.{number}.norm"
        parts.append(literal.relu(literal.batch_norm(y, p[f"{at}.weight"], p[f"{at}.bias"], 1e-5)))
    expected = torch.cat(parts, dim=1)
    assert expected.shape[1] == block.out_channels == 6  # each gets as many channels as the narrowest has
    literal.assert_equal(block, maps, block(maps[0], maps[1:]), expected)


def test_gradients_are_those_of_finite_differences():
    block = literal.randomise(FullScale(2, 2, (1,)))
    maps = literal.random_map(2, 2, 2, 3), literal.random_map(2, 1, 2, 3)
    assert torch.autograd.gradcheck(lambda up, skip: block(up, [skip]), maps)


def test_a_stated_width_is_taken():
    assert FullScale(2, 8, (4, 16), width=5).out_channels == 15


def test_a_convolution_of_full_scale_maps_keeps_their_width():
    assert ConvBlock(2, 15, 64, convs=1, keep_width=True).out_channels == 15
