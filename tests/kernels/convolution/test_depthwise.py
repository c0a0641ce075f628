"""Depthwise convolutions against torch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.kernels.convolution import dispatch
from ulna.kernels.convolution.depthwise import convolve_depthwise

# (N, C, *S), kernel, stride: odd sizes, a row of one pixel, kernels wider than the map, unlike axes
CASES = [
    ((2, 5, 9, 10), (3, 3), (1, 1)),
    ((1, 4, 9, 12), (5, 5), (1, 1)),
    ((2, 3, 8, 7), (7, 7), (2, 2)),
    ((1, 2, 1, 9), (5, 3), (1, 1)),
    ((2, 6, 5, 11), (3, 5), (1, 2)),
    ((1, 3, 5, 6, 7), (3, 3, 3), (1, 1, 1)),
    ((2, 2, 4, 3, 9), (5, 5, 5), (1, 1, 1)),
    ((1, 3, 6, 5, 8), (1, 5, 3), (1, 2, 2)),
]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 0.008}  # bf16: one rounding of the sums, one of the result


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("size", "kernel", "stride"), CASES)
def test_values_and_gradients_are_those_of_the_definition(size, kernel, stride, dtype):
    generator = torch.Generator().manual_seed(sum(size))
    padding = [n // 2 for n in kernel]
    values = [torch.randn(s, generator=generator).to(dtype) for s in (size, (size[1], 1, *kernel), size[1:2])]
    ours = [v.clone().requires_grad_() for v in values]
    exact = [v.double().requires_grad_() for v in values]
    y = convolve_depthwise(*ours, stride=stride, padding=padding)
    truth = (F.conv2d if len(kernel) == 2 else F.conv3d)(*exact, stride, padding, 1, size[1])
    dy = torch.randn(truth.shape, generator=generator).to(dtype)
    y.backward(dy)
    truth.backward(dy.double())
    for mine, true in zip((y, *(v.grad for v in ours)), (truth, *(v.grad for v in exact)), strict=True):
        assert mine.dtype == dtype and mine.shape == true.shape
        assert (mine - true).abs().max() <= TOLERANCES[dtype] * true.abs().max()


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_of_a_training_under_autocast_give_float32_weights_their_gradients(dims, monkeypatch):
    monkeypatch.setenv("ULNA_NATIVE", "1")  # needs the switch alone, nothing compiled
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    conv = nd.conv(dims, 6, 6, kernel_size=5, groups=6)
    x = torch.randn(2, 6, *(9, 8, 7)[:dims]).contiguous(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert "Depthwise" in type(y.grad_fn).__name__
    dy = torch.randn(y.shape).to(y.dtype)
    y.backward(dy)
    exact = [t.detach().double().requires_grad_() for t in (x, conv.weight, conv.bias)]
    (F.conv2d if dims == 2 else F.conv3d)(*exact, 1, 2, 1, 6).backward(dy.double())
    for mine, true in zip((x, conv.weight, conv.bias), exact, strict=True):
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - true.grad).abs().max() < 0.01 * true.grad.abs().max()


def test_a_backward_pass_within_autocast_is_in_the_precision_of_the_forward_pass():
    x, weight = torch.randn(1, 4, 5, 6, 7), torch.randn(4, 1, 3, 3, 3)
    grads = []
    for low in (False, True):
        ours = x.clone().requires_grad_()
        y = convolve_depthwise(ours, weight.clone().requires_grad_(), None, stride=(1,) * 3, padding=(1,) * 3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            y.sum().backward()
        grads.append(ours.grad)
    assert torch.equal(*grads)


def test_an_input_that_asks_for_no_gradient_gets_none():
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    x = torch.randn(1, 3, 6, 6)
    convolve_depthwise(x, weight, None, stride=(1, 1), padding=(1, 1)).sum().backward()
    assert x.grad is None and weight.grad is not None


def test_a_network_takes_them_by_itself_where_they_are_faster(monkeypatch):
    monkeypatch.setenv("ULNA_NATIVE", "1")
    taken = []
    path = dispatch.PATHS["depthwise"]
    watched = path._replace(run=lambda asked: taken.append(asked.maps[0].shape) or path.run(asked))
    monkeypatch.setitem(dispatch.PATHS, "depthwise", watched)

    def low(conv, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return conv(x)

    plane, volume = torch.randn(1, 6, 8, 8), torch.randn(1, 6, 4, 5, 6)
    wide, cube = nd.conv(2, 6, 6, kernel_size=5, groups=6), nd.conv(3, 6, 6, groups=6)
    y = low(wide, plane)
    assert y.dtype == torch.bfloat16 and torch.allclose(y.float(), wide(plane), atol=0.05)
    assert (cube(volume).dtype, low(cube, volume).dtype) == (torch.float32, torch.bfloat16)
    assert taken == [plane.shape, volume.shape, volume.shape]  # the plane in float32 is torch's
    others = [
        (nd.conv(2, 6, 6, groups=6), plane),  # small
        (nd.conv(3, 6, 6, groups=3), volume),  # groups of several channels
        (nd.conv(3, 6, 12, groups=6), volume),  # several outputs of a channel
        (nd.conv(3, 6, 6, groups=6, dilation=2), volume),
        (nd.conv(3, 1, 1), volume[:, :1]),
    ]
    for other, image in others:
        low(other, image)
    nd.conv(3, 6, 6, groups=6).double()(volume.double())
    with torch.no_grad():
        cube(volume)
    monkeypatch.setenv("ULNA_NATIVE", "0")
    cube(volume)
    assert len(taken) == 3
