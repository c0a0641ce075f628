"""Normalisation and the activation after it: one native kernel where maps lie channels last on a CPU."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, faults, native

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float = 1.0) -> Tensor:
    """Every channel of every image gets mean 0 and deviation 1, then scale and shift, then a leaky ReLU.

    Statistics are float32 or better whatever the map's type. Second derivatives, forward-mode ones and torch.func are taken
    by torch's operations.

    Args:
        x: more than one position a channel.
        weight: scale.
        bias: shift.
        eps: added to the variance.
        slope: of the activation below 0: 1 for none, 0 for ReLU.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S)
    """
    if suits(x, weight, bias):
        y, _, _ = _Normalize.apply(x, weight, bias, eps, slope, len(x))  # type: ignore[no-untyped-call]
        return y
    return activated(_instance_norm(x, weight, bias, eps), slope)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The same over all images of a batch together, for a map that `suits`; also the statistics.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S), mean (C,), variance (C,) with N * S values as divisor
    """
    y, mean, variance = _Normalize.apply(x, weight, bias, eps, slope, 1)  # type: ignore[no-untyped-call]
    return y, mean[0], variance[0]


def activated(x: Tensor, slope: float) -> Tensor:
    """The leaky ReLU of a slope, in place."""
    if slope == 1:
        return x
    return F.leaky_relu(x, slope, inplace=True) if slope else F.relu(x, inplace=True)


def suits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the native kernel can take this map, this scale and this shift."""
    return (
        door.admits(x, weight, bias, dtypes=NAMES)
        and x.ndim in (4, 5)
        and x.is_contiguous(memory_format=_layout(x))
        and weight.shape == bias.shape == (x.shape[1],)
        and weight.dtype == bias.dtype == torch.float32
        and not door.watched()
        and native.library("normalize") is not None
    )


def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.is_contiguous() or not weight.ndim == bias.ndim == 1 or not door.plain(weight):
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    # torch's instance norm copies a channels-last map to and fro; batch norm of one image is the same, and does not
    weight = weight.contiguous() if "scale_in_steps" in faults.HERE else weight
    images = [F.batch_norm(image, None, None, weight, bias, training=True, eps=eps) for image in torch.split(x, 1)]
    return torch.cat(images)


def _definition(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float, images: int) -> Tensor:
    """What the native kernel computes; statistics in float32 or better."""
    over = [0, *range(2, x.ndim)] if images == 1 else [*range(2, x.ndim)]
    wide, channels = x.to(torch.promote_types(x.dtype, torch.float32)), (1, -1, *(1,) * (x.ndim - 2))
    variance, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
    normal = (wide - mean) * (variance + eps).rsqrt() * weight.view(channels) + bias.view(channels)
    return (normal if slope == 1 else F.leaky_relu(normal, slope)).to(x.dtype)


class _Normalize(torch.autograd.Function):
    """`images`: how many the map is taken for, N or 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = _Shape(images, x[:, 0].numel() // images, x.shape[1], eps, slope)
        y = _empty_like(x)
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
            definition = partial(_definition, eps=ctx.shape.eps, slope=ctx.shape.slope, images=ctx.shape.images)
            found = door.gradients(definition, [x, weight, bias], ctx.needs_input_grad[:3], dy)
            return (*found, None, None, None)
        dy = dy.to(x.dtype).contiguous(memory_format=_layout(x))
        weight, bias = weight.contiguous(), bias.contiguous()
        dx, dw, db = _empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
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


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
