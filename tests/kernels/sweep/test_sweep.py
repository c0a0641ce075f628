"""The sweep against its equations, written out position by position and channel by channel."""

import math
from itertools import pairwise

import pytest
import torch

from ulna.kernels import native
from ulna.kernels.sweep import dispatch as sweep_module
from ulna.kernels.sweep import native as sweep_native
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep, sweep_reference
from ulna.kernels.sweep.window import window

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


def gradients(path, x, gates, direction, weights, *, bf16=False):
    """The map after the sweep and the gradients of everything, by one path; bf16: under autocast, as in training."""
    with force(path):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = sweep(x, gates, direction)
        found = torch.autograd.grad((y * weights).sum(), (x, *gates), allow_unused=True)
    return [y, *(torch.zeros_like(t) if g is None else g for t, g in zip((x, *gates), found, strict=True))]


def case(channels, neighbours, size, batch, dtype):
    gates = Gates(*(g.to(dtype).requires_grad_() for g in gates_of(channels, neighbours)))
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(2, batch, channels, *size, dtype=DOUBLE, generator=generator).to(dtype).unbind()
    return x.detach().requires_grad_(), gates, weights


def skip_without(path):
    if path == "native" and not native.library("sweep"):
        pytest.skip("no C++ compiler on this machine")


def skip_without_bf16():
    skip_without("native")
    if not sweep_native.multiplies_bf16():
        pytest.skip("this machine's processor or compiler has no instruction for products of bf16 numbers")


SIZES = [
    *((1, size) for size in [(5, 7), (1, 4), (4, 1), (1, 1)]),
    *((3, size) for size in [(5, 7), (13, 6), (1, 4), (4, 1), (1, 1)]),
    *((k, size) for k in (1, 5, 9) for size in [(3, 4, 2), (1, 3, 2), (2, 1, 1)]),
]


WIDTHS = [(1, 2), (3, 1), (20, 3), (50, 1)]  # channels, images: narrower than a vector, wider by part of one, two tiles


# float32: against the definition in float64, so that its own rounding does not count
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("neighbours", "size"), SIZES)
@pytest.mark.parametrize("path", ["native", "lines"])
def test_fast_paths_equal_the_reference_in_values_and_all_gradients(path, neighbours, size, dtype, tolerance):
    skip_without(path)
    for channels, batch in WIDTHS:
        x, gates, weights = case(channels, neighbours, size, batch, dtype)
        exact = [t.detach().to(DOUBLE).requires_grad_() for t in (x, *gates)]
        for direction in (Direction(a, r) for a in range(len(size)) for r in (False, True)):
            expected = gradients("reference", exact[0], Gates(*exact[1:]), direction, weights.to(DOUBLE))
            got = gradients(path, x, gates, direction, weights)
            for a, b in zip(expected, got, strict=True):
                assert b.dtype == dtype
                assert (a - b).abs().max() <= tolerance * max(1.0, a.abs().max().item())


class Rounded(torch.autograd.Function):
    """A number as a product in bf16 reads it; its gradient stays as it is."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


class RoundedSlope(torch.autograd.Function):
    """The other way round: what products of the backward pass read."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().to(grad.dtype)


def linear_of_bf16(x, weight, bias):
    return RoundedSlope.apply(torch.nn.functional.linear(Rounded.apply(x), Rounded.apply(weight))) + bias


@pytest.mark.parametrize(("neighbours", "size"), SIZES)
def test_bf16_operands_keep_values_and_all_gradients(neighbours, size, monkeypatch):
    skip_without_bf16()
    for channels, batch in WIDTHS:
        x, gates, weights = case(channels, neighbours, size, batch, torch.float32)
        gates = Gates(*(g.detach().div(3**0.5).requires_grad_() for g in gates))  # as large as a layer draws them
        exact = [t.detach().to(DOUBLE).requires_grad_() for t in (x, *gates)]
        for direction in (Direction(a, r) for a in range(len(size)) for r in (False, True)):
            wanted = "reference", exact[0], Gates(*exact[1:]), direction, weights.to(DOUBLE)
            expected = gradients(*wanted)
            with monkeypatch.context() as patch:
                patch.setattr(sweep_module, "linear", linear_of_bf16)
                rounded = gradients(*wanted)
            got = gradients("native", x, gates, direction, weights, bf16=True)
            gates_rounded = sweep_native.kept_dtype(x, torch.bfloat16) == torch.float16
            for i, (a, b, c) in enumerate(zip(expected, rounded, got, strict=True)):
                assert c.dtype == torch.float32
                # nothing but operands is rounded: what is left are the few that float32 rounds the other way; by matrices
                # also the gates that a gradient reads, so that more slopes are rounded the other way, each by 1/256
                close = 1e-2 if i and gates_rounded else 2e-3
                assert (b - c).abs().max() <= close * max(1.0, b.abs().max().item())
                # a single channel has no others for its rounding to cancel against
                assert (a - c).norm() <= (1e-2 if channels > 1 else 2e-2) * max(1.0, a.norm().item())
            if size[direction.axis] > 1:  # a swept line is not what products in float32 would give
                assert not torch.equal(got[0], gradients("native", x, gates, direction, weights)[0])


@pytest.mark.parametrize(("neighbours", "size"), [(3, (40, 37)), (9, (5, 14, 9))])
def test_bf16_operands_over_many_blocks_of_positions_channels_and_lines(neighbours, size):
    skip_without_bf16()
    x, gates, weights = case(70, neighbours, size, 2, torch.float32)
    gates = Gates(*(g.detach().div(3**0.5).requires_grad_() for g in gates))
    for direction in (Direction(a, r) for a in range(len(size)) for r in (False, True)):
        expected = gradients("native", x, gates, direction, weights)
        got = gradients("native", x, gates, direction, weights, bf16=True)
        for a, b in zip(expected, got, strict=True):
            assert (a - b).norm() <= 1e-2 * a.norm()


@pytest.mark.parametrize(("forth", "back"), [("lines", "native"), ("native", "lines"), ("native", "auto")])
def test_the_backward_pass_reads_gates_as_they_were_kept_whatever_path_is_pinned_by_then(forth, back):
    skip_without_bf16()
    x, gates, weights = case(20, 3, (6, 5), 2, torch.float32)
    expected = gradients("reference", x, gates, Direction(1), weights)
    with force(forth), torch.autocast("cpu", torch.bfloat16):
        y = sweep(x, gates, Direction(1))
    with force(back):
        found = torch.autograd.grad((y * weights).sum(), (x, *gates))
    for a, b in zip(expected[1:], found, strict=True):
        assert (a - b).abs().max() <= 2e-2 * max(1.0, a.abs().max().item())


def test_bf16_operands_take_maps_and_gradients_laid_out_in_any_way():
    skip_without_bf16()
    x, gates, weights = case(5, 3, (6, 4), 2, torch.float32)
    expected = gradients("native", x, gates, Direction(1), weights, bf16=True)
    wide = torch.zeros(2, 5, 12, 4)
    wide[:, :, ::2] = x.detach()
    strided = weights.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (wide[:, :, ::2], x.detach().to(memory_format=torch.channels_last)):
        got = gradients("native", view.detach().requires_grad_(), gates, Direction(1), strided, bf16=True)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_without_instructions_for_bf16_the_native_sweep_stays_in_float32(monkeypatch):
    skip_without("native")
    x, gates, weights = case(5, 3, (6, 4), 2, torch.float32)
    expected = gradients("native", x, gates, Direction(1), weights)
    monkeypatch.setattr(sweep_native, "multiplies_bf16", lambda: False)
    assert "float32" in describe()
    got = gradients("native", x, gates, Direction(1), weights, bf16=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("path", ["native", "lines"])
def test_fast_paths_take_maps_and_gradients_laid_out_in_any_way(path):
    skip_without(path)
    x, gates, weights = case(5, 3, (6, 4), 2, DOUBLE)
    expected = gradients("reference", x, gates, Direction(1), weights)
    wide = torch.zeros(2, 5, 12, 4, dtype=DOUBLE)
    wide[:, :, ::2] = x.detach()
    for view in (wide[:, :, ::2], x.detach().to(memory_format=torch.channels_last)):
        strided = weights.transpose(2, 3).contiguous().transpose(2, 3)
        got = gradients(path, view.requires_grad_(), gates, Direction(1), strided)
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        wide = wide.detach()


@pytest.mark.parametrize("path", ["native", "lines"])
@pytest.mark.parametrize(("neighbours", "size"), [(3, (3, 4)), (5, (2, 3, 2))])
def test_gradients_of_fast_paths_by_differences(path, neighbours, size):
    skip_without(path)
    x, gates, _ = case(2, neighbours, size, 2, DOUBLE)
    with force(path):
        assert torch.autograd.gradcheck(
            lambda x, *g: sweep(x, Gates(*g), Direction(1, True)), (x, *gates), fast_mode=True
        )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("path", ["native", "lines"])
def test_two_runs_agree_bit_for_bit(path, threads, bf16):
    skip_without_bf16() if bf16 else skip_without(path)
    x, gates, weights = case(20, 3, (9, 11), 2, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        one, two = (gradients(path, x, gates, Direction(0), weights, bf16=bf16) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("dtype", "bf16"), [(DOUBLE, False), (torch.float32, False), (torch.float32, True)])
@pytest.mark.parametrize(("neighbours", "size"), [(9, (4, 5, 3)), (3, (20, 13))])
def test_threads_share_rows_without_changing_a_bit(dtype, bf16, neighbours, size):
    skip_without_bf16() if bf16 else skip_without("native")
    x, gates, weights = case(50, neighbours, size, 2, dtype)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients("native", x, gates, Direction(len(size) - 1), weights, bf16=bf16))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("path", ["native", "lines"])
def test_autocast_keeps_the_state_in_float32(path):
    skip_without(path)
    x, gates, weights = case(20, 3, (6, 5), 2, torch.float32)
    expected = gradients("reference", x, gates, Direction(0), weights)
    got = gradients(path, x.detach().bfloat16().requires_grad_(), gates, Direction(0), weights, bf16=True)
    assert got[0].dtype == torch.float32
    for a, b in zip(expected, got, strict=True):
        assert (a - b).abs().max() <= 1e-2 * max(1.0, a.abs().max().item())  # bf16 has 8 bits


def test_gates_stay_finite_at_their_extremes():
    for path, bf16 in (("native", False), ("lines", False), ("native", True)):
        skip_without(path)
        x, gates, weights = case(4, 3, (5, 5), 1, torch.float32)
        big = Gates(*(g.detach().mul(1e4).requires_grad_() for g in gates))
        assert all(t.isfinite().all() for t in gradients(path, x, big, Direction(0), weights, bf16=bf16))


def test_missing_values_are_not_hidden():
    for path, bf16 in (("native", False), ("lines", False), ("native", True)):
        skip_without(path)
        x, gates, _ = case(4, 3, (5, 5), 1, torch.float32)
        x = x.detach()
        x[0, 1, 2, 2] = torch.nan
        with force(path), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = sweep(x, gates, Direction(0))
        assert y[0, :, 3, 1:4].isnan().all()
        assert y[0, :, :2].isfinite().all()


def test_no_gradient_needs_no_gates():
    x, gates, _ = case(4, 3, (5, 6), 1, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(sweep(x, gates, Direction(0)), sweep_reference(x, gates, Direction(0)))
    assert not sweep(x.detach(), Gates(*(g.detach() for g in gates)), Direction(0)).requires_grad


def test_operators_keep_torch_s_contract():
    x, gates, _ = case(3, 3, (4, 5), 2, torch.float32)
    arguments = (x.detach().movedim(1, -1).requires_grad_(), *gates, 0, False, True, torch.float32)
    torch.library.opcheck(torch.ops.ulna.sweep.default, arguments)


def test_the_path_is_pinned_and_named():
    assert "native" in describe()
    with force("reference"):
        assert "reference" in describe()
        with force("lines"):
            assert "torch operations" in describe()
        assert "reference" in describe()
    with pytest.raises(ValueError, match="choose auto, native"), force("fast"):
        pass


def test_without_a_native_kernel_sweeps_run_on_torch_operations(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    assert "no native kernel" in describe()
    x, gates, weights = case(3, 3, (4, 5), 1, DOUBLE)
    for a, b in zip(*(gradients(p, x, gates, Direction(0), weights) for p in ("auto", "reference")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
