"""Batch norm over a batch that several processes share: statistics of all its samples, as one process would have them.

torch's own of this kind is for GPUs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ulna.blocks import nd
from ulna.kernels import normalize
from ulna.system.ranks import Ranks


@contextmanager
def synchronised(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Within, every batch norm of a network in training takes the statistics of the batches of all ranks together.

    So it does what it does where one process has the whole batch, within rounding.
    """
    norms = [] if ranks.alone else [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, ranks)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: Any, ranks: Ranks, x: Tensor, slope: float = 1.0) -> Tensor:
    """(N, C, *S) -> the same, through a leaky ReLU of `slope` (1: none)."""
    if not norm.training:
        own = type(norm).forward
        made: Tensor = own(norm, x, slope) if slope != 1 else own(norm, x)
        return made
    y, mean, variance, count = over_all(x, norm.weight, norm.bias, eps=norm.eps, ranks=ranks)
    if not nd.recomputing() and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    return normalize.activated(y, slope)


def over_all(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every channel gets mean 0 and deviation 1 over the maps of all ranks, then scale and shift.

    Gradients of x are those of the whole; those of scale and shift are this rank's part of a sum.

    Args:
        x: the maps of this rank, of the same size in all.
        weight: scale; None: 1.
        bias: shift; None: 0.
        eps: added to the variance.
        ranks: that share the batch.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S), mean (C,), variance (C,) with all values as divisor, and their number (C,)
    """
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(wide, over, correction=0)
    own = torch.stack([mean, variance, torch.full_like(mean, x.numel() // x.shape[1])]).double()
    means, variances, counts = ranks.every(own).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    y: Tensor = _Normalised.apply(x, weight, bias, mean, (variance + eps).rsqrt(), total, ranks)  # type: ignore[no-untyped-call]
    return y, mean, variance, total.to(wide.dtype)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, total: Tensor, ranks: Ranks
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, total)
        ctx.ranks = ranks
        shape = (1, -1, *(1,) * (x.ndim - 2))
        factor = (scale * weight).view(shape)
        return ((x.to(mean.dtype) - mean.view(shape)) * factor + bias.view(shape)).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape, over = (1, -1, *(1,) * (x.ndim - 2)), [0, *range(2, x.ndim)]
        wide = dy.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        shift, slope = wide.sum(over), (wide * normal).sum(over)
        sums = torch.stack([shift, slope])
        ctx.ranks.add([sums])
        of_shift, of_slope = (sums / total.to(sums.dtype)).unbind(0)
        dx = (wide - of_shift.view(shape) - normal * of_slope.view(shape)) * (scale * weight).view(shape)
        return dx.to(x.dtype), slope, shift, None, None, None, None
