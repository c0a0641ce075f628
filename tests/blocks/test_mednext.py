"""MedNeXt blocks against their definition, pixel by pixel, and a whole network against MONAI's."""

import math

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.mednext import MedNeXtDown, MedNeXtStack, MedNeXtUp, spread
from ulna.errors import UsageError
from ulna.networks.build import build
from ulna.networks.catalog.roy import mednext


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def normed(x, weight, bias):
    """One channel of one image at a time: a group norm of as many groups as channels."""
    return torch.cat([literal.batch_norm(image[None], weight, bias, 1e-5) for image in x])


def behind_the_filter(p, y, at=""):
    y = normed(y, p[f"{at}filter.norm.weight"], p[f"{at}filter.norm.bias"])
    y = gelu(literal.conv(y, p[f"{at}expand.weight"], p[f"{at}expand.bias"]))
    return literal.conv(y, p[f"{at}compress.weight"], p[f"{at}compress.bias"])


def filtered(p, x, stride=None, at=""):
    return literal.conv(x, p[f"{at}filter.conv.weight"], p[f"{at}filter.conv.bias"], stride, depthwise=True)


@pytest.mark.parametrize("wide", [2, 3])
@pytest.mark.parametrize(("size", "kernel_size"), [((3, 4), 3), ((2, 3, 2), 3), ((4, 3), 5)])
def test_a_stack_is_its_definition(size, kernel_size, wide):
    stack = literal.randomise(MedNeXtStack(len(size), wide, 2, blocks=2, kernel_size=kernel_size, expansion=3))
    x = literal.random_map(2, wide, *size)
    p = dict(stack.named_parameters())
    y = literal.conv(x, p["stem.weight"], p["stem.bias"]) if wide != 2 else x
    for at in ("blocks.0.", "blocks.1."):
        y = y + behind_the_filter(p, filtered(p, y, at=at), at)
    literal.assert_equal(stack, [x], stack(x), y)


@pytest.mark.parametrize(("size", "stride"), [((4, 3), (2, 1)), ((2, 4, 2), (2, 2, 1))])
def test_a_down_op_is_its_definition(size, stride):
    block = literal.randomise(MedNeXtDown(len(size), 2, 3, stride, expansion=2))
    x = literal.random_map(2, 2, *size)
    p = dict(block.named_parameters())
    expected = behind_the_filter(p, filtered(p, x, stride)) + literal.conv(
        x, p["shortcut.weight"], p["shortcut.bias"], stride
    )
    literal.assert_equal(block, [x], block(x), expected)


def transposed(x, weight, bias, stride, depthwise):
    """Every pixel of the small map adds its kernel to the large one, centred on itself; (n - 1) stride + 1 are left."""
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    kernel = weight.shape[2:]
    values = dict.fromkeys(literal.pixels(size), 0)
    for q in literal.pixels(x.shape[2:]):
        for k in literal.pixels(kernel):
            p = tuple(i * s + j - n // 2 for i, s, j, n in zip(q, stride, k, kernel, strict=True))
            if p in values:
                # the weights are those of a convolution: a transposed one has them turned round
                w = literal.at(weight, tuple(n - 1 - j for n, j in zip(kernel, k, strict=True)))
                pixel = literal.at(x, q)
                part = pixel * w[:, 0] if depthwise else torch.stack([(pixel * row).sum(1) for row in w], dim=1)
                values[p] = values[p] + part
    zero = torch.zeros(x.shape[0], len(bias), dtype=x.dtype)
    return literal.assembled({p: zero + value + bias for p, value in values.items()}, size)


@pytest.mark.parametrize(
    ("size", "stride", "kernel_size"),
    [((3, 2), (2, 2), 3), ((2, 3), (2, 1), 5), ((2, 1, 2), (2, 2, 1), 3), ((2, 2), (3, 2), 3)],
)
def test_an_up_op_is_its_definition(size, stride, kernel_size):
    block = literal.randomise(MedNeXtUp(len(size), 2, 3, stride, kernel_size=kernel_size, expansion=2))
    x = literal.random_map(2, 2, *size)
    p = dict(block.named_parameters())
    y = behind_the_filter(p, transposed(x, p["filter.conv.weight"], p["filter.conv.bias"], stride, depthwise=True))
    y = y + transposed(x, p["shortcut.weight"], p["bias"], stride, depthwise=False)
    whole = [n * s for n, s in zip(size, stride, strict=True)]
    values = {}
    for q in literal.pixels(whole):  # the first stride - 1 pixels of every axis are 0
        at = tuple(i - (s - 1) for i, s in zip(q, stride, strict=True))
        values[q] = literal.at(y, at) if min(at) >= 0 else torch.zeros(2, 3, dtype=y.dtype)
    literal.assert_equal(block, [x], block(x), literal.assembled(values, whole))


@pytest.mark.parametrize("stride", [(2, 2), (1, 3, 2)])
def test_spread_puts_zeros_between_pixels_and_keeps_the_layout(stride):
    x = torch.randn(2, 3, *(3, 4, 2)[: len(stride)])
    layout = torch.channels_last if len(stride) == 2 else torch.channels_last_3d
    expected = torch.zeros(2, 3, *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)))
    expected[(..., *(slice(None, None, s) for s in stride))] = x
    assert torch.equal(spread(x, stride), expected)  # it moves values and computes none
    last = spread(x.contiguous(memory_format=layout), stride)
    assert torch.equal(last, expected) and last.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (MedNeXtStack(2, 2, 2, blocks=1), (3, 2)),
        (MedNeXtDown(3, 1, 2, (2, 2, 2)), (2, 2, 2)),
        (MedNeXtUp(2, 2, 1, (2, 2)), (2, 2)),
    ],
    ids=["stack", "down", "up"],
)
def test_gradients_are_those_of_finite_differences(block, size):
    literal.randomise(block)
    channels = 1 if isinstance(block, MedNeXtDown) else 2
    assert torch.autograd.gradcheck(block, (literal.random_map(1, channels, *size),))


@pytest.mark.parametrize("options", [{"kernel_size": 4}, {"expansion": 0}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(UsageError, match="kernel_size is odd and expansion 1 or more"):
        MedNeXtStack(2, 4, 4, **options)
    with pytest.raises(UsageError, match="at least one block"):
        MedNeXtStack(2, 4, 4, blocks=0)


PARTS = {"filter.conv": "conv1", "filter.norm": "norm", "expand": "conv2", "compress": "conv3"}


def copied(ours, theirs, turned=False):
    for mine, name in PARTS.items():
        part, other = ours.get_submodule(mine), getattr(theirs, name)
        weight = other.weight.detach()
        part.weight.data.copy_(weight.flip(*range(2, weight.ndim)) if turned and name == "conv1" else weight)
        part.bias.data.copy_(other.bias.detach())


@pytest.mark.parametrize("kernel_size", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_whole_network_is_that_of_monai(dims, kernel_size):
    """Of size S; MONAI gives the up ops of the others another expansion than the authors do (docs/papers/mednext.md)."""
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    theirs = nets.MedNeXt(
        dims, 4, 2, 3, kernel_size=kernel_size, use_residual_connection=True, blocks_down=(2,) * 4, blocks_up=(2,) * 4
    ).double()
    architecture = mednext("s", kernel_size).replaced(base_channels=4, deep_supervision=False)
    ours = build(
        "unet", in_channels=2, classes=3, spatial_dims=dims,
        **{name: getattr(architecture, name) for name in type(architecture).model_fields},
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    stages = ours.stages
    stages["x0_0"].conv.stem.load_state_dict(theirs.stem.state_dict())
    levels = [theirs.enc_stages[i] for i in range(4)] + [theirs.bottleneck]
    for level, blocks in enumerate(levels):
        for mine, other in zip(stages[f"x{level}_0"].conv.blocks, blocks, strict=True):
            copied(mine, other)
        if level:
            copied(stages[f"x{level}_0"].resample, theirs.down_blocks[level - 1])
            stages[f"x{level}_0"].resample.shortcut.load_state_dict(theirs.down_blocks[level - 1].res_conv.state_dict())
    for number, (blocks, other) in enumerate(zip(theirs.dec_stages, theirs.up_blocks, strict=True)):
        stage = stages[f"x{3 - number}_{number + 1}"]
        copied(stage.resample, other, turned=True)
        stage.resample.shortcut.weight.data.copy_(other.res_conv.weight.detach().transpose(0, 1))
        stage.resample.bias.data.copy_(other.res_conv.bias.detach())
        for mine, one in zip(stage.conv.blocks, blocks, strict=True):
            copied(mine, one)
    head = ours.head.convs["x0_4"]
    head.weight.data.copy_(theirs.out_0.conv_out.weight.detach().transpose(0, 1))
    head.bias.data.copy_(theirs.out_0.conv_out.bias.detach())
    image = torch.randn(1, 2, *(32,) * dims, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-9, atol=1e-9)
