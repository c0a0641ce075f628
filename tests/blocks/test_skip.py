"""Fusing by concatenation and by addition, against the plain sums."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.skip import Add, Concat

SIZES = {2: (3, 4), 3: (2, 1, 3)}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_addition_projects_only_what_has_another_width(spatial_dims):
    block = literal.randomise(Add(spatial_dims, 3, (3, 2, 4)))
    up, *skips = (literal.random_map(2, c, *SIZES[spatial_dims], seed=n) for n, c in enumerate((3, 3, 2, 4)))
    p = dict(block.named_parameters())
    assert set(p) == {"project.1.weight", "project.1.bias", "project.2.weight", "project.2.bias"}
    expected = up + skips[0]
    for n in (1, 2):
        expected = expected + literal.conv(skips[n], p[f"project.{n}.weight"], p[f"project.{n}.bias"])
    literal.assert_equal(block, [up, *skips], block(up, skips), expected)
    assert torch.autograd.gradcheck(lambda u, *s: block(u, list(s)), (up, *skips))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_concatenation_with_projection(spatial_dims):
    block = literal.randomise(Concat(spatial_dims, 3, (2, 1), project=True))
    up, *skips = (literal.random_map(2, c, *SIZES[spatial_dims], seed=c) for c in (3, 2, 1))
    p = dict(block.named_parameters())
    projected = [literal.conv(skips[n], p[f"project.{n}.weight"], p[f"project.{n}.bias"]) for n in (0, 1)]
    literal.assert_equal(block, [up, *skips], block(up, skips), torch.cat([up, *projected], dim=1))


def test_concatenation_has_no_parameters_of_its_own():
    assert list(Concat(2, 3, (2, 1)).parameters()) == []
