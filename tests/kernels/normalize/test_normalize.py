"""Normalisation and activation in one pass, against torch's own in float64."""

import copy
import platform

import pytest
import torch
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.blocks.conv import ConvNormAct
from ulna.kernels import native
from ulna.kernels.normalize import batch_norm, force, instance_norm, suits

needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler here: torch's own norm runs")

# channels beside whole vectors, one position a chunk and many chunks, a single channel
SHAPES = [(2, 32, 5, 7), (3, 19, 6, 5, 4), (1, 8, 97, 80), (2, 70, 17, 9, 8), (2, 1, 9, 9)]
# largest error as a share of the largest value: float32 sums; bfloat16 has 8 bits, and its gradient is rounded twice
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-3}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    w, b = torch.randn(2, shape[1], generator=generator).unbind()
    return [channels_last((3 * x + 20).to(dtype)), w.clone(), b.clone(), channels_last(dy.to(dtype))]


def relative(ours: torch.Tensor | None, truth: torch.Tensor | None) -> float:
    assert ours is not None and truth is not None and ours.shape == truth.shape
    return ((ours.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()


@needs_native
@pytest.mark.parametrize("slope", [1.0, 0.0, 0.01])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["instance", "batch"])
def test_values_statistics_and_gradients_are_those_of_torch(kind, shape, dtype, slope) -> None:
    x, w, b, dy = drawn(shape, dtype)
    ours = [t.clone().requires_grad_() for t in (x, w, b)]
    assert suits(*ours[:3])
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    if kind == "instance":
        y = instance_norm(*ours, eps=1e-5, slope=slope)
        truth = F.instance_norm(exact[0], weight=exact[1], bias=exact[2], eps=1e-5)
    else:
        y, mean, variance = batch_norm(*ours, eps=1e-5, slope=slope)
        truth = F.batch_norm(exact[0], None, None, *exact[1:], training=True, eps=1e-5)
        axes = [0, *range(2, x.ndim)]
        assert relative(mean, x.double().mean(axes)) < 1e-6
        assert relative(variance, x.double().var(axes, correction=0)) < 1e-5  # of values around 20
    assert "Normalize" in type(y.grad_fn).__name__
    truth = F.leaky_relu(truth, slope)
    y.backward(dy)
    truth.backward(dy.double())
    assert y.dtype == dtype and relative(y, truth) < TOLERANCE[dtype]
    for mine, theirs in zip(ours, exact, strict=True):
        assert relative(mine.grad, theirs.grad) < TOLERANCE[dtype]


@needs_native
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instructions of other processors")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_processors_without_avx512_read_the_last_channels_too(dtype, monkeypatch) -> None:
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-mno-avx512f"))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    for shape in SHAPES:
        test_values_statistics_and_gradients_are_those_of_torch("instance", shape, dtype, 0.01)


@needs_native
def test_bits_depend_neither_on_threads_nor_on_the_batch() -> None:
    x, w, b, _ = drawn((2, 24, 300, 40), torch.float32)
    whole, threads = instance_norm(x, w, b, eps=1e-5), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(instance_norm(x, w, b, eps=1e-5), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(instance_norm(x[1:], w, b, eps=1e-5), whole[1:])


@needs_native
def test_values_that_are_not_finite_stay_so_and_constant_maps_give_the_shift() -> None:
    x, w, b, _ = drawn((1, 8, 6, 6), torch.bfloat16)
    x[0, 3, 2, 2] = float("nan")
    y = instance_norm(x, w, b, eps=1e-5)
    assert y[0, 3].isnan().all() and not y[0, :3].isnan().any()
    constant = channels_last(torch.full((1, 8, 6, 6), 1e4))
    assert torch.equal(instance_norm(constant, w, b, eps=1e-5), b.view(1, 8, 1, 1).expand(1, 8, 6, 6))


@needs_native
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none", "silu"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_block_in_one_pass_is_the_block_step_by_step(spatial_dims, norm, activation) -> None:
    torch.manual_seed(0)
    block = ConvNormAct(spatial_dims, 8, 24, norm=norm, activation=activation)
    image = channels_last(torch.randn(2, 8, *(12,) * spatial_dims))
    plain = copy.deepcopy(block)
    y = block(image)
    dy = torch.randn_like(y)
    y.backward(dy)
    with force("torch"):
        z = plain(image)
    z.backward(dy)
    assert torch.allclose(y, z, atol=1e-5)
    # float32 sums of 3,456 terms, whose order depends on the processor
    assert relative(block.conv.weight.grad, plain.conv.weight.grad.double()) < 3e-5
    for (name, ours), (_, theirs) in zip(block.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_3d_maps_lie_channels_last_only_where_native_kernels_read_them() -> None:
    assert nd.layout(2, True) == torch.channels_last
    expected = torch.channels_last_3d if native.available() else torch.contiguous_format
    assert nd.layout(3, True) == expected
    assert nd.layout(3, True, "cpu", "bf16") == expected
    assert nd.layout(3, True, "cuda") == nd.layout(3, False) == torch.contiguous_format
    assert nd.layout(3, True, "cuda", "bf16") == torch.channels_last_3d  # of tensor cores
    assert nd.layout(3, False, "cuda", "bf16") == torch.contiguous_format
