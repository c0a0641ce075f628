"""Every block of every slot keeps the slot's contract, in 2D and 3D; a new block is tested the moment it is listed."""

import pytest
import torch

from ulna.blocks import CONV, DOWN, SKIP, UP
from ulna.blocks.conv import ConvBlock
from ulna.errors import UsageError

SIZES = {2: (7, 10), 3: (5, 8, 6)}


def _all_parameters_learn(block, output):
    output.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", CONV)
def test_conv_block_keeps_space_and_states_channels(kind, spatial_dims):
    block = CONV[kind](spatial_dims, 5, 8)
    y = block(torch.randn(2, 5, *SIZES[spatial_dims], requires_grad=True))
    assert y.shape == (2, block.out_channels, *SIZES[spatial_dims])
    _all_parameters_learn(block, y)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", SKIP)
def test_skip_block_keeps_space_and_states_channels(kind, spatial_dims):
    block = SKIP[kind](spatial_dims, 6, (4, 3))
    maps = [torch.randn(2, c, *SIZES[spatial_dims]) for c in (6, 4, 3)]
    assert block(maps[0], maps[1:]).shape == (2, block.out_channels, *SIZES[spatial_dims])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", UP)
def test_up_op_multiplies_space_by_its_stride(kind, spatial_dims):
    stride = (2, 3, 1)[:spatial_dims]
    block = UP[kind](spatial_dims, 6, 4, stride)
    y = block(torch.randn(2, 6, *SIZES[spatial_dims]))
    assert y.shape == (2, block.out_channels, *(n * s for n, s in zip(SIZES[spatial_dims], stride, strict=True)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", DOWN)
def test_down_op_divides_space_by_its_stride(kind, spatial_dims):
    stride = (2, 1, 2)[:spatial_dims]
    size = (8, 7, 6)[:spatial_dims]
    block = DOWN[kind](spatial_dims, 6, 4, stride)
    y = block(torch.randn(2, 6, *size))
    assert y.shape == (2, block.out_channels, *(n // s for n, s in zip(size, stride, strict=True)))


def test_concat_puts_the_resampled_map_first():
    up, skip = torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    assert SKIP["concat"](2, 2, (1,))(up, [skip])[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_double_conv_is_conv_norm_relu_twice():
    block = ConvBlock(2, 1, 2).double().eval()
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    y = x
    for layer in block.layers:
        conv, norm = layer.conv, layer.norm
        padded = torch.nn.functional.pad(y, (1, 1, 1, 1))
        out = torch.zeros(1, conv.out_channels, 5, 6, dtype=torch.float64)
        for o in range(conv.out_channels):
            for r in range(5):
                for c in range(6):
                    out[0, o, r, c] = (padded[0, :, r : r + 3, c : c + 3] * conv.weight[o]).sum() + conv.bias[o]
        y = (out / (1 + norm.eps) ** 0.5).clamp_min(0)  # a fresh norm has mean 0, variance 1, scale 1, shift 0
    torch.testing.assert_close(block(x), y)


def test_residual_adds_the_input_before_the_last_activation():
    block = CONV["residual"](2, 3, 3, norm="none").eval()
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(block(x), (block.layers(x) + x).relu())
    wider = CONV["residual"](2, 3, 5, norm="none").eval()
    torch.testing.assert_close(wider(x), (wider.layers(x) + wider.shortcut(x)).relu())


def test_dropout_acts_in_training_only():
    block = ConvBlock(2, 1, 4, dropout=0.5)
    x = torch.randn(1, 1, 8, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_projection_of_linear_upsampling_commutes_with_it():
    block = UP["linear"](2, 4, 2, (2, 2), project=True)
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(block(x), block.project(block.upsample(x)), atol=1e-5, rtol=1e-5)
    assert UP["linear"](2, 4, 2, (2, 2)).out_channels == 4


def test_a_block_without_convolutions_is_refused():
    with pytest.raises(UsageError, match="at least one convolution"):
        ConvBlock(2, 1, 1, convs=0)
