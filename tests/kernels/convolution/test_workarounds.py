"""Convolutions that torch's library takes wrongly on some processor, against float64; freed memory is full of NaN."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.kernels.convolution import convolve, convolve_transposed, workarounds
from ulna.kernels.convolution.definition import Convolution

# kernel, stride, size, channels, outputs, groups; without a workaround each is wrong, or writes where it must not
SMALL = [
    (3, (2, 2, 2), (4, 6, 2), 16, 16, 1),
    (3, (2, 2, 2), (16, 16, 2), 8, 16, 1),
    (3, (1, 1, 1), (1, 8, 5), 1, 16, 1),
    (3, (1, 2, 2), (8, 7, 1), 32, 32, 1),
    (3, (1, 1, 2), (12, 16, 2), 1, 16, 1),
    (3, (1, 2), (12, 2), 1, 16, 1),
    (3, (2, 2), (5, 1), 32, 64, 1),
    (7, (2, 2, 1), (7, 6, 5), 3, 8, 1),
    (7, (2, 2, 2), (6, 32, 1), 40, 40, 40),
]
GAPS = [((1, 1, 3), (2, 2, 2), (24, 12, 3), 32, 32, 1), (1, (2, 2), (12, 12), 8, 16, 1)]
TRANSPOSED = [((4, 4, 4), (3, 12, 6), 8, 16), ((4, 4), (4, 2), 16, 16), ((3, 3, 3), (7, 32, 1), 24, 40)]


def agrees(module, x, literal, dtype, casts=True):
    """The module's answer and gradients in a precision, five times, against those of `literal` in float64."""
    entered = x.detach().double().requires_grad_()
    weight = module.weight.detach().double().requires_grad_()
    want = literal(entered, weight, module.bias.detach().double())
    slope = torch.randn_like(want).to(dtype)
    wanted = torch.autograd.grad(want, (entered, weight), slope.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for _ in range(5):
        junk = [torch.full((2**n,), float("nan"), dtype=dtype) for n in range(4, 20) for _ in range(6)]
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=casts and dtype != torch.float32):
            y = module(x)
        got = torch.autograd.grad(y, (x, module.weight), slope.to(y.dtype))
        for ours, theirs in zip((y, *got), (want, *wanted), strict=True):
            assert ours.shape == theirs.shape
            assert (ours.double() - theirs).norm() <= tolerance * theirs.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "size", "channels", "outputs", "groups"), [*SMALL, *GAPS])
def test_small_maps_and_gaps(kernel, stride, size, channels, outputs, groups, last, dtype):
    torch.manual_seed(0)
    dims = len(size)
    layout = nd.layout(dims, last)
    conv = nd.conv(dims, channels, outputs, kernel_size=kernel, stride=stride, groups=groups).to(memory_format=layout)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.bfloat16())
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=layout).requires_grad_()
    literal = F.conv2d if dims == 2 else F.conv3d
    agrees(conv, x, lambda x, w, b: literal(x, w, b, conv.stride, conv.padding, 1, groups), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "size", "channels", "outputs"), TRANSPOSED)
def test_transposed_convolutions(stride, size, channels, outputs, dtype):
    torch.manual_seed(0)
    dims = len(size)
    up = nd.transposed_conv(dims, channels, outputs, stride=stride)
    with torch.no_grad():
        up.weight.copy_(up.weight.bfloat16())
    x = torch.randn(1, channels, *size).to(dtype).requires_grad_()
    literal = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    agrees(up, x, lambda x, w, b: literal(x, w, b, stride), dtype)


def test_several_small_maps_are_one():
    torch.manual_seed(0)
    conv = nd.conv(3, 8, 4, stride=2)
    x = torch.randn(1, 8, 2, 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        joined, parts = conv(x), conv([x[:, :3], x[:, 3:]])
    assert joined.dtype == torch.bfloat16 and torch.equal(joined, parts)
    torch.testing.assert_close(joined.float(), conv(x), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("options", [{"dilation": 2}, {"stride": 3}, {"kernel_size": 1, "stride": 2}])
def test_weights_in_low_precision_are_kept_from_it_too(options, casts):
    torch.manual_seed(0)
    conv = nd.conv(2, 24, 10, **options).to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(1, 24, 40, 40).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    settings = (conv.stride, conv.padding, conv.dilation)
    agrees(conv, x, lambda x, w, b: F.conv2d(x, w, b, *settings), torch.bfloat16, casts)
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        assert conv(x).dtype == (torch.float32 if casts else torch.bfloat16)
    if not casts:
        with pytest.raises(RuntimeError):
            conv(x.float())  # of another type than the weights, as torch has it


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "zeros"),
    [
        ((8, 8), (3, 3), (1, 2), (1, 1), (0, 0)),
        ((4, 4), (3, 3), (2, 2), (1, 1), (0, 0)),
        ((2, 3), (3, 3), (2, 2), (1, 1), (2, 1)),
        ((6, 2), (7, 7), (2, 1), (3, 3), (2, 5)),
        ((2, 4), (2, 2), (2, 2), (0, 0), (2, 0)),
    ],
)
def test_extra_padding_is_counted(size, kernel, stride, padding, zeros):
    asked = Convolution([torch.zeros(1, 1, *size)], torch.zeros(1, 1, *kernel), None, stride, padding, (1, 1), 1)
    assert workarounds.extra_padding(asked) == zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(2, 3, 2, 0), (2, 5, 2, 0), (1, 2, 2, 0), (1, 6, 2, 1)]
)
def test_a_map_that_a_kernel_does_not_fit_into_is_torch_s_error(size, kernel, stride, padding, dtype):
    """Zeros behind its end would make it fit, and an empty map of it."""
    x, w = torch.randn(1, 4, size, size, dtype=dtype), torch.randn(5, 4, kernel, kernel, dtype=dtype)
    for call in (F.conv2d, convolve):
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            call(x, w, None, stride=(stride, stride), padding=(padding, padding))


@pytest.mark.parametrize("stride", [(2, 2), (3, 3)])
@pytest.mark.parametrize("of", ["kernel", "bias"])
def test_a_transposed_convolution_of_several_precisions_is_what_torch_makes_of_it(stride, of):
    """An error; but on a processor without bf16 torch adds a bias of float32."""
    x, w, b = torch.randn(1, 4, 5, 5).bfloat16(), torch.randn(4, 6, *stride), torch.randn(6)
    weight, bias = (w, None) if of == "kernel" else (w.bfloat16(), b)
    try:
        expected = F.conv_transpose2d(x, weight, bias, stride)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            convolve_transposed(x, weight, bias, stride=stride)
    else:
        made = convolve_transposed(x, weight, bias, stride=stride)
        assert made.dtype == expected.dtype
        torch.testing.assert_close(made, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve_transposed(x, w, b, stride=stride).dtype == torch.bfloat16


def test_in_float32_small_maps_without_a_stride_stay_as_they_are():
    asked = Convolution([torch.zeros(1, 1, 2, 2)], torch.zeros(1, 1, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    assert workarounds.extra_padding(asked) == (0, 0)
    assert workarounds.extra_padding(asked._replace(maps=[asked.maps[0].bfloat16()])) == (1, 1)
