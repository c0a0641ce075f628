"""A sweep and all its gradients by a path, and by the definition: in float64, or from operands in bf16."""

import pytest
import torch

from tests.kernels.sweep.test_sweep import DOUBLE
from ulna.kernels.sweep import dispatch as paths
from ulna.kernels.sweep.dispatch import Gates, force, sweep


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


class Lowered(torch.autograd.Function):
    """The product of a linear layer whose operands are rounded to bf16, forward and backward; its sums are not."""

    @staticmethod
    def forward(ctx, u, weight):
        u, weight = (t.bfloat16().to(t.dtype) for t in (u, weight))
        ctx.save_for_backward(u, weight)
        return u @ weight.T

    @staticmethod
    def backward(ctx, grad):
        u, weight = ctx.saved_tensors
        grad = grad.bfloat16().to(grad.dtype)
        return grad @ weight, grad.flatten(0, -2).T @ u.flatten(0, -2)


def lowered(x, gates, direction, weights, dtype=DOUBLE):
    """The definition with what products read in bf16, and all else in another precision: biases sum what is not rounded."""
    x, *gates = (t.detach().to(dtype).requires_grad_() for t in (x, *gates))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "linear", lambda u, weight, bias: Lowered.apply(u, weight) + bias)
        return gradients("reference", x, Gates(*gates), direction, weights.to(dtype))


def difference(expected, got):
    """The largest, over the largest value or 1."""
    return ((expected - got).abs().max() / expected.abs().max().clamp_min(1)).item()


def close(expected, got, tolerance):
    for a, b in zip(expected, got, strict=True):
        assert b.dtype == torch.float32
        assert difference(a, b) <= tolerance


def close_in_bf16(x, gates, direction, weights):
    """All that the kernels make from bf16 operands against the definition from such operands.

    A value at the edge between two bf16 numbers is rounded to either, so that one of the terms of a sum is off by 2^-8 of
    itself, and what follows by less; a long sweep has many such values, and goes as far astray as the definition itself goes
    when it is computed in float32.
    """
    expected, got = (
        lowered(x, gates, direction, weights),
        gradients("triton", x, gates, direction, weights, torch.bfloat16),
    )
    astray = lowered(x, gates, direction, weights, torch.float32)
    for a, b, other in zip(expected, got, astray, strict=True):
        assert b.dtype == torch.float32
        assert difference(a, b) <= max(2**-8, 2 * difference(a, other))
