"""The Triton kernels of the sweep on a GPU: their values, that they repeat, and that a CUDA graph may hold them."""

import pytest
import torch

from tests.kernels.interpreter import on_a_gpu
from tests.kernels.sweep.definition import close, close_in_bf16, exact, gradients
from tests.kernels.sweep.test_sweep import case
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep

# Kernels compile for seconds: few sizes, of which the larger ones have more tiles than a GPU holds programs
GPU_CASES = [
    (20, 3, (3, 6), 1),
    (4, 3, (2, 37), 1),
    (3, 1, (3, 4, 2), 2),
    (40, 9, (9, 16, 12), 2),
    (150, 3, (24, 31), 3),
    (150, 3, (48, 48), 20),
]


def on_gpu(*sizes):
    x, gates, weights = case(*sizes, torch.float32)
    return (
        x.detach().cuda().requires_grad_(),
        Gates(*(g.detach().cuda().requires_grad_() for g in gates)),
        weights.cuda(),
    )


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "neighbours", "size", "batch"), GPU_CASES)
def test_gpu_equals_the_definition_in_bf16(channels, neighbours, size, batch):
    x, gates, weights = on_gpu(channels, neighbours, size, batch)
    for axis in range(len(size)):
        close_in_bf16(x, gates, Direction(axis, axis % 2 == 0), weights)


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "neighbours", "size", "batch"), GPU_CASES[1:3])
def test_gpu_equals_the_definition_in_float32(channels, neighbours, size, batch):
    x, gates, weights = on_gpu(channels, neighbours, size, batch)
    for axis in range(len(size)):
        direction = Direction(axis, axis % 2 == 0)
        close(exact(x, gates, direction, weights), gradients("triton", x, gates, direction, weights), 1e-5)


@on_a_gpu
@pytest.mark.gpu
def test_gpu_repeats_bit_for_bit_however_its_programs_meet():
    x, gates, weights = on_gpu(150, 3, (48, 48), 20)
    first = gradients("triton", x, gates, Direction(0), weights, torch.bfloat16)
    for _ in range(10):
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
