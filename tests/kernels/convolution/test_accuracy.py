"""How far the native convolution is off, and how far an odd value reaches."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ulna import build
from ulna.kernels import native
from ulna.kernels.convolution import convolve, path_of

needs_native = pytest.mark.skipif(not native.available(), reason="no native kernels here: torch's own convolution runs")
ODD = (float("inf"), -float("inf"), float("nan"))


def drawn(*size: int, outputs: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kernel = (3,) * (len(size) - 2)
    x = torch.randn(size, generator=generator)
    w = torch.randn((outputs, size[1], *kernel), generator=generator) * (2 / (9 * size[1])) ** 0.5
    return x, w, torch.randn((size[0], outputs, *size[2:]), generator=generator)


def direct(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return (F.conv2d if w.ndim == 4 else F.conv3d)(x, w, b, padding=1)


def relative(ours: Tensor, truth: Tensor) -> float:
    return ((ours - truth).abs().max() / truth.abs().max()).item()


@needs_native
@pytest.mark.parametrize("channels", [16, 32, 128, 256, 512])
def test_errors_are_small_and_do_not_grow_with_the_channels(channels: int) -> None:
    """1.2e-6 of the largest value was measured; torch's direct one is off by 2e-7 to 5e-7, the usual points by 2e-5."""
    x, w, dy = drawn(1, channels, 32, 32, outputs=channels)
    leaves, exact = ([t.to(dtype).requires_grad_() for t in (x, w)] for dtype in (torch.float32, torch.float64))
    assert path_of(*leaves) == "winograd"
    y, truth = convolve(*leaves, None), direct(*exact)
    assert relative(y, truth) < 3e-6
    found = torch.autograd.grad(y, leaves, dy)
    for ours, theirs in zip(found, torch.autograd.grad(truth, exact, dy.double()), strict=True):
        assert relative(ours, theirs) < 3e-6


@needs_native
def test_a_large_pixel_spoils_no_digits_far_from_it() -> None:
    x, w, _ = drawn(1, 16, 32, 32, outputs=16)
    w = w / w.std() * 0.1
    x[0, :, 9, 9] = 1e4
    errors = (convolve(x, w, None) - direct(x.double(), w.double())).abs()[0].amax(0)
    sees = torch.zeros(32, 32, dtype=torch.bool)
    sees[8:11, 8:11] = True
    tile = torch.zeros(32, 32, dtype=torch.bool)
    tile[8:12, 8:12] = True
    assert errors[tile & ~sees].max() < 6e-3  # 3e-3 was measured: what a tile shares
    assert errors[~tile].max() < 1e-4


@needs_native
@pytest.mark.parametrize("size", [(2, 8, 24, 26), (2, 9, 3, 20, 17)])
@pytest.mark.parametrize("value", ODD)
def test_a_value_that_is_not_finite_reaches_only_what_sees_it(size: tuple[int, ...], value: float) -> None:
    x, w, _ = drawn(*size)
    b = torch.randn(8)
    sound = convolve(x, w, b)
    for place in (5, 4, 0, size[-1] - 1):  # within a tile, at its corner, at the borders
        spoilt = x.clone()
        spoilt[1, 3, ..., place] = torch.where(torch.arange(size[-2]) == place % 20, value, spoilt[1, 3, ..., place])
        maps = [spoilt, [spoilt[:, :4], spoilt[:, 4:]]]
        truth = direct(spoilt, w, b)
        assert truth.isfinite().any() and not truth.isfinite().all()
        for m in maps:
            y = convolve(m, w, b)
            torch.testing.assert_close(y, truth, equal_nan=True, rtol=1e-4, atol=1e-4)
            assert torch.equal(y[0], sound[0])  # the other image is not touched


@needs_native
@pytest.mark.parametrize("value", ODD)
def test_gradients_that_are_not_finite_reach_only_what_made_them(value: float) -> None:
    x, w, dy = drawn(2, 9, 24, 26)
    dy[0, 2, 13, 7] = value
    leaves, theirs = ([t.clone().requires_grad_() for t in (x, w)] for _ in range(2))
    found = torch.autograd.grad(convolve(*leaves, None), leaves, dy)
    for ours, truth in zip(found, torch.autograd.grad(direct(*theirs), theirs, dy), strict=True):
        assert truth.isfinite().any() and not truth.isfinite().all()
        torch.testing.assert_close(ours, truth, equal_nan=True, rtol=1e-4, atol=1e-4)


@needs_native
def test_values_near_the_largest_that_there_are_stay_finite() -> None:
    """Sums of pixels overflow where those of their small products do not."""
    x, w, _ = drawn(1, 8, 24, 24)
    x = x.sign() * 3e38
    y, truth = convolve(x, w * 1e-3, None), direct(x.double(), w.double() * 1e-3)
    assert y.isfinite().all()
    assert relative(y, truth) < 1e-5


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"parameters": 1_000_000}),
        ("unetpp", {"parameters": 300_000}),
        ("nnunet", {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)}),
        ("sdu_net", {"channels": (16, 32)}),
        ("omega_net", {"channels": (16, 32, 64)}),
        ("implicit_unet", {"channels": (16, 32, 64)}),
    ],
)
@pytest.mark.share(3)
def test_a_batch_of_seven_is_seven_batches_of_one(name: str, options: dict[str, object], size: int) -> None:
    """1.4e-6 to 5e-6 was measured: torch's library too chooses its products by the batch."""
    generator = torch.Generator().manual_seed(3)
    net = build(name, in_channels=1, classes=2, spatial_dims=2, generator=generator, **options).eval()
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(7, 1, size, size, generator=generator)
    with torch.no_grad():
        together, apart = net(images), torch.cat([net(image[None]) for image in images])
    assert relative(together, apart) < 1e-5


@needs_native
@pytest.mark.parametrize("side", [16, 22, 24, 33])
@pytest.mark.parametrize("channels", [16, 256])
def test_a_batch_is_convolved_as_each_of_its_images(side: int, channels: int) -> None:
    """Bit for bit where the kernel takes them, and it takes all or none of them."""
    x, w, _ = drawn(5, channels, side, side, outputs=channels)
    path = path_of(x, w)
    assert path_of(x[:1], w) == path
    if path == "winograd":
        assert torch.equal(convolve(x, w, None), torch.cat([convolve(one[None], w, None) for one in x]))
