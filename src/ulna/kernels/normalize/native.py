"""The native kernel: norm and activation in one pass over a map that lies channels last on a CPU."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ulna.kernels import door, native
from ulna.kernels.normalize.definition import definition, empty_like, last

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def suits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the native kernel can take this map, this scale and this shift."""
    return (
        door.admits(x, weight, bias, dtypes=NAMES)
        and x.ndim in (4, 5)
        and x.is_contiguous(memory_format=last(x))
        and weight.shape == bias.shape == (x.shape[1],)
        and weight.dtype == bias.dtype == torch.float32
        and not door.watched()
        and native.library("normalize") is not None
    )


class Normalize(torch.autograd.Function):
    """`images`: how many the map is taken for, N or 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = _Shape(images, x[:, 0].numel() // images, x.shape[1], eps, slope)
        y = empty_like(x)
        mean, scale, variance = weight.new_empty(3, images, x.shape[1]).unbind()
        _call("forward", shape, x, weight.contiguous(), bias.contiguous(), y, mean, scale, variance)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.shape = shape
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        if door.gradient_by_torch(dy):
            by_torch = partial(definition, eps=ctx.shape.eps, slope=ctx.shape.slope, images=ctx.shape.images)
            found = door.gradients(by_torch, [x, weight, bias], ctx.needs_input_grad[:3], dy)
            return (*found, None, None, None)
        dy = dy.to(x.dtype).contiguous(memory_format=last(x))
        weight, bias = weight.contiguous(), bias.contiguous()
        dx, dw, db = empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        _call("backward", ctx.shape, x, dy, weight, bias, mean, scale, dx, dw, db)
        return dx, dw, db, None, None, None


class _Shape(ctypes.Structure):
    """As `Shape` in normalize.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "positions", "channels")),
        *((name, ctypes.c_float) for name in ("eps", "slope")),
    ]


def _call(what: str, shape: _Shape, *tensors: Tensor) -> None:
    """One function of normalize.cpp, with working space; tensors go as the address of their values."""
    library: Any = native.library("normalize")
    library.ulna_norm_parts.restype = ctypes.c_int64
    like = tensors[0]  # whatever type and device torch makes tensors of by default
    parts = like.new_empty(library.ulna_norm_parts(ctypes.byref(shape)), dtype=torch.float32)
    function = getattr(library, f"ulna_norm_{what}_{NAMES[tensors[0].dtype]}")
    function.restype = None
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (*tensors, parts))
    function(ctypes.byref(shape), *pointers, ctypes.c_int64(torch.get_num_threads()))
