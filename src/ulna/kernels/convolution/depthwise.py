"""Depthwise convolutions on a CPU, whose gradients torch's library takes slowly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, native


def suits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: Sequence[int],
    groups: int,
    padding: Sequence[int],
) -> bool:
    """Whether a convolution is a depthwise one that trains faster here: of volumes, or of wide kernels in bfloat16."""
    return (
        groups > 1  # most convolutions have one
        and native.switched_on()
        and door.admits(x, weight, bias, dtypes=door.FLOATS)
        and door.row(bias, len(weight))
        and x.ndim == weight.ndim
        and x.ndim in (4, 5)
        and groups == x.shape[1] == weight.shape[0]
        and {*dilation} == {1}
        and all(n % 2 and p == n // 2 for n, p in zip(weight.shape[2:], padding, strict=True))
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.dtype in (torch.float32, torch.bfloat16)
        and (torch.is_autocast_enabled("cpu") or all(t.dtype == x.dtype for t in (weight, bias) if t is not None))
        and (x.ndim == 5 or (max(weight.shape[2:]) > 3 and _precision(x) == torch.bfloat16))
    )


def convolve_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A depthwise convolution in the precision of autocast, with the same values as torch's.

    The gradient of the input at stride 1 is the same convolution with the kernel turned round, which costs what the forward
    pass costs: much less than torch's in volumes. The other gradients are taken in float32, for which the library has faster
    code than for bfloat16. Second derivatives, forward-mode ones and torch.func are taken by torch's operations.

    Shape:
        (N, C, *S), (C, 1, *kernel), (C,) -> (N, C, *S / stride)
    """
    dtype = _precision(x)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not door.ordinary():
        return _convolve(x, weight, bias, stride, padding)
    made: Tensor = _Depthwise.apply(x, weight, bias, tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
    return made


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.stride, ctx.padding = stride, padding
        return _convolve(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward pass, whatever surrounds this one
            if door.gradient_by_torch(dy):
                definition = partial(_convolve, stride=ctx.stride, padding=ctx.padding)
                return (*door.gradients(definition, ctx.saved_tensors, ctx.needs_input_grad[:3], dy), None, None)
            return _backward(ctx, dy)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    turns = {*ctx.stride} == {1}
    wide_dy, wide_x, wide_weight = (t.to(torch.float32).contiguous(memory_format=layout) for t in (dy, x, weight))
    dims = x.ndim - 2
    dx, dw, _ = torch.ops.aten.convolution_backward(
        wide_dy,
        wide_x,
        wide_weight,
        None,
        ctx.stride,
        ctx.padding,
        [1] * dims,
        False,
        [0] * dims,
        x.shape[1],
        (ctx.needs_input_grad[0] and not turns, True, False),
    )
    if ctx.needs_input_grad[0] and turns:
        turned = weight.flip(*range(2, weight.ndim))
        dx = _convolve(dy.contiguous(memory_format=layout), turned, None, ctx.stride, ctx.padding)
    db = wide_dy.sum(dim=[0, *range(2, dy.ndim)]).to(dy.dtype) if bias is not None else None
    return None if dx is None else dx.to(x.dtype), dw.to(weight.dtype), db, None, None


def _precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    call: Any = F.conv2d if x.ndim == 4 else F.conv3d
    made: Tensor = call(x, weight, bias, stride, padding, 1, x.shape[1])
    return made
