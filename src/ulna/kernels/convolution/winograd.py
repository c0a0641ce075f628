"""Convolutions with 3x3 and 3x3x3 kernels on the CPU in float32: a native Winograd kernel where it is faster."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ulna.kernels import door, native
from ulna.kernels.convolution.definition import Convolution, defined, joined, layout_of

# Beyond these torch's own kernels are faster: few channels do not pay for the transforms of the maps, few pixels not for
# that of the weights, and a tile that hangs over the border computes what nobody reads
FEWEST_CHANNELS = 8
FEWEST_PIXELS = 512  # of a batch in training
# In prediction those of one image count, so that it has the same answer in any batch; more of them, where transformed
# weights of so many pairs of channels leave the cache
FEWEST_PREDICTED, MANY_WEIGHTS, FEWEST_OF_MANY = 128, 2**16, 1024
LEAST_OF_A_TILE = 0.6


def suits(asked: Convolution) -> bool:
    """Whether a convolution is one of float32, with a kernel of 3x3 in the plane, that keeps the size."""
    kernel = asked.weight.shape[2:]
    return (
        asked.precision == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and kernel in ((3, 3), (3, 3, 3), (1, 3, 3))
        and min(asked.weight.shape[:2]) >= FEWEST_CHANNELS
        and {*asked.stride, *asked.dilation, asked.groups} == {1}
        and all(p == n // 2 for n, p in zip(kernel, asked.padding, strict=True))
    )


def pays(asked: Convolution) -> bool:
    """Whether a map has pixels enough for the transform of the weights, and whole tiles of them."""
    first, weight = asked.maps[0], asked.weight
    image = math.prod(first.shape[2:])
    if asked.trains:
        enough = len(first) * image >= FEWEST_PIXELS
    else:
        many = weight.shape[0] * weight.shape[1] >= MANY_WEIGHTS
        enough = image >= (FEWEST_OF_MANY if many else FEWEST_PREDICTED)
    return enough and _tile_share(*first.shape[-2:]) >= LEAST_OF_A_TILE


def available(_: Convolution) -> bool:
    """Whether the kernel can be had here, and no dispatch mode watches, which would not see it."""
    return not door.watched() and native.library("convolution") is not None


def run(asked: Convolution) -> Tensor:
    """A convolution that `suits`, by Winograd F(4x4, 3x3) in the plane; it reads several maps where they lie.

    Second derivatives, forward-mode ones and torch.func are taken by torch's operations.

    Source: Winograd (lavin2016), with other points (see convolution.cpp). Outputs are within about 1.4e-6 of the largest one,
    whatever the number of channels up to 512; torch's direct convolution within 2e-7 to 5e-7. Rounding errors are those of
    a tile of 4 x 4 outputs that shares the transforms: beside a pixel of 1e4 among pixels of about 1, outputs of the same
    tile that do not see it are off by up to 4e-3. Images with values that are not finite are taken by torch, so that these
    reach no outputs but those that see them.
    """
    # ordered here, not within: what is derived again is derived from what came
    maps = map(_channels_last, asked.maps)
    made: Tensor = _Convolution.apply(asked.weight, asked.bias, *maps)  # type: ignore[no-untyped-call]
    return made


def _tile_share(height: int, width: int) -> float:
    """How much of the 4 x 4 tiles over a plane lies inside it."""
    return height * width / (16 * -(-height // 4) * -(-width // 4))


def _direct(weight: Tensor, bias: Tensor | None, *maps: Tensor) -> Tensor:
    """The definition, by torch."""
    return defined(weight, bias, *maps, padding=[side // 2 for side in weight.shape[2:]])


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(weight, bias, *maps)
        (y,) = _product(maps, weight, bias, outputs=weight.shape[:1], transposed=False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *maps = ctx.saved_tensors
        if door.gradient_by_torch(dy):
            return tuple(door.gradients(_direct, [weight, bias, *maps], ctx.needs_input_grad, dy))
        dy = _channels_last(dy)
        dw = _weight_gradient(maps, dy, weight.shape) if ctx.needs_input_grad[0] else None
        db = dy.sum(dim=[0, *range(2, dy.ndim)]) if ctx.needs_input_grad[1] else None
        dx: Sequence[Tensor | None] = [None] * len(maps)
        if any(ctx.needs_input_grad[2:]):
            dx = _product([dy], weight, None, outputs=[x.shape[1] for x in maps], transposed=True)
        return dw, db, *dx


class _Shape(ctypes.Structure):
    """As `Shape` in convolution.cpp."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("images", "slices", "height", "width", "channels", "outputs", "depth")
    ]

    @classmethod
    def of(cls, x: Tensor, channels: int, outputs: int, kernel: Sequence[int]) -> _Shape:
        slices, depth = (x.shape[2], kernel[0]) if x.ndim == 5 else (1, 1)
        return cls(x.shape[0], slices, *x.shape[-2:], channels, outputs, depth)


class _Maps(ctypes.Structure):
    """As `Maps` in convolution.cpp; good as long as the tensors live."""

    _fields_ = [
        ("count", ctypes.c_int64),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("channels", ctypes.POINTER(ctypes.c_int64)),
    ]

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> _Maps:
        count = len(maps)
        data, channels = (ctypes.c_void_p * count)(), (ctypes.c_int64 * count)()
        data[:], channels[:] = [x.data_ptr() for x in maps], [x.shape[1] for x in maps]
        return cls(count, data, channels)


def _product(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, *, outputs: Sequence[int], transposed: bool
) -> list[Tensor]:
    """x * weight + bias, in maps of `outputs` channels; `transposed`: gradients of the input from that of the output."""
    shape = _Shape.of(maps[0], sum(x.shape[1] for x in maps), sum(outputs), weight.shape[2:])
    packed = weight.new_empty(_call("packed", shape))
    _call("pack", shape, weight.contiguous(), packed, int(transposed))
    first, bias = maps[0], None if bias is None else bias.contiguous()
    made = [_empty(first, k) for k in outputs]
    spoilt = (ctypes.c_char * len(first))()
    _call("forward", shape, _Maps.of(maps), packed, bias, _Maps.of(made), spoilt, _threads())
    # torch knows which outputs see what is not finite
    for image in (number for number, mark in enumerate(spoilt.raw) if mark):
        some = [x[image : image + 1] for x in maps]
        back = weight.transpose(0, 1).flip(*range(2, weight.ndim)) if transposed else weight
        found = _direct(back, bias, *some)
        for y, part in zip(made, found.split(list(outputs), dim=1), strict=True):  # type: ignore[no-untyped-call]
            y[image : image + 1] = part
    return made


def _weight_gradient(maps: Sequence[Tensor], dy: Tensor, size: Sequence[int]) -> Tensor:
    shape = _Shape.of(dy, size[1], size[0], size[2:])
    threads = _call("busy", shape, _threads())
    shares = dy.new_empty(threads * _call("share", shape))
    dw = dy.new_empty(tuple(size))
    if _call("weight_gradient", shape, _Maps.of(maps), dy, shares, dw, threads):
        return dw
    whole, flat = joined(maps), [1] * (len(size) - 2)
    padding, zeros = [side // 2 for side in size[2:]], [0] * len(flat)
    found: Tensor = torch.ops.aten.convolution_backward(
        dy, whole, dw, None, flat, padding, flat, False, zeros, 1, (False, True, False)
    )[1]
    return found


def _call(name: str, shape: _Shape, *arguments: Tensor | _Maps | ctypes.Array[ctypes.c_char] | int | None) -> int:
    """One function of convolution.cpp; tensors go as the address of their values."""
    function = getattr(native.library("convolution"), f"ulna_conv_{name}")
    function.restype = ctypes.c_int64
    return int(function(ctypes.byref(shape), *(_argument(a) for a in arguments)))


def _argument(value: Tensor | _Maps | ctypes.Array[ctypes.c_char] | int | None) -> Any:
    if isinstance(value, _Maps | ctypes.Array):
        return ctypes.byref(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def _threads() -> int:
    return torch.get_num_threads()


def _empty(like: Tensor, channels: int) -> Tensor:
    # whatever type and device torch makes tensors of by default
    size = like.shape[0], channels, *like.shape[2:]
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout_of(like))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=layout_of(x))
