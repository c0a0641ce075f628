"""Depthwise convolutions on a CPU, whose gradients torch's library takes slowly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ulna.kernels import door, native
from ulna.kernels.convolution.definition import Convolution, defined, joined, layout_of, precision


def suits(asked: Convolution) -> bool:
    """Whether a convolution has one kernel a channel, keeps its size but for the stride, and trains."""
    kernel = asked.weight.shape[2:]
    return (
        asked.groups > 1  # most convolutions have one
        and asked.trains
        and asked.weight.shape[:2] == (asked.groups, 1)
        and {*asked.dilation} == {1}
        and all(n % 2 and p == n // 2 for n, p in zip(kernel, asked.padding, strict=True))
        and all(m.dtype in (torch.float32, torch.bfloat16) for m in asked.maps)
        and asked.precision is not None
    )


def pays(asked: Convolution) -> bool:
    """Whether torch's library is slower: in volumes, and with wide kernels in bfloat16."""
    kernel = asked.weight.shape[2:]
    return len(kernel) == 3 or (max(kernel) > 3 and asked.precision == torch.bfloat16)


def available(_: Convolution) -> bool:
    """Whether our own kernels are switched on."""
    return native.switched_on()


def run(asked: Convolution) -> Tensor:
    """A convolution that `suits`."""
    return convolve_depthwise(joined(asked.maps), asked.weight, asked.bias, stride=asked.stride, padding=asked.padding)


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
    dtype = precision(x)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not door.ordinary():
        return defined(weight, bias, x, stride=stride, padding=padding, groups=x.shape[1])
    made: Tensor = _Depthwise.apply(weight, bias, x, tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
    return made


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, x: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight, bias, x)
        ctx.settings = {"stride": stride, "padding": padding, "groups": x.shape[1]}
        return defined(weight, bias, x, **ctx.settings)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward pass, whatever surrounds this one
            if door.gradient_by_torch(dy):
                definition = partial(defined, **ctx.settings)
                return (*door.gradients(definition, ctx.saved_tensors, ctx.needs_input_grad[:3], dy), None, None)
            return _backward(ctx, dy)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    weight, bias, x = ctx.saved_tensors
    layout = layout_of(x)
    turns = {*ctx.settings["stride"]} == {1}
    wide_dy, wide_x, wide_weight = (t.to(torch.float32).contiguous(memory_format=layout) for t in (dy, x, weight))
    dims = x.ndim - 2
    dx, dw, _ = torch.ops.aten.convolution_backward(
        wide_dy,
        wide_x,
        wide_weight,
        None,
        ctx.settings["stride"],
        ctx.settings["padding"],
        [1] * dims,
        False,
        [0] * dims,
        x.shape[1],
        (ctx.needs_input_grad[2] and not turns, True, False),
    )
    if ctx.needs_input_grad[2] and turns:
        turned = weight.flip(*range(2, weight.ndim))
        dx = defined(turned, None, dy.contiguous(memory_format=layout), **ctx.settings)
    db = wide_dy.sum(dim=[0, *range(2, dy.ndim)]).to(dy.dtype) if bias is not None else None
    return dw.to(weight.dtype), db, None if dx is None else dx.to(x.dtype), None, None
