"""Whatever tensor comes, a kernel of our own answers as torch does, or it is torch's own error."""

import ctypes.util
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from tests.kernels.odd_tensors import LIE, Marked, differences
from tests.places import ROOT
from ulna.blocks import nd
from ulna.kernels import door, native, normalize
from ulna.kernels.convolution import convolve, path_of
from ulna.kernels.normalize import instance_norm
from ulna.kernels.points.point_sample import point_sample, point_sample_reference
from ulna.kernels.sweep.dispatch import Direction, Gates, sweep, sweep_reference


def test_odd_tensors_are_answered_as_by_torch() -> None:
    assert differences(seed=0, count=300) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_odd_tensors_under_a_malloc_that_checks() -> None:
    """Memory is filled when it is made and freed, and its ends are looked at: what reads or writes beside it shows."""
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    if debugging := ctypes.util.find_library("c_malloc_debug"):
        environment["LD_PRELOAD"] = debugging
    command = [sys.executable, "-m", "tests.kernels.odd_tensors", "1", "10000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout == "0 of 10000 differ\n"


@pytest.mark.parametrize("kind", LIE)
def test_only_plain_tensors_are_plain(kind: str) -> None:
    import numpy as np

    x = LIE[kind](torch.randn(3, 4), np.random.default_rng(0))
    odd = {"lazily negated", "imaginary part of a conjugate", "unaligned", "a subclass"}
    assert door.plain(x) == (kind not in odd)


def test_tensors_without_values_in_memory_are_not_plain() -> None:
    freed = torch.randn(5)
    freed.untyped_storage().resize_(8)
    for x in (
        torch.zeros(0),
        torch._efficientzerotensor(3),
        torch.eye(3).to_sparse(),
        freed,
        torch.randn(3).as_subclass(Marked),
        [1.0],
    ):
        assert not door.plain(x)
    with torch._subclasses.FakeTensorMode() as mode:
        assert not door.plain(mode.from_tensor(torch.randn(3)))


@pytest.mark.parametrize("bias", ["float64", "bfloat16", "short", "long"])
def test_a_bias_that_does_not_fit_is_torch_s_error(bias: str) -> None:
    b = {
        "float64": torch.randn(16).double(),
        "bfloat16": torch.randn(16).bfloat16(),
        "short": torch.randn(8),
        "long": torch.randn(17),
    }[bias]
    conv = nd.conv(2, 16, 16)
    conv.bias = torch.nn.Parameter(b)
    with pytest.raises(RuntimeError):
        conv(torch.randn(2, 16, 32, 32))
    with pytest.raises(RuntimeError):
        instance_norm(torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last), b[:8], b, eps=1e-5)


def test_a_strided_or_expanded_bias_has_torch_s_values() -> None:
    x, w = torch.randn(2, 16, 32, 32), torch.randn(16, 16, 3, 3)
    for b in (torch.randn(16, 2)[:, 0], torch.ones(1).expand(16), torch._neg_view(torch.randn(16))):
        torch.testing.assert_close(convolve(x, w, b), F.conv2d(x, w, b, padding=1), rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(
        convolve(torch._neg_view(x), w, None), F.conv2d(-x, w, None, padding=1), rtol=1e-4, atol=5e-4
    )


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_type_and_device_that_torch_makes_tensors_of_do_not_matter(default: torch.dtype) -> None:
    """Kernels make working space and results; whatever the caller has set, these are theirs."""
    x, w, b = (torch.randn(s).requires_grad_() for s in ((2, 8, 24, 24), (8, 8, 3, 3), (8,)))
    gates = Gates(*(torch.randn(s) * 0.3 for s in ((24, 24), (24, 8), (24,), (24,))))

    def step() -> list[torch.Tensor]:
        y = convolve(x, w, b)
        y = instance_norm(y.contiguous(memory_format=torch.channels_last), b, b, eps=1e-3, slope=0.1)
        y = sweep(y, gates, Direction(0))
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, w, b])]

    expected = step()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            made = step()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, e) for a, e in zip(made, expected, strict=True))


def test_a_mode_that_counts_operations_sees_them_all() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, w = torch.randn(1, 8, 24, 24), torch.randn(8, 8, 3, 3)
    with FlopCounterMode(display=False) as counter:
        convolve(x, w, None)
    assert counter.get_total_flops() == 2 * 24 * 24 * 8 * 8 * 9


@pytest.mark.skipif(not native.available(), reason="no native kernels here: torch's own operations run")
def test_parameters_and_any_layout_are_let_in() -> None:
    """The door is no excuse for being slow."""
    w, b = torch.nn.Parameter(torch.randn(8, 8, 3, 3)), torch.nn.Parameter(torch.randn(16)[::2])
    assert path_of(torch.randn(1, 8, 24, 48)[..., ::2], w, b) == "winograd"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_points_of_a_small_type_reach_every_voxel(dtype: torch.dtype, mode: str) -> None:
    """The number of a voxel is larger than its index along any axis."""
    fmap = torch.randn(2, 3, 40, 50, 20).contiguous(memory_format=torch.channels_last_3d)
    points = torch.stack([torch.randint(0, n, (2, 99)) for n in (40, 50, 20)], dim=-1)
    expected = point_sample_reference(fmap, points, (40, 50, 20), mode=mode)
    assert torch.equal(point_sample(fmap, points.to(dtype), (40, 50, 20), mode=mode), expected)


def test_points_outside_read_the_nearest_voxel_and_no_other_image() -> None:
    fmap = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    points = torch.tensor([[[-1, -5], [99, 2]]]).expand(2, -1, -1)
    expected = torch.stack([fmap[:, :, 0, 0], fmap[:, :, 3, 2]], dim=1)
    assert torch.equal(point_sample(fmap, points, (4, 4)), expected)
    assert torch.equal(point_sample_reference(fmap, points, (4, 4)), expected)


def test_weights_of_a_sweep_that_do_not_fit_are_the_reference_s_error() -> None:
    x = torch.randn(1, 4, 5, 6)
    right = [torch.randn(s) for s in ((12, 12), (12, 4), (12,), (12,))]
    for at, wrong in ((0, (12, 8)), (1, (12, 5)), (2, (11,)), (3, (24,))):
        gates = [torch.randn(wrong) if i == at else t for i, t in enumerate(right)]
        with pytest.raises((RuntimeError, ValueError)):
            sweep_reference(x, Gates(*gates), Direction(0))
        with pytest.raises((RuntimeError, ValueError)):
            sweep(x, Gates(*gates), Direction(0))


def test_a_convolution_with_another_padding_mode_is_torch_s() -> None:
    conv = nd.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    x = torch.randn(1, 8, 24, 24)
    assert torch.equal(conv(x), torch.nn.Conv2d.forward(conv, x))
    assert conv(x[0]).shape == (8, 24, 24)


def test_the_door_is_asked_no_more_often_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs as much as a small step does elsewhere: what is cheap refuses first."""
    asked = []
    ordinary = door.ordinary
    monkeypatch.setattr(door, "ordinary", lambda: asked.append(1) or ordinary())
    x, weight, bias = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3, requires_grad=True), torch.randn(4)
    assert path_of(x, weight, bias) == "torch"
    with torch.no_grad():
        assert path_of(x.bfloat16(), weight.bfloat16(), bias.bfloat16()) == "torch"
    assert not asked
    for entered, kernel in ((x.bfloat16(), weight.bfloat16()), (torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3))):
        asked.clear()
        path_of(entered, kernel.detach().requires_grad_())
        assert len(asked) == 1
    asked.clear()
    normalize.suits(x.contiguous(memory_format=torch.channels_last), bias, bias)
    assert len(asked) == 1


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_a_scale_or_shift_of_low_precision_is_left_to_torch() -> None:
    x, full, low = (
        torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last),
        torch.ones(4),
        torch.ones(4).bfloat16(),
    )
    assert normalize.suits(x, full, full)
    assert not any(normalize.suits(x, *pair) for pair in ((low, full), (full, low), (low, low)))
