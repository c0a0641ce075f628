"""The native convolution against torch's own in float64, which is slow, direct and independent of it."""

import itertools
import logging
import shutil

import pytest
import torch
from torch.nn import functional as F

from ulna import build
from ulna.blocks import nd
from ulna.kernels import native
from ulna.kernels.convolution import convolve, path_of, winograd

needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler here: torch's own convolution runs")

# (N, C, *S), K, kernel: partial tiles, odd and even sizes, one slice, channels beside whole vectors
SHAPES = [
    ((2, 8, 25, 33), 8, (3, 3)),
    ((1, 33, 17, 64), 40, (3, 3)),
    ((5, 16, 4, 100), 17, (3, 3)),
    ((2, 9, 3, 20, 15), 11, (3, 3, 3)),
    ((1, 8, 1, 24, 24), 16, (3, 3, 3)),
    ((1, 10, 5, 14, 13), 8, (1, 3, 3)),
]


def direct(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    return (F.conv2d if w.ndim == 4 else F.conv3d)(x, w, b, padding=[n // 2 for n in w.shape[2:]])


def drawn(size: tuple[int, ...], outputs: int, kernel: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(size))
    shapes = size, (outputs, size[1], *kernel), (outputs,), (size[0], outputs, *size[2:])
    return [torch.randn(shape, generator=generator) for shape in shapes]


def relative(ours: torch.Tensor | None, truth: torch.Tensor | None) -> float:
    assert ours is not None and truth is not None and ours.shape == truth.shape
    return ((ours - truth).abs().max() / truth.abs().max()).item()


@needs_native
@pytest.mark.parametrize(("size", "outputs", "kernel"), SHAPES)
def test_values_and_gradients_are_those_of_a_direct_convolution(
    size: tuple[int, ...], outputs: int, kernel: tuple[int, ...]
) -> None:
    x, w, b, dy = drawn(size, outputs, kernel)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    assert path_of(*leaves) == "winograd"
    y = convolve(*leaves)
    assert type(y.grad_fn).__name__ == "_ConvolutionBackward"
    y.backward(dy)
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    truth = direct(*exact)
    truth.backward(dy.double())
    assert relative(y, truth) < 2e-5
    for ours, theirs in zip(leaves, exact, strict=True):
        assert relative(ours.grad, theirs.grad) < 2e-5


@needs_native
@pytest.mark.parametrize(
    ("widths", "size", "kernel"),
    [
        ((8, 3, 21), (2, 30, 26), (3, 3)),
        ((1, 1, 7), (1, 24, 24), (3, 3)),
        ((8, 16), (2, 3, 20, 15), (3, 3, 3)),
    ],
)
def test_several_maps_are_their_concatenation(widths: tuple[int, ...], size: tuple[int, ...], kernel) -> None:
    n, *space = size
    x, w, b, dy = drawn((n, sum(widths), *space), 11, kernel)
    whole = [t.clone().requires_grad_() for t in (x, w, b)]
    apart = [t.clone().requires_grad_() for t in (*x.split(widths, dim=1), w, b)]  # type: ignore[no-untyped-call]
    assert path_of(apart[:-2], w) == "winograd"
    results = [convolve(*whole), convolve(apart[:-2], *apart[-2:])]
    assert torch.equal(*results)
    for y in results:
        y.backward(dy)
    assert torch.equal(torch.cat([part.grad for part in apart[:-2]], dim=1), whole[0].grad)  # type: ignore[arg-type]
    assert all(torch.equal(a.grad, c.grad) for a, c in zip(apart[-2:], whole[1:], strict=True))  # type: ignore[arg-type]
    small = [part[..., :5, :5] for part in x.split(widths, dim=1)]  # type: ignore[no-untyped-call]
    assert torch.equal(convolve(small, w, b), direct(torch.cat(small, dim=1), w, b))


@needs_native
@pytest.mark.parametrize("widths", [(12,), (32,), (8, 9)])
def test_maps_that_do_not_fit_are_torch_s_error_and_never_read_past_their_end(widths: tuple[int, ...]) -> None:
    maps = [torch.zeros(1, width, 32, 32) for width in widths]
    with pytest.raises(RuntimeError, match="channels"):
        nd.conv(2, 16, 16)(maps)
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        nd.conv(2, 16, 16)([torch.zeros(2, 8, 32, 32), torch.zeros(1, 8, 32, 16)])


@needs_native
def test_without_bias_and_with_any_memory_layout() -> None:
    x, w, _, dy = drawn((2, 8, 20, 24), 12, (3, 3))
    wide = torch.zeros(2, 8, 40, 24)[:, :, ::2].copy_(x)  # strided
    results = []
    for image in (x, x.contiguous(memory_format=torch.channels_last), wide):
        image = image.detach().requires_grad_()
        weight = w.clone().requires_grad_()
        y = convolve(image, weight, None)
        y.backward(dy.expand(2, 12, 20, 24))
        results.append((y, image.grad, weight.grad))
    for first, other in itertools.product(results[:1], results[1:]):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))  # type: ignore[arg-type]


@needs_native
@pytest.mark.parametrize(("size", "outputs", "kernel"), SHAPES[:4])
def test_two_runs_give_the_same_bits_and_a_case_does_not_depend_on_its_batch(
    size: tuple[int, ...], outputs: int, kernel: tuple[int, ...]
) -> None:
    x, w, b, dy = drawn(size, outputs, kernel)
    weights = [w.clone().requires_grad_() for _ in range(2)]
    results = [convolve(x, weight, b) for weight in weights]
    for y in results:
        y.backward(dy)
    assert torch.equal(*results)
    assert torch.equal(weights[0].grad, weights[1].grad)  # type: ignore[arg-type]
    doubled = convolve(torch.cat([x.flip(0), x]), w, b)
    assert torch.equal(doubled[size[0] :], results[0])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(convolve(x, w, b), results[0])
    finally:
        torch.set_num_threads(before)


@needs_native
def test_not_a_number_is_not_hidden() -> None:
    x, w, b, _ = drawn((1, 8, 24, 24), 8, (3, 3))
    x[0, 3, 10, 10] = float("nan")
    assert convolve(x, w, b)[0, :, 10, 10].isnan().all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x, w: (x.double(), w.double()), "float64"),
        (lambda x, w: (x[:, :, :5, :5], w), "too few pixels"),
        (lambda x, w: (x[:, :3], w[:, :3]), "too few channels"),
        (lambda x, w: (x, w[:, :, 1:2, 1:2]), "another kernel"),
        (lambda x, w: (x.to("meta"), w.to("meta")), "no values"),
    ],
)
def test_what_does_not_suit_goes_to_torch(change, why: str) -> None:
    x, w = change(*drawn((1, 8, 24, 24), 8, (3, 3))[:2])
    assert path_of(x, w) == "torch", why
    y = convolve(x, w, None)
    assert y.device.type == "meta" or torch.equal(y, direct(x, w, None))


def test_autocast_decides_before_the_kernel() -> None:
    x, w = drawn((1, 8, 24, 24), 8, (3, 3))[:2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolve(x, w, None).dtype == torch.bfloat16


def test_without_a_native_kernel_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not native.available()
    x, w, b, _ = drawn((1, 8, 24, 24), 8, (3, 3))
    assert torch.equal(convolve(x, w, b), direct(x, w, b))
    net = build("unet", in_channels=1, channels=(8, 16))
    net(torch.zeros(1, 1, 33, 20)).sum().backward()


def test_a_missing_compiler_is_said_once_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(native.SWITCH, "1")
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with caplog.at_level(logging.INFO):
        assert native.library.__wrapped__("convolution") is None
    assert "no C++ compiler found" in caplog.text


def test_a_user_without_a_home_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", no_home)
    assert native.library.__wrapped__("convolution") is None


@pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler here")
def test_a_kernel_that_does_not_compile_is_said_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    monkeypatch.setenv(native.SWITCH, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("--no-such-option",))
    with caplog.at_level(logging.INFO):
        assert native.library.__wrapped__("convolution") is None
    assert "is not used" in caplog.text
    assert list((tmp_path / "ulna").iterdir()) == []


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library.__wrapped__("convolution") is None


@needs_native
def test_an_exported_network_has_no_native_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "FEWEST_PIXELS", 1)
    net = build("unet", in_channels=1, channels=(8, 16)).eval()
    x = torch.randn(1, 1, 32, 32)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-4)


def test_modules_with_other_strides_or_groups_are_torch_s() -> None:
    x = torch.randn(1, 8, 24, 24)
    for options in ({"stride": 2}, {"groups": 2}, {"kernel_size": 2, "stride": 2}):
        ours = nd.conv(2, 8, 8, **options)  # type: ignore[arg-type]
        assert torch.equal(ours(x), ours._conv_forward(x, ours.weight, ours.bias))  # type: ignore[operator,union-attr]
