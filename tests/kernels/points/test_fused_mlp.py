"""Layers at many points, block by block, against the layers written out; dropout by its share and its derivative."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ulna.kernels.points.fused_mlp as room
from ulna.kernels.points.fused_mlp import fused_mlp, fused_mlp_reference


def layers(*sides, skip_layer=0, dtype=torch.float64):
    """Random weights and biases between layers of so many values."""
    wide = [side + (sides[0] if number == skip_layer else 0) for number, side in enumerate(sides[:-1], start=1)]
    weights = [torch.randn(out, enter, dtype=dtype) for enter, out in zip(wide, sides[1:], strict=True)]
    biases = [torch.randn(out, dtype=dtype) for out in sides[1:]]
    return [t.requires_grad_() for t in weights], [t.requires_grad_() for t in biases]


@pytest.mark.parametrize("rows", [0, 1, 7, 20])
@pytest.mark.parametrize("skip_layer", [0, 2, 3])
def test_blocks_give_the_values_and_gradients_of_the_definition(rows, skip_layer, monkeypatch):
    monkeypatch.setattr(room, "ROWS", 7)  # the last block of 20 rows is a partial one
    torch.manual_seed(0)
    weights, biases = layers(5, 4, 6, 4, 2, skip_layer=skip_layer)
    x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    ours, defined = (f(x, weights, biases, skip_layer=skip_layer) for f in (fused_mlp, fused_mlp_reference))
    torch.testing.assert_close(ours, defined)
    seed = torch.randn_like(ours)
    every = [x, *weights, *biases]
    for a, b in zip(torch.autograd.grad(ours, every, seed), torch.autograd.grad(defined, every, seed), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert torch.equal(fused_mlp(x, weights, biases, skip_layer=skip_layer), ours)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_prediction_gives_the_values_of_the_definition(dtype, depth, first, fused, monkeypatch):
    """In bf16 products, bias and ReLU may be one call; the first layer's sum may come from elsewhere."""
    monkeypatch.setattr(room, "ROWS_PREDICTED", 7)
    if not fused:
        monkeypatch.setattr(room, "_fuses", lambda x: False)
    torch.manual_seed(0)
    weights, biases = layers(5, *[6] * (depth - 1), 2, dtype=dtype)
    x = torch.randn(20, 5, dtype=dtype)
    added = torch.randn(20, len(biases[0]), dtype=dtype) if first else None
    with torch.no_grad():
        made = fused_mlp(x, weights, biases, addend=added)
        exact = fused_mlp_reference(
            x.double(),
            [w.double() for w in weights],
            [b.double() for b in biases],
            addend=None if added is None else added.double(),
        )
    assert made.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(made.double(), exact, atol=tolerance * exact.abs().max().item(), rtol=0)


def test_an_addend_has_its_gradient_like_everything_else():
    torch.manual_seed(0)
    weights, biases = layers(5, 6, 2)
    x, addend = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (5, 6))
    made = fused_mlp(x, weights, biases, addend=addend)
    every = [x, addend, *weights, biases[1]]
    assert torch.autograd.gradcheck(lambda x, a, v, w, b: fused_mlp(x, [v, w], [biases[0], b], addend=a), every)
    assert made.shape == (4, 2)


def test_a_row_has_the_same_answer_whatever_is_asked_beside_it():
    """Sparse answers are dense ones at some places, in bf16 too."""
    torch.manual_seed(0)
    weights, biases = layers(156, 256, 256, 3, dtype=torch.bfloat16)
    x, some = torch.randn(5000, 156, dtype=torch.bfloat16), torch.randperm(5000)[:1234]
    with torch.no_grad():
        assert torch.equal(fused_mlp(x, weights, biases)[some], fused_mlp(x[some], weights, biases))


def test_a_frozen_input_or_decoder_has_no_gradient():
    weights, biases = layers(3, 4, 2)
    x = torch.randn(6, 3, dtype=torch.float64)
    fused_mlp(x, weights, biases).sum().backward()
    assert x.grad is None
    assert weights[0].grad is not None
    frozen = [[t.detach() for t in some] for some in (weights, biases)]
    assert not fused_mlp(x, *frozen).requires_grad
    entered = x.clone().requires_grad_()
    fused_mlp(entered, *frozen).sum().backward()
    assert entered.grad is not None


def test_dropout_drops_its_share_of_every_layer_and_keeps_the_mean():
    torch.manual_seed(0)
    wide = 400
    ones, none = torch.ones(wide, 1), torch.zeros(wide)
    y = fused_mlp(torch.ones(300, 1), [ones, torch.eye(wide)], [none, none], dropout=0.2)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 1.25])
    assert (y == 0).float().mean() == pytest.approx(0.2, abs=0.005)
    assert not torch.equal(y[0], y[1])
    assert not torch.equal(y[:, 0], y[:, 1])


def test_with_dropout_the_gradient_is_that_of_finite_differences(monkeypatch):
    monkeypatch.setattr(room, "ROWS", 4)
    torch.manual_seed(0)
    weights, biases = layers(3, 5, 4, 2)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *given):
        torch.manual_seed(1)  # the same values are dropped
        return fused_mlp(x, given[:3], given[3:], dropout=0.3)

    assert torch.autograd.gradcheck(run, (x, *weights, *biases))


def test_products_are_in_bf16_under_autocast_and_sums_of_their_gradients_are_not():
    torch.manual_seed(0)
    weights, biases = layers(8, 16, 16, 2, dtype=torch.float32)
    x = torch.randn(4000, 8)
    fused_mlp_reference(x, weights, biases).sum().backward()
    exact = [t.grad.clone() for t in (*weights, *biases)]
    for t in (*weights, *biases):
        t.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        y = fused_mlp(x, weights, biases)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    for t, grad in zip((*weights, *biases), exact, strict=True):
        assert t.grad.dtype == torch.float32
        assert (t.grad - grad).norm() < 0.03 * grad.norm()


def test_one_layer_is_a_plain_one():
    weights, biases = layers(3, 2)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = fused_mlp(x, weights, biases, dropout=0.5)
    torch.testing.assert_close(y, x @ weights[0].T + biases[0])
    assert torch.autograd.gradcheck(lambda x: fused_mlp(x, weights, biases), (x,))


def test_few_numbers_of_rows_reach_the_library_that_keeps_a_program_for_each(monkeypatch):
    seen = []
    monkeypatch.setattr(room, "_fuses", lambda x: True)
    monkeypatch.setattr(room, "ROWS_PREDICTED", 256)
    monkeypatch.setattr(room, "_fused", lambda x, ws, bs, add: seen.append((len(x), len(add))) or x[:, :2] + add)
    weights, biases = layers(5, 2, dtype=torch.float32)
    for count in range(1, 600, 7):
        x, addend = torch.randn(count, 5), torch.randn(count, 2)
        with torch.no_grad():
            assert torch.equal(fused_mlp(x, weights, biases, addend=addend), x[:, :2] + addend)
    assert {*seen} == {(64, 64), (128, 128), (256, 256)}


def picked(rows, dtype=torch.float64):
    """Two matrices, and which rows of them are read, some more than once."""
    matrices = [torch.randn(4, 3, dtype=dtype, requires_grad=True), torch.randn(40, 2, dtype=dtype, requires_grad=True)]
    return [(m, torch.randint(0, len(m), (rows,))) for m in matrices]


@pytest.mark.parametrize("rows", [0, 1, 20])
@pytest.mark.parametrize("skip_layer", [0, 2, 3])
def test_rows_that_are_read_lie_before_the_own_values(rows, skip_layer, monkeypatch):
    monkeypatch.setattr(room, "ROWS", 7)
    torch.manual_seed(0)
    weights, biases = layers(8, 4, 6, 4, 2, skip_layer=skip_layer)
    x, read = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True), picked(rows)
    joined = torch.cat([*(m[at] for m, at in read), x], dim=1)
    ours = fused_mlp(x, weights, biases, skip_layer=skip_layer, read=read)
    defined = fused_mlp_reference(joined, weights, biases, skip_layer=skip_layer)
    torch.testing.assert_close(ours, defined)
    seed, every = torch.randn_like(ours), [x, *(m for m, _ in read), *weights, *biases]
    for a, b in zip(torch.autograd.grad(ours, every, seed), torch.autograd.grad(defined, every, seed), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(fused_mlp(x, weights, biases, skip_layer=skip_layer, read=read), ours)


def test_frozen_matrices_that_are_read_have_no_gradient():
    weights, biases = layers(8, 4, 2)
    x, read = torch.randn(6, 3, dtype=torch.float64), picked(6)
    frozen = [(read[0][0].detach(), read[0][1]), read[1]]
    fused_mlp(x, weights, biases, read=frozen).sum().backward()
    assert read[0][0].grad is None and read[1][0].grad.abs().sum() > 0


def test_many_gradients_of_one_row_are_summed_in_float32():
    """In bf16 the later ones of thousands of summands would vanish."""
    matrix = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weights, biases = [torch.ones(1, 2, dtype=torch.bfloat16)], [torch.zeros(1, dtype=torch.bfloat16)]
    x = torch.ones(4000, 1, dtype=torch.bfloat16)
    fused_mlp(x, weights, biases, read=[(matrix, torch.zeros(4000, dtype=torch.long))]).sum().backward()
    assert matrix.grad.tolist() == [[4000], [0]]


def test_joined_rows_are_never_kept_in_training():
    """Two matrices of all rows less: the joined ones, and their gradient."""
    weights, biases = layers(300, 4, 2, dtype=torch.float32)
    matrix, at = torch.randn(50, 299, requires_grad=True), torch.randint(0, 50, (20_000,))
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        fused_mlp(torch.randn(20_000, 1), weights, biases, read=[(matrix, at)]).sum().backward()
    assert max(sizes) == 300 * room.ROWS
