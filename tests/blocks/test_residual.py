"""Residual blocks and pre-activated units against their definitions, pixel by pixel."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.residual import PreActivatedDown, PreActivatedUnit, ResidualBlock, ResidualStack
from ulna.errors import UsageError

STRIDES = {2: (2, 1), 3: (1, 2, 2)}
SIZES = {2: (4, 3), 3: (3, 2, 4)}


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def instance_norm(x, weight, bias):
    return torch.cat([literal.batch_norm(image[None], weight, bias, 1e-5) for image in x])


def mean_of_windows(x, stride):
    """Of windows side by side."""
    size = [n // s for n, s in zip(x.shape[2:], stride, strict=True)]
    values = {}
    for p in literal.pixels(size):
        inside = [
            literal.at(x, tuple(i * s + j for i, s, j in zip(p, stride, k, strict=True)))
            for k in literal.pixels(stride)
        ]
        values[p] = sum(inside) / len(inside)
    return literal.assembled(values, size)


def residual(p, x, stride):
    def normed(name, y):
        return instance_norm(y, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])

    y = literal.conv(x, p["layers.0.conv.weight"], p["layers.0.conv.bias"], stride)
    y = leaky(normed("layers.0", y))
    y = normed("layers.1", literal.conv(y, p["layers.1.conv.weight"], p["layers.1.conv.bias"]))
    if max(stride) > 1:
        x = mean_of_windows(x, stride)
    if "project.conv.weight" in p:
        x = normed("project", literal.conv(x, p["project.conv.weight"]))
    return leaky(y + x)


@pytest.mark.parametrize("out_channels", [2, 3])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_residual_block_is_its_definition(dims, strided, out_channels):
    stride = STRIDES[dims] if strided else (1,) * dims
    size = tuple(2 * n // (2 if s == 1 else 1) for n, s in zip(SIZES[dims], stride, strict=True))
    block = literal.randomise(ResidualBlock(dims, 2, out_channels, stride))
    x = literal.random_map(2, 2, *size)
    literal.assert_equal(block, [x], block(x), residual(dict(block.named_parameters()), x, stride))


def test_a_stack_is_its_blocks_behind_its_stem():
    stack = ResidualStack(2, 2, 3, blocks=2, stem=True)
    x = torch.randn(1, 2, 5, 4)
    torch.testing.assert_close(stack(x), stack.blocks[1](stack.blocks[0](stack.stem(x))))
    assert stack.stem.conv.kernel_size == (3, 3)
    assert [type(block.project).__name__ for block in stack.blocks] == ["Identity", "Identity"]
    assert "project.conv.weight" in ResidualStack(2, 2, 3).blocks[0].state_dict()


def preactivated(p, x, stride, out_channels, first):
    def normed(name, y):
        return literal.relu(literal.batch_norm(y, p[f"{name}.weight"], p[f"{name}.bias"], 1e-5))

    y = x if first else normed("norm", x)
    y = normed("layers.0.norm", literal.conv(y, p["layers.0.conv.weight"], p["layers.0.conv.bias"], stride))
    y = literal.conv(y, p["layers.1.weight"], p["layers.1.bias"])
    if "project.weight" in p:
        return y + literal.conv(x, p["project.weight"], p["project.bias"], stride)
    values = {}
    for q in literal.pixels(y.shape[2:]):  # every stride-th pixel; channels that are missing are 0
        pixel = literal.at(x, tuple(i * s for i, s in zip(q, stride, strict=True)))
        zeros = pixel.new_zeros(pixel.shape[0], max(0, out_channels - pixel.shape[1]))
        values[q] = torch.cat([pixel[:, :out_channels], zeros], dim=1)
    return y + literal.assembled(values, y.shape[2:])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shortcut", ["project", "identity"])
@pytest.mark.parametrize(("wide", "want"), [(2, 3), (3, 2), (2, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2, 1)])
def test_a_preactivated_unit_is_its_definition(stride, wide, want, shortcut, first):
    dims = len(stride)
    unit = literal.randomise(PreActivatedUnit(dims, wide, want, stride, first=first, shortcut=shortcut))
    x = literal.random_map(2, wide, *((4, 3) if dims == 2 else (2, 3, 2)))
    literal.assert_equal(unit, [x], unit(x), preactivated(dict(unit.named_parameters()), x, stride, want, first))


def test_shortcuts_without_parameters_have_none():
    def count(shortcut):
        return sum(p.numel() for p in PreActivatedUnit(2, 4, 6, shortcut=shortcut).parameters())

    assert count("project") - count("identity") == 4 * 6 + 6


def test_the_input_of_a_unit_stays_as_it_is():
    """Its activation stands in front, where in place it would change the map that the shortcut and other nodes read."""
    x = torch.randn(1, 2, 4, 4)
    before = x.clone()
    for norm in ("none", "batch"):
        PreActivatedUnit(2, 2, 2, norm=norm)(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    "block",
    [
        ResidualBlock(2, 2, 2, (2, 1)),
        ResidualBlock(3, 1, 2, (1, 2, 2)),
        PreActivatedUnit(2, 2, 3, shortcut="identity"),
        PreActivatedDown(3, 1, 2, (2, 1, 1)),
    ],
    ids=lambda block: type(block).__name__,
)
def test_gradients_are_those_of_finite_differences(block):
    literal.randomise(block)
    channels = block.layers[0].conv.in_channels
    dims = block.layers[0].conv.weight.ndim - 2
    assert torch.autograd.gradcheck(block, (literal.random_map(2, channels, *(2,) * dims),))


def test_options_without_meaning_are_refused():
    with pytest.raises(UsageError, match="at least one block"):
        ResidualStack(2, 1, 1, blocks=0)
    with pytest.raises(UsageError, match="did you mean 'identity'"):
        PreActivatedUnit(2, 1, 1, shortcut="identty")
