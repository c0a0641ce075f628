"""Multi-dimensional self-attention against Eq. 9 to 13 of omega-Net (wang2020), written out pixel by pixel."""

import itertools
import math

import pytest
import torch

from ulna.blocks.self_attention import ChannelAttention, MultiDimensionalAttention, SpatialAttention
from ulna.errors import UsageError

SIZES = {2: (3, 5), 3: (2, 3, 3)}
OPTIONS = {"features": 2, "pooling": "attention", "scaled": False, "gated": False}


def softmax(values):
    """Of a list of scalars, by definition."""
    top = max(v.item() for v in values)
    powers = [torch.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def dilated(x, conv):
    """A 3-wide convolution of dilation 2, written out: {map: {pixel: value}} of an image (C, *S)."""
    size = x.shape[1:]
    maps = []
    for o in range(conv.weight.shape[0]):
        values = []
        for pixel in itertools.product(*map(range, size)):
            total = conv.bias[o]
            for tap in itertools.product(range(3), repeat=len(size)):
                at = tuple(p + 2 * (t - 1) for p, t in zip(pixel, tap, strict=True))
                if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                    for c in range(x.shape[0]):
                        total = total + conv.weight[(o, c, *tap)] * x[(c, *at)]
            values.append(total)
        maps.append(values)
    return maps


def spatial(block, x, *, scaled=False, gate=1.0):
    """Eq. 10 and 11 for one image (C, *S)."""
    C = x.shape[0]
    pixels = [[x[(c, *p)] for c in range(C)] for p in itertools.product(*map(range, x.shape[1:]))]
    D = []
    for drawn in dilated(x, block.dilated):
        weights = softmax(drawn)
        D.append([sum(w * m[c] for w, m in zip(weights, pixels, strict=True)) for c in range(C)])
    scale = 1 / math.sqrt(C) if scaled else 1.0
    out = []
    for m in pixels:
        a = softmax([dot(d, m) * scale for d in D])
        out.append(torch.stack([gate * sum(ai * d[c] for ai, d in zip(a, D, strict=True)) + m[c] for c in range(C)]))
    return torch.stack(out, dim=1).reshape(x.shape)


def channelwise(x, *, scaled=False, gate=1.0):
    """Eq. 12 and 13 for one image (C, *S)."""
    M = [list(row) for row in x.flatten(1)]
    scale = 1 / math.sqrt(len(M[0])) if scaled else 1.0
    out = []
    for mj in M:
        a = softmax([dot(mi, mj) * scale for mi in M])
        out.append(
            torch.stack([gate * sum(ai * mi[p] for ai, mi in zip(a, M, strict=True)) + mj[p] for p in range(len(mj))])
        )
    return torch.stack(out).reshape(x.shape)


def assert_same(y, expected, leaves):
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    got, wanted = (torch.autograd.grad((out * seed).sum(), leaves, retain_graph=True) for out in (y, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def image(spatial_dims, channels=3):
    torch.manual_seed(0)
    return torch.randn(1, channels, *SIZES[spatial_dims], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_spatial_attention_is_its_equations(spatial_dims, scaled):
    x = image(spatial_dims)
    block = SpatialAttention(spatial_dims, 3, **{**OPTIONS, "scaled": scaled}).double()
    assert_same(block(x), spatial(block, x[0], scaled=scaled)[None], [x, *block.parameters()])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_channel_attention_is_its_equations(spatial_dims, scaled):
    x = image(spatial_dims)
    assert_same(ChannelAttention(scaled=scaled, gated=False)(x), channelwise(x[0], scaled=scaled)[None], [x])


def test_skips_pass_space_first_and_channels_second_and_the_resampled_map_stays():
    x, up = image(2), torch.randn(1, 2, *SIZES[2], dtype=torch.float64)
    block = MultiDimensionalAttention(2, 2, (3,), features=2).double()
    expected = channelwise(spatial(block.refine[0][1], x[0]))[None]
    assert_same(block(up, [x]), torch.cat([up, expected], 1), [x, *block.parameters()])


def test_gates_start_at_zero_and_weigh_the_attended_sums():
    x, up = image(2), torch.zeros(1, 1, *SIZES[2], dtype=torch.float64)
    block = MultiDimensionalAttention(2, 1, (3,), features=2, gated=True).double()
    assert torch.equal(block(up, [x])[:, 1:], x)
    with torch.no_grad():
        block.refine[0][1].gate.fill_(0.3)
        block.refine[0][2].gate.fill_(-0.7)
    expected = channelwise(spatial(block.refine[0][1], x[0], gate=0.3), gate=-0.7)[None]
    torch.testing.assert_close(block(up, [x])[:, 1:], expected)


def test_average_pooling_takes_the_means_of_equal_runs():
    x = image(2)
    block = SpatialAttention(2, 3, **{**OPTIONS, "features": 3, "pooling": "average"}).double()
    drawn = block.dilated(x)[0].flatten(1)
    D = [drawn[:, first : first + 5].mean(1) for first in (0, 5, 10)]
    m = x[0].flatten(1)
    out = []
    for j in range(15):
        a = softmax([dot(d, m[:, j]) for d in D])
        out.append(sum(ai * d for ai, d in zip(a, D, strict=True)) + m[:, j])
    torch.testing.assert_close(block(x)[0].flatten(1), torch.stack(out, 1))


@pytest.mark.parametrize("options", [{}, {"scaled": True, "gated": True}, {"cascade": True}, {"pooling": "average"}])
def test_gradients_are_those_of_finite_differences(options):
    torch.manual_seed(1)
    block = MultiDimensionalAttention(2, 1, (2,), features=2, **options).double()
    up, skip = (torch.randn(1, c, 2, 3, dtype=torch.float64, requires_grad=True) for c in (1, 2))
    assert torch.autograd.gradcheck(lambda u, s: block(u, [s]), (up, skip))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_at_the_end_of_half_precision_give_no_nan(dtype, scaled):
    """Dot products reach 6e4 squared times the pixels: beyond half precision, and the softmax saturates to 0 and 1."""
    torch.manual_seed(0)
    x = torch.full((1, 4, 6, 5), 2e4).to(dtype)
    x[:, 0], x[:, 1, 0] = -2e4, 3e4
    x.requires_grad_()
    block = torch.nn.Sequential(
        SpatialAttention(2, 4, **{**OPTIONS, "scaled": scaled}).to(dtype), ChannelAttention(scaled=scaled, gated=False)
    )
    with torch.no_grad():
        block[0].dilated.weight.mul_(1e-3)  # the convolution alone would leave float16
    attended = block[0](x / 8)
    y = block[1](attended)
    assert y.dtype == dtype
    assert y.isfinite().all()
    y.float().mean().backward()
    assert x.grad.isfinite().all()
    assert not any(p.grad.isnan().any() for p in block.parameters())  # the sums themselves may leave float16


def test_saturated_channel_attention_returns_twice_its_map():
    x = torch.diag(torch.tensor([300.0, 500.0, 400.0])).reshape(1, 3, 3, 1)  # orthogonal: each channel resembles itself
    assert torch.equal(ChannelAttention(scaled=False, gated=False)(x), 2 * x)


def test_equal_channels_share_their_attention():
    x = torch.randn(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(ChannelAttention(scaled=False, gated=False)(x), 2 * x)


def test_autocast_keeps_the_products_in_float32():
    x = torch.randn(2, 4, 5, 5)
    block = SpatialAttention(2, 4, **OPTIONS)
    channel = ChannelAttention(scaled=False, gated=False)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = block(x)
        torch.testing.assert_close(channel(x), channel(x.double()).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed, block(x), atol=0.05, rtol=0.02)  # the dilated convolution alone runs in bf16


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 1, 3)])
def test_single_pixels_and_thin_maps_are_attended(size):
    block = MultiDimensionalAttention(len(size), 2, (3, 1), features=4)
    maps = [torch.randn(1, c, *size) for c in (2, 3, 1)]
    assert block(maps[0], maps[1:]).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"), [({"features": 0}, "1 or more"), ({"pooling": "atention"}, "did you mean 'attention'")]
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MultiDimensionalAttention(2, 1, (2,), **options)
