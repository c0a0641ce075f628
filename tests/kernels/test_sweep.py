"""The sweep against its equations, written out position by position and channel by channel."""

import math
from itertools import pairwise

import pytest
import torch

from ulna.kernels.sweep import Direction, Gates, sweep_reference
from ulna.kernels.window import window

DOUBLE = torch.float64


def gates_of(channels, neighbours, dtype=DOUBLE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3 * channels, neighbours * channels), (3 * channels, channels), (3 * channels,), (3 * channels,)]
    return Gates(*(torch.randn(s, dtype=dtype, generator=generator).div_(channels**0.5) for s in shapes))


def literal_2d(s, gates, axis, reverse, reach):
    """Lists of numbers, no tensors: h[t][x][c] from s[t][x][c]; `reach` is how far a neighbour lies to the side."""
    W, V, b, d = (g.tolist() for g in gates)
    C = len(V[0])
    rows = s.permute(0, 2, 3, 1) if axis == 0 else s.permute(0, 3, 2, 1)  # N, t, x, c
    rows = rows.flip(1) if reverse else rows
    maps = []
    for image in rows.tolist():
        h = [list(map(list, image[0]))]
        for t in range(1, len(image)):
            line = []
            for x in range(len(image[t])):
                u = []
                for step in range(-reach, reach + 1):
                    u += h[t - 1][x + step] if 0 <= x + step < len(h[t - 1]) else [0.0] * C
                p = image[t][x]
                new = []
                for c in range(C):
                    i = [b[g * C + c] + sum(W[g * C + c][k] * u[k] for k in range(len(u))) for g in range(3)]
                    o = [d[g * C + c] + sum(V[g * C + c][k] * p[k] for k in range(C)) for g in range(3)]
                    r = 1 / (1 + math.exp(-i[0] - o[0]))
                    z = 1 / (1 + math.exp(-i[1] - o[1]))
                    n = math.tanh(i[2] + r * o[2])
                    new.append((1 - z) * n + z * p[c])
                line.append(new)
            h.append(line)
        maps.append(h)
    y = torch.tensor(maps, dtype=DOUBLE)
    y = y.flip(1) if reverse else y
    return y.permute(0, 3, 1, 2) if axis == 0 else y.permute(0, 3, 2, 1)


@pytest.mark.parametrize("size", [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_sweep_is_its_equations_in_2d(size, neighbours, axis, reverse):
    gates = gates_of(3, neighbours)
    s = torch.randn(2, 3, *size, dtype=DOUBLE)
    expected = literal_2d(s, gates, axis, reverse, neighbours // 2)
    torch.testing.assert_close(sweep_reference(s, gates, Direction(axis, reverse)), expected, rtol=1e-12, atol=1e-12)


REACH_3D = {
    1: [(0, 0)],
    5: [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)],
    9: [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)],
}


def literal_3d(s, gates, axis, reverse, neighbours):
    """Position by position: a position on plane t reads `neighbours` of plane t - 1. Differentiable."""
    C, (A, B) = s.shape[1], [n for a, n in enumerate(s.shape[2:]) if a != axis]
    planes = list(s.unbind(2 + axis))  # L times (N, C, A, B)
    order = list(reversed(range(len(planes)))) if reverse else list(range(len(planes)))
    h = {order[0]: planes[order[0]]}
    for before, now in pairwise(order):
        columns = {}
        for a in range(A):
            for b in range(B):
                near = [
                    h[before][:, :, a + i, b + j] if 0 <= a + i < A and 0 <= b + j < B else s.new_zeros(len(s), C)
                    for i, j in REACH_3D[neighbours]
                ]
                p = planes[now][:, :, a, b]
                gi = torch.cat(near, 1) @ gates.weight_in.T + gates.bias_in
                gh = p @ gates.weight_hidden.T + gates.bias_hidden
                r = 1 / (1 + torch.exp(-gi[:, :C] - gh[:, :C]))
                z = 1 / (1 + torch.exp(-gi[:, C : 2 * C] - gh[:, C : 2 * C]))
                n = torch.tanh(gi[:, 2 * C :] + r * gh[:, 2 * C :])
                columns[a, b] = (1 - z) * n + z * p
        h[now] = torch.stack([torch.stack([columns[a, b] for b in range(B)], -1) for a in range(A)], -2)
    return torch.stack([h[t] for t in range(len(planes))], 2 + axis)


@pytest.mark.parametrize("size", [(3, 2, 4), (1, 3, 2), (2, 1, 1)])
@pytest.mark.parametrize("neighbours", [1, 5, 9])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_sweep_is_its_equations_in_3d_with_gradients(size, neighbours, axis, reverse):
    gates = Gates(*(g.requires_grad_() for g in gates_of(2, neighbours)))
    s = torch.randn(2, 2, *size, dtype=DOUBLE, requires_grad=True)
    weights = torch.randn(s.shape, dtype=DOUBLE)
    answers = []
    for run in (
        lambda: literal_3d(s, gates, axis, reverse, neighbours),
        lambda: sweep_reference(s, gates, Direction(axis, reverse)),
    ):
        y = run()
        answers.append((y, *torch.autograd.grad((y * weights).sum(), (s, *gates), allow_unused=True)))
    for expected, got in zip(*answers, strict=True):
        if expected is None or got is None:  # one plane: nothing is computed from the weights
            assert size[axis] == 1 and got is None
        else:
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_both_senses_are_mirror_images():
    gates = gates_of(4, 3)
    s = torch.randn(1, 4, 6, 3, dtype=DOUBLE)
    forth = sweep_reference(s.flip(2), gates, Direction(0)).flip(2)
    torch.testing.assert_close(sweep_reference(s, gates, Direction(0, reverse=True)), forth)


@pytest.mark.parametrize(("dims", "count"), [(1, 1), (1, 3), (2, 1), (2, 5), (2, 9)])
def test_window_is_symmetric_and_holds_the_position_itself(dims, count):
    offsets = window(dims, count)
    assert len(offsets) == count
    assert (0,) * dims in offsets
    assert {tuple(-o for o in offset) for offset in offsets} == set(offsets)


@pytest.mark.parametrize(("dims", "count"), [(1, 5), (2, 3), (2, 27)])
def test_other_numbers_of_neighbours_are_refused(dims, count):
    with pytest.raises(ValueError, match="choose 1 or"):
        window(dims, count)
