"""The Triton kernels of the sweep against its definition: in Triton's interpreter.

The interpreter runs one program after the other, unless a test shares them out among processes; the rest, above all the
order of reads and writes in a GPU's memory, test_triton_on_a_gpu.py shows.
"""

import importlib
import logging
import os
import random
import time
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.interpreter import (
    INSTALLED,
    compiled,
    interpreted,
    multiplies_bf16,
    run_interpreted,
    starts_it,
)
from tests.kernels.sweep.definition import close, exact, gradients, lowered
from tests.kernels.sweep.test_sweep import case
from ulna.kernels import gpu
from ulna.kernels.sweep import dispatch as paths
from ulna.kernels.sweep import triton as sweep_triton
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep

# Largest difference against the definition in float64, over the largest value or 1: sums of up to 9C products in
# another order, and the definition's own rounding does not count
TOLERANCE = 2e-6


@starts_it
@pytest.mark.timeout(900)
def test_in_the_interpreter():
    run_interpreted(__file__)


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
@pytest.mark.parametrize(
    ("channels", "neighbours", "size", "batch"), [(20, 3, (3, 6), 1), (4, 3, (2, 37), 1), (3, 1, (3, 4, 2), 2)]
)
def test_interpreter_rounds_what_products_read_and_nothing_else(channels, neighbours, size, batch, monkeypatch):
    """Gradients of biases were sums of rounded terms, and those of weights rounded themselves: off by up to 4.6e-3 here."""
    multiplies_bf16(monkeypatch)
    x, gates, weights = case(channels, neighbours, size, batch, torch.float32)
    direction = Direction(0, reverse=channels == 4)
    # few values, of which one or none is rounded to the other side
    expected = lowered(x, gates, direction, weights)
    close(expected, gradients("triton", x, gates, direction, weights, torch.bfloat16), 2e-5)


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
    at_once = SimpleNamespace(
        **vars(kernels) | {"forward": AtOnce(kernels.forward, 9), "backward": AtOnce(kernels.backward, 9)}
    )
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
    monkeypatch.setenv(gpu.SWITCH, "0")
    monkeypatch.setattr(gpu, "INTERPRETED", True)
    gpu.installed.cache_clear()
    try:
        assert not sweep_triton.available(torch.zeros(1))
    finally:
        gpu.installed.cache_clear()


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


class Launches(TorchDispatchMode):
    """Operations of torch that a GPU would be asked for: all but views and memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not (function.is_view or "empty" in function.name()):
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Uncalled:
    """Kernels that note their names and do nothing."""

    def __init__(self, names):
        self.names = names

    def __getattr__(self, name):
        return defaultdict(lambda: lambda *_, **__: self.names.append(name))


@pytest.mark.parametrize("channels", [32, 150])
def test_a_sweep_is_nine_launches(channels, monkeypatch):
    x, gates, _ = case(channels, 3, (4, 5), 2, torch.float32)
    x, gates = x.detach().movedim(1, -1).contiguous(), [g.detach() for g in gates]
    with Launches() as seen:
        monkeypatch.setattr(sweep_triton, "_kernels", lambda: Uncalled(seen.names))
        swept, kept = sweep_triton.forward(x, tuple(gates), 0, False, True, torch.float32)
        assert seen.names == ["pack", "forward"]
        seen.names.clear()
        sweep_triton.backward(x, x, swept, kept, tuple(gates[:2]), 0, False, torch.float32)
    assert seen.names == ["pack", "backward", "share", "aten::mm", "aten::mm", "aten::sum.dim_IntList", "unpack"]


FLOATS = ("x", "swept", "gates", "grad", "dx", "sums", "sums_in", "sums_hidden", "w_in", "w_hidden", "d_in", "d_hidden")
BIASES = ("bias_in", "bias_hidden", "d_bias_in", "d_bias_hidden")
LOW = ("buffer", "weights", "packed", "slopes", "read")
POINTERS = dict.fromkeys((*FLOATS, *BIASES), "*fp32") | dict.fromkeys(LOW, "*bf16") | {"flags": "*i32"}
NUMBERS = (
    "lines",
    "rows",
    "height",
    "width",
    "channels",
    "stride_n",
    "stride_t",
    "stride_a",
    "stride_b",
    "reach",
    "first",
)


@starts_it
@pytest.mark.parametrize("name", ["pack", "forward", "backward", "share", "unpack"])
def test_kernels_compile_for_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(sweep_triton._kernels(), name)
    sizes = {"K": 3, "CP": 160, "BM": 64, "BC": 32, "BK": 32, "KEEP": True, "BACK": True}
    sizes = {key: value for key, value in sizes.items() if key in function.arg_names}
    numbers = dict.fromkeys((*NUMBERS, "sense", "count"), "i32") | {"cells": "i64"}
    assert compiled(function, POINTERS, numbers, sizes)["cubin"]
