"""Convolutions with 3x3 and 3x3x3 kernels on the CPU in float32: a native Winograd kernel where it is faster."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ulna.kernels import native

# Beyond these torch's own kernels are faster: few channels do not pay for the transforms of the maps, few pixels not for
# that of the weights, and a tile that hangs over the border computes what nobody reads
FEWEST_CHANNELS = 8
FEWEST_PIXELS = 512
LEAST_OF_A_TILE = 0.6


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with stride 1 that keeps the size, zeros outside: Winograd F(4x4, 3x3) in the plane where `suits`.

    Shape:
        (N, C, *S), (K, C, *kernel), (K,) or None -> (N, K, *S)

    Source: Lavin and Gray 2016. In float32 it differs from a direct convolution by about 1e-6 of the largest output.
    """
    if suits(x, weight):
        return _Convolution.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    padding = [side // 2 for side in weight.shape[2:]]
    return (F.conv2d if weight.ndim == 4 else F.conv3d)(x, weight, bias, padding=padding)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the native kernel can take this convolution, and is worth it."""
    return (
        type(x) is Tensor  # no fake or traced one
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] in ((3, 3), (3, 3, 3), (1, 3, 3))
        and x.ndim == weight.ndim
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and x[:, 0].numel() >= FEWEST_PIXELS
        and _tile_share(*x.shape[-2:]) >= LEAST_OF_A_TILE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and native.library("convolution") is not None
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy = _channels_last(dy)
        dx = _product(dy, weight, None, transposed=True) if ctx.needs_input_grad[0] else None
        dw = _weight_gradient(x, dy, weight.shape) if ctx.needs_input_grad[1] else None
        db = dy.sum(dim=[0, *range(2, dy.ndim)]) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return dx, dw, db


class _Shape(ctypes.Structure):
    """As `Shape` in convolution.cpp."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("images", "slices", "height", "width", "channels", "outputs", "depth")
    ]

    @classmethod
    def of(cls, x: Tensor, outputs: int, kernel: Sequence[int]) -> _Shape:
        slices, depth = (x.shape[2], kernel[0]) if x.ndim == 5 else (1, 1)
        return cls(x.shape[0], slices, *x.shape[-2:], x.shape[1], outputs, depth)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    """x * weight + bias; `transposed`: the gradient of the input from that of the output."""
    outputs = weight.shape[1] if transposed else weight.shape[0]
    shape = _Shape.of(x, outputs, weight.shape[2:])
    packed = torch.empty(_call("packed", shape))
    _call("pack", shape, weight.contiguous(), packed, int(transposed))
    size = (x.shape[0], outputs, *x.shape[2:])
    y = torch.empty(size, memory_format=_layout(x))
    _call("forward", shape, x, packed, None if bias is None else bias.contiguous(), y, _threads())
    return y


def _weight_gradient(x: Tensor, dy: Tensor, size: Sequence[int]) -> Tensor:
    shape = _Shape.of(x, size[0], size[2:])
    shares = torch.empty(_threads() * _call("share", shape))
    dw = torch.empty(tuple(size))
    _call("weight_gradient", shape, x, dy, shares, dw, _threads())
    return dw


def _call(name: str, shape: _Shape, *arguments: Tensor | int | None) -> int:
    """One function of convolution.cpp; tensors go as the address of their values."""
    function = getattr(native.library("convolution"), f"ulna_conv_{name}")
    function.restype = ctypes.c_int64
    return int(
        function(
            ctypes.byref(shape),
            *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else _plain(a) for a in arguments),
        )
    )


def _plain(argument: int | None) -> Any:
    return ctypes.c_void_p(None) if argument is None else ctypes.c_int64(argument)


def _threads() -> int:
    return torch.get_num_threads()


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_layout(x))


def _tile_share(height: int, width: int) -> float:
    """How much of the 4 x 4 tiles over a plane lies inside it."""
    return height * width / (16 * -(-height // 4) * -(-width // 4))
