"""Weight gradients in chunks against a convolution in float64, and against torch's own in bf16."""

import math

import pytest
import torch
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.kernels.convolution import chunked, dispatch, workarounds
from ulna.kernels.convolution.chunked import convolve_chunked

# (N, C, *S), K, kernel, stride: strides that leave rows over, several images, chunks of one row, more chunks asked than rows
CASES = [
    ((1, 4, 13, 9, 10), 6, (3, 3, 3), (1, 1, 1)),
    ((2, 4, 13, 9, 10), 6, (3, 3, 3), (2, 2, 2)),
    ((1, 4, 12, 8, 10), 3, (3, 3, 3), (2, 1, 2)),
    ((1, 3, 11, 7, 6), 5, (1, 3, 3), (1, 2, 2)),
    ((1, 3, 10, 8, 6), 5, (2, 2, 2), (2, 2, 2)),
    ((1, 4, 9, 8, 7), 2, (5, 3, 1), (1, 1, 1)),
    ((2, 4, 3, 17, 9), 2, (3, 1, 3), (1, 2, 1)),
    ((1, 4, 4, 6, 21), 5, (3, 3, 3), (2, 1, 2)),
    ((2, 4, 33, 10), 6, (3, 3), (1, 1)),
    ((1, 4, 33, 20), 3, (3, 3), (2, 2)),
]


# Of the largest value: two roundings to bf16. Below AVX-512 the library rounds partial sums too (1.3 % seen).
ROUNDED = 0.008 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.03


# voxels and least rows of a chunk: rows that any axis has, rows that the longest one alone has, and rows that none has
@pytest.mark.parametrize(("voxels", "rows"), [(70, 1), (250, 1), (250, 7), (100, 50)])
@pytest.mark.parametrize(("size", "outputs", "kernel", "stride"), CASES)
def test_gradients_are_those_of_the_whole(size, outputs, kernel, stride, voxels, rows, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", voxels)
    monkeypatch.setattr(workarounds, "ROWS", rows)
    monkeypatch.setattr(workarounds, "PLANE", 0)
    generator = torch.Generator().manual_seed(sum(size))
    padding = [(n - 1) // 2 for n in kernel]
    shapes = size, (outputs, size[1], *kernel), (outputs,)
    values = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    ours = [v.clone().requires_grad_() for v in values]
    exact = [v.double().requires_grad_() for v in values]
    y = convolve_chunked(*ours, stride=stride, padding=padding)
    truth = (F.conv2d if len(kernel) == 2 else F.conv3d)(*exact, stride, padding)
    dy = torch.randn(truth.shape, generator=generator).bfloat16()
    y.backward(dy)
    truth.backward(dy.double())
    for mine, true in zip((y, *(v.grad for v in ours)), (truth, *(v.grad for v in exact)), strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == true.shape
        assert (mine - true).abs().max() < ROUNDED * true.abs().max()


def test_many_channels_to_few_are_taken_block_by_block(monkeypatch):
    """No call may leave torch's library two blocks of input channels to share between threads for one of outputs."""
    monkeypatch.setattr(chunked, "CHUNK", 300)
    monkeypatch.setattr(workarounds, "ROWS", 1)
    asked = []
    real = chunked._backward
    monkeypatch.setattr(
        chunked, "_backward", lambda dy, x, *rest: asked.append((x.shape[1], rest[-1])) or real(dy, x, *rest)
    )
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator).bfloat16() for size in ((1, 70, 9, 6, 8), (5, 70, 3, 3, 3))]
    ours = [v.clone().requires_grad_() for v in values]
    exact = [v.double().requires_grad_() for v in values]
    y = convolve_chunked(*ours, None, stride=(1, 1, 1), padding=(1, 1, 1))
    truth = F.conv3d(*exact, None, 1, 1)
    dy = torch.randn(y.shape, generator=generator).bfloat16()
    y.backward(dy)
    truth.backward(dy.double())
    weights = [channels for channels, (_, weight, _) in asked if weight]
    assert set(weights) == {32, 6} and len(weights) > 3
    for mine, true in zip(ours, exact, strict=True):
        assert (mine.grad - true.grad).abs().max() < ROUNDED * true.grad.abs().max()


@pytest.mark.parametrize("switch", ["1", "0"])
@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((3, 96, 96), (1, 1, 1)),
        ((6, 160, 96), (1, 1, 1)),
        ((4, 48, 128), (1, 2, 2)),
        ((34, 64, 64), (2, 2, 2)),
        ((20, 64, 64), (1, 1, 1)),
        ((3, 256, 256), (1, 1, 1)),
        ((72, 128, 128), (1, 1, 1)),
    ],
)
def test_no_weight_gradient_of_a_volume_has_few_rows_in_large_planes(size, stride, switch, monkeypatch):
    """Torch's library may wait for ever there, or write where it must not, with our own kernels or without."""
    monkeypatch.setenv("ULNA_NATIVE", switch)
    asked = []
    real = chunked._backward

    def watched(dy, x, weight, strides, padding, wanted):
        if wanted[1]:
            asked.append(dy.shape[2:])
            return None, torch.zeros_like(weight), None
        return real(dy, x, weight, strides, padding, wanted)

    monkeypatch.setattr(chunked, "_backward", watched)
    conv = nd.conv(3, 2, 3, stride=stride)
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.randn(1, 2, *size)).float().sum().backward()
    assert asked or (switch == "0" and size[0] > 40), "torch's own way"
    for rows, *plane in asked:
        assert rows >= workarounds.ROWS or math.prod(plane) <= workarounds.PLANE


@pytest.mark.parametrize(
    ("size", "stride"), [((3, 40, 48), (2, 2, 2)), ((4, 30, 64), (1, 2, 2)), ((2, 70, 60), (2, 1, 1))]
)
def test_a_transposed_convolution_of_few_rows_in_large_planes_is_turned_round(size, stride, monkeypatch):
    up, x = nd.transposed_conv(3, 4, 3, stride=stride), torch.randn(1, 4, *size).requires_grad_()
    own = torch.nn.ConvTranspose3d(4, 3, stride, stride)
    own.load_state_dict(up.state_dict())
    shapes = []
    real = F.conv_transpose3d
    monkeypatch.setattr(F, "conv_transpose3d", lambda x, *a, **k: shapes.append(x.shape[2:]) or real(x, *a, **k))
    with torch.autocast("cpu", torch.bfloat16):
        y = up(x)
    assert shapes == [torch.Size((max(size), *(size[0] if n == max(size) else n for n in size[1:])))]
    truth = own(x.detach().requires_grad_())
    assert y.shape == truth.shape
    assert (y - truth).abs().max() < 0.02 * truth.abs().max()
    dy = torch.randn_like(truth)
    got = torch.autograd.grad(y, [x, *up.parameters()], dy.to(y.dtype))
    for mine, true in zip(got[1:], torch.autograd.grad(truth, list(own.parameters()), dy), strict=True):
        assert (mine - true).norm() < 0.03 * true.norm()  # sums of rounded values that cancel
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        up(x)
    assert shapes[1] == torch.Size(size), "without gradients as it comes"


def test_several_maps_are_their_concatenation(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 150)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, 9, 7, 8, generator=generator).bfloat16().requires_grad_() for c in (3, 1, 4)]
    weight = torch.randn(5, 8, 3, 3, 3, generator=generator).bfloat16().requires_grad_()
    settings = {"stride": (1, 1, 1), "padding": (1, 1, 1)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape[1]) or t, lambda t: t):
        y = convolve_chunked(maps, weight, None, **settings)
    assert sorted(kept) == [1, 3, 4, 8]  # the maps themselves and the weight, but no copy of all
    dy = torch.randn(y.shape, generator=generator).bfloat16()
    wanted = [weight, maps[0], maps[2]]  # one of them asks for no gradient
    maps[1].requires_grad_(False)
    got = torch.autograd.grad(convolve_chunked(maps, weight, None, **settings), wanted, dy)
    whole = convolve_chunked(torch.cat(maps, dim=1), weight, None, **settings)
    assert torch.equal(y, whole)
    for a, b in zip(got, torch.autograd.grad(whole, wanted, dy), strict=True):
        assert (a - b).abs().max() <= ROUNDED * b.abs().max()


def test_a_network_takes_them_by_itself_in_low_precision_alone(monkeypatch):
    monkeypatch.setenv("ULNA_NATIVE", "1")
    monkeypatch.setattr(chunked, "CHUNK", 100)
    taken = []
    path = dispatch.PATHS["chunked"]
    watched = path._replace(run=lambda asked: taken.append(len(asked.maps)) or path.run(asked))
    monkeypatch.setitem(dispatch.PATHS, "chunked", watched)
    conv, x = nd.conv(3, 2, 4), torch.randn(1, 2, 6, 8, 8)
    conv(x)  # float32
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            conv(x)
        assert not taken
        parts = [x[:, :1].clone().requires_grad_(), x[:, 1:].clone().requires_grad_()]
        y = conv(parts)
    assert taken == [2] and y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in parts)
    with torch.autocast("cpu", torch.bfloat16):
        z = F.conv3d(x, conv.weight, conv.bias, padding=1)
    once = torch.autograd.grad(z.float().square().sum(), conv.weight)[0]
    assert (conv.weight.grad - once).abs().max() < 0.02 * once.abs().max()


def test_shares_that_cancel_are_as_exact_as_their_own_rounding(monkeypatch):
    """Half the gradient up, half down: every chunk's share is rounded by itself, so the error is one of the shares."""
    monkeypatch.setattr(chunked, "CHUNK", 512)
    x = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    w = torch.zeros(4, 4, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    dy = torch.ones(1, 4, 16, 16, 16).bfloat16()
    dy[:, :, 8:] = -1
    convolve_chunked(x + 1, w, None, stride=(1, 1, 1), padding=(1, 1, 1)).backward(dy)
    exact = w.detach().double().requires_grad_()
    F.conv3d((x + 1).double(), exact, padding=1).backward(dy.double())
    share = (x + 1)[:, :, :8].double().abs().sum() / 4  # of one half, for one input channel, about
    assert (w.grad - exact.grad).abs().max() < 2**-8 * share


def test_what_autocast_leaves_alone_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 8)
    conv, x = nd.conv(3, 1, 2).double(), torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.float64
    whole = nd.conv(3, 1, 2)
    with pytest.raises(RuntimeError):
        whole(x.bfloat16())  # float32 weights, and nobody casts
    monkeypatch.setenv("ULNA_NATIVE", "0")
    with torch.autocast("cpu", torch.bfloat16):
        y = whole(x.float())
    assert torch.autograd.grad(y.float().square().sum(), whole.weight, create_graph=True)[0].requires_grad
