"""Depthwise convolutions on a CPU, whose gradients torch's library takes slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ulna.kernels import native


def suits(x: Tensor, weight: Tensor, *, dilation: Sequence[int], groups: int, padding: Sequence[int]) -> bool:
    """Whether a convolution is a depthwise one that trains faster here: of volumes, or of wide kernels in bfloat16."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and native.switched_on()
        and x.device.type == "cpu"
        and x.ndim == weight.ndim
        and x.ndim in (4, 5)
        and groups == x.shape[1] == weight.shape[0] > 1
        and {*dilation} == {1}
        and all(n % 2 and p == n // 2 for n, p in zip(weight.shape[2:], padding, strict=True))
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.dtype in (torch.float32, torch.bfloat16)
        and (weight.dtype == x.dtype or torch.is_autocast_enabled("cpu"))
        and (x.ndim == 5 or (max(weight.shape[2:]) > 3 and _precision(x) == torch.bfloat16))
    )


def convolve_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A depthwise convolution in the precision of autocast, with the same values as torch's.

    The gradient of the input at stride 1 is the same convolution with the kernel turned round, which costs what the forward
    pass costs: much less than torch's in volumes. The other gradients are taken in float32, for which the library has faster
    code than for bfloat16. First derivatives only: for second ones, or torch.func, switch native kernels off (ULNA_NATIVE=0),
    and this with them.

    Shape:
        (N, C, *S), (C, 1, *kernel), (C,) -> (N, C, *S / stride)
    """
    dtype = _precision(x)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    made: Tensor = _Depthwise.apply(x, weight, bias, tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
    return made


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return _convolve(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward pass, whatever surrounds this one
            return _backward(ctx, dy)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
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
    db = wide_dy.sum(dim=[0, *range(2, dy.ndim)]).to(dy.dtype) if ctx.has_bias else None
    return None if dx is None else dx.to(x.dtype), dw.to(weight.dtype), db, None, None


def _precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    call: Any = F.conv2d if x.ndim == 4 else F.conv3d
    made: Tensor = call(x, weight, bias, stride, padding, 1, x.shape[1])
    return made
