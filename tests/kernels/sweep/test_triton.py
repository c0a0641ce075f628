"""The Triton kernels of the sweep against its definition: in Triton's interpreter in float32, and on a GPU.

The interpreter is chosen when Triton is imported, so those tests run in a process of their own, which one test starts.
It knows no bf16 products and runs one program after the other, unless a test shares them out among processes; the rest,
above all the order of reads and writes in a GPU's memory, the tests marked `gpu` show.
"""

import importlib
import importlib.util
import logging
import os
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.sweep.test_sweep import DOUBLE, case
from ulna.kernels.sweep import dispatch as paths
from ulna.kernels.sweep import triton as sweep_triton
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep

INSTALLED = importlib.util.find_spec("triton") is not None
interpreted = pytest.mark.skipif(
    not (INSTALLED and sweep_triton.INTERPRETED), reason="runs in the process of test_in_the_interpreter"
)
on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or not INSTALLED or sweep_triton.INTERPRETED, reason="no GPU with Triton here"
)
# Largest difference against the definition in float64, over the largest value or 1: sums of up to 9C products in
# another order, and the definition's own rounding does not count
TOLERANCE = 2e-6


@pytest.mark.skipif(not INSTALLED, reason="Triton is not installed")
@pytest.mark.skipif(sweep_triton.INTERPRETED, reason="this is the interpreter's process")
@pytest.mark.timeout(900)
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "interpreter and not in_the", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def gradients(path, x, gates, direction, weights, operands=None):
    """The map after the sweep and the gradients of everything; forward and backward pass by the same path."""
    with force(path), torch.autocast(x.device.type, operands, enabled=operands is not None):
        y = sweep(x, gates, direction)
    with force(path):
        found = torch.autograd.grad((y * weights).sum(), (x, *gates), allow_unused=True)
    return [y, *(torch.zeros_like(t) if g is None else g for t, g in zip((x, *gates), found, strict=True))]


def exact(x, gates, direction, weights):
    """The same by the definition, in float64."""
    x, *gates = (t.detach().to(DOUBLE).requires_grad_() for t in (x, *gates))
    return gradients("reference", x, Gates(*gates), direction, weights.to(DOUBLE))


def close(expected, got, tolerance):
    for a, b in zip(expected, got, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).abs().max() <= tolerance * max(1.0, a.abs().max().item())


# channels, neighbours, size, batch: odd, narrower and wider than a tile; lines and cross axes of length 1; 3D
CASES = [
    *((3, k, size, 2) for k in (1, 3) for size in [(5, 7), (1, 4), (4, 1), (1, 1)]),
    (20, 3, (3, 6), 1),
    (33, 3, (3, 4), 1),
    (4, 3, (2, 37), 1),  # several tiles of rows, which end within a tile
    (4, 1, (2, 5), 9),
    *((3, k, (3, 4, 2), 2) for k in (1, 5, 9)),
    (3, 9, (1, 3, 2), 1),
    (2, 9, (2, 5, 9), 1),  # neighbours that lie in another tile of rows
]


@interpreted
@pytest.mark.parametrize(("channels", "neighbours", "size", "batch"), CASES)
def test_interpreter_equals_the_definition(channels, neighbours, size, batch):
    x, gates, weights = case(channels, neighbours, size, batch, torch.float32)
    for axis in range(len(size)):
        for reverse in (False, True):
            direction = Direction(axis, reverse)
            got = gradients("triton", x, gates, direction, weights)
            close(exact(x, gates, direction, weights), got, TOLERANCE)


@interpreted
def test_interpreter_takes_large_tiles(monkeypatch):
    monkeypatch.setattr(sweep_triton, "tiles", lambda rows: (64, 32))  # as for wide lines
    x, gates, weights = case(34, 3, (3, 35), 2, torch.float32)
    close(exact(x, gates, Direction(0), weights), gradients("triton", x, gates, Direction(0), weights), TOLERANCE)


@interpreted
def test_interpreter_takes_maps_and_gradients_laid_out_in_any_way():
    x, gates, weights = case(5, 3, (4, 3), 2, torch.float32)
    expected = exact(x, gates, Direction(1), weights)
    wide = torch.zeros(2, 5, 8, 3)
    wide[:, :, ::2] = x.detach()
    strided = weights.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (wide[:, :, ::2], x.detach().to(memory_format=torch.channels_last)):
        close(expected, gradients("triton", view.detach().requires_grad_(), gates, Direction(1), strided), TOLERANCE)


@interpreted
def test_interpreter_keeps_missing_values_where_they_spread():
    x, gates, _ = case(4, 3, (4, 5), 1, torch.float32)
    x = x.detach()
    x[0, 1, 2, 2] = torch.nan
    with force("triton"), torch.no_grad():
        y = sweep(x, gates, Direction(0))
    assert y[0, :, 3, 1:4].isnan().all()
    assert y[0, :, :2].isfinite().all()
    assert y[0, :, 3, 0].isfinite().all()


@interpreted
def test_interpreter_keeps_gates_finite_at_their_extremes():
    x, gates, weights = case(4, 3, (3, 4), 1, torch.float32)
    big = Gates(*(g.detach().mul(1e4).requires_grad_() for g in gates))
    assert all(t.isfinite().all() for t in gradients("triton", x, big, Direction(0), weights))


@interpreted
def test_interpreter_is_taken_only_when_it_is_asked_for(monkeypatch):
    called = []
    monkeypatch.setattr(sweep_triton, "forward", lambda *arguments: called.append(arguments))
    x, gates, _ = case(3, 3, (3, 4), 1, torch.float32)
    sweep(x, gates, Direction(0))
    assert not called
    with force("triton"):
        assert "Triton" in describe()
        sweep(x, gates, Direction(0))
        assert called
        called.clear()
        sweep(x.double(), Gates(*(g.double() for g in gates)), Direction(0))  # float64 is not for it
        assert not called


class AtOnce:
    """A kernel whose programs run in several processes at a time on shared memory; each takes what ticket is next."""

    def __init__(self, kernel, processes):
        self.kernel, self.processes = kernel, processes

    def __getitem__(self, grid):
        return lambda *arguments, **flags: self.run(grid[0], arguments, flags)

    def run(self, programs, arguments, flags):
        shared = [a.clone().share_memory_() if isinstance(a, torch.Tensor) else a for a in arguments]
        children = []
        for number in range(self.processes):
            share = programs // self.processes + (number < programs % self.processes)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    random.seed(number)
                    if share:
                        self.kernel[(share,)](*shared, **flags)
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * self.processes
        for argument, result in zip(arguments, shared, strict=True):
            if isinstance(argument, torch.Tensor):
                argument.copy_(result)


@interpreted
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("reverse", [False, True])
def test_interpreter_waits_for_what_it_reads_and_spares_what_others_read(monkeypatch, reverse):
    def late(*arguments):
        wait(*arguments)
        time.sleep(random.choice([0, 0, 0.05, 0.4]))

    kernels = importlib.import_module("ulna.kernels.sweep.triton_kernels")
    wait = kernels._wait
    monkeypatch.setattr(kernels, "_wait", late)
    at_once = SimpleNamespace(forward=AtOnce(kernels.forward, 9), backward=AtOnce(kernels.backward, 9))
    monkeypatch.setattr(sweep_triton, "_kernels", lambda: at_once)
    monkeypatch.setattr(sweep_triton, "tiles", lambda rows: (16, 16))  # six programs a line
    x, gates, weights = case(20, 3, (5, 40), 1, torch.float32)
    direction = Direction(0, reverse)
    close(exact(x, gates, direction, weights), gradients("triton", x, gates, direction, weights), TOLERANCE)


def test_a_kernel_that_fails_is_said_once_and_does_without(monkeypatch, caplog):
    def fails(*_):
        calls.append(1)
        raise RuntimeError("no compiler for the launcher\nmore")

    calls = []
    monkeypatch.setattr(sweep_triton, "_broken", [])
    monkeypatch.setattr(sweep_triton, "forward", fails)
    monkeypatch.setattr(sweep_triton, "backward", fails)
    monkeypatch.setattr(paths, "_compiled", lambda x: False)
    monkeypatch.setattr(paths, "_triton", lambda x: not sweep_triton._broken)
    x, gates, weights = case(3, 3, (4, 5), 1, torch.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            close(exact(x, gates, Direction(0), weights), gradients("auto", x, gates, Direction(0), weights), TOLERANCE)
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the Triton kernel of sweeps failed, torch's own operations take over (no compiler for the launcher)"
    ]


def test_triton_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(sweep_triton.SWITCH, "0")
    monkeypatch.setattr(sweep_triton, "INTERPRETED", True)
    sweep_triton._kernels.cache_clear()
    try:
        assert not sweep_triton.available(torch.zeros(1))
    finally:
        sweep_triton._kernels.cache_clear()


def test_a_kernel_that_is_pinned_fails_aloud(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(sweep_triton, "forward", fails)
    monkeypatch.setattr(paths, "_triton", lambda x: True)
    x, gates, _ = case(3, 3, (4, 5), 1, torch.float32)
    with force("triton"), pytest.raises(RuntimeError, match="no compiler"):
        sweep(x, gates, Direction(0))


@pytest.mark.skipif(INSTALLED, reason="Triton is installed")
def test_without_triton_a_pinned_sweep_runs_on_torch_operations():
    x, gates, weights = case(3, 3, (4, 5), 1, torch.float32)
    with force("triton"):
        assert "torch operations" in describe()
    close(exact(x, gates, Direction(0), weights), gradients("triton", x, gates, Direction(0), weights), TOLERANCE)


# On a GPU many programs run at once, so these sizes have more tiles than a GPU holds programs
GPU_CASES = [
    *(CASES[i] for i in (0, 1, 8, 9, 10)),
    *((3, k, (3, 4, 2), 2) for k in (1, 5, 9)),
    (150, 3, (48, 48), 20),
    (150, 3, (12, 12), 20),
    (150, 3, (24, 31), 3),
    (40, 9, (9, 16, 12), 2),
]


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("operands", "tolerance"), [(None, 1e-5), (torch.bfloat16, 1e-2)], ids=["float32", "bf16"])
@pytest.mark.parametrize(("channels", "neighbours", "size", "batch"), GPU_CASES)
def test_gpu_equals_the_definition(channels, neighbours, size, batch, operands, tolerance):
    x, gates, weights = case(channels, neighbours, size, batch, torch.float32)
    x, weights = x.detach().cuda().requires_grad_(), weights.cuda()
    gates = Gates(*(g.detach().cuda().requires_grad_() for g in gates))
    for axis in range(len(size)):
        for reverse in (False, True):
            direction = Direction(axis, reverse)
            got = gradients("triton", x, gates, direction, weights, operands)
            close(exact(x, gates, direction, weights), got, tolerance)


@on_a_gpu
@pytest.mark.gpu
def test_gpu_repeats_bit_for_bit_however_its_programs_meet():
    x, gates, weights = case(150, 3, (48, 48), 20, torch.float32)
    x, weights = x.detach().cuda().requires_grad_(), weights.cuda()
    gates = Gates(*(g.detach().cuda().requires_grad_() for g in gates))
    first = gradients("triton", x, gates, Direction(0), weights, torch.bfloat16)
    for _ in range(20):
        again = gradients("triton", x, gates, Direction(0), weights, torch.bfloat16)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@on_a_gpu
@pytest.mark.gpu
def test_gpu_sweeps_within_a_cuda_graph():
    x, gates, _ = case(20, 3, (9, 11), 4, torch.float32)
    x, gates = x.detach().cuda(), Gates(*(g.detach().cuda() for g in gates))
    with force("triton"), torch.no_grad():
        sweep(torch.zeros_like(x), gates, Direction(0))  # compiled before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = sweep(x, gates, Direction(0))
        for _ in range(2):  # tickets start anew
            x.copy_(torch.randn_like(x))
            graph.replay()
            torch.testing.assert_close(y, sweep(x, gates, Direction(0)))


@on_a_gpu
@pytest.mark.gpu
def test_gpu_takes_triton_by_itself():
    assert describe("cuda") == "a Triton kernel"
