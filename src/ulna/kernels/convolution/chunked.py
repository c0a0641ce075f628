"""Convolutions of large maps in low precision on a CPU, whose weight gradient is summed up slab by slab."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, native
from ulna.kernels.convolution.workarounds import joined, low_precision, precision

# Voxels of a slab where there are up to so many channels, fewer where there are more. The library that torch calls copies
# the input and the gradient of the output for a weight gradient, once a thread: of a 32 x 96 x 96 x 64 map 72 MB a thread,
# the highest need of a whole training step. Of a slab it is a fifth.
CHUNK, CHANNELS = 2**17, 32
# That library shares the weight gradient of a volume out to its threads by rows along the first axis, or, of few rows in
# large planes, by blocks of channels: there it waits for ever, or writes where it must not (AMX, torch 2.13). So a slab
# has so many rows at least, along an axis that has them, unless planes are so small that it never does;
ROWS, PLANE = 16, 2048
# and where there are no more outputs than these, so many input channels at most, which leaves one block to share out.
BLOCK = 32


def suits(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: Sequence[int], groups: int) -> bool:
    """Whether a convolution is one whose weight gradient is better taken in slabs."""
    return (
        _trains_in_low_precision(x, weight, bias)
        and native.switched_on()
        and {*dilation, groups} == {1}
        and (x[:, 0].numel() >= 2 * CHUNK or _few_rows(x.shape[2:], 2 * ROWS + weight.shape[2]))
    )


def axis_to_turn(x: Tensor, weight: Tensor, *, stride: Sequence[int]) -> int:
    """The spatial axis that should be the first one in a transposed convolution, whose kernel is its stride; 0: as it is.

    Args:
        x: the map that enters, (N, C, *S).
        weight: (C, K, *stride).
        stride: of every axis.
    """
    left = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    if not _trains_in_low_precision(x, weight) or not _few_rows(left, ROWS * stride[0]):
        return 0
    return list(x.shape[2:]).index(max(x.shape[2:]))


def _trains_in_low_precision(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        torch.is_grad_enabled()  # what most maps are refused for, and costs least, is asked first
        and low_precision(x) is not None
        and door.admits(x, weight, bias, dtypes=door.FLOATS)
        and door.row(bias, len(weight))
        and x.ndim == weight.ndim
        and x.ndim in (4, 5)
        and weight.requires_grad
        and (torch.is_autocast_enabled("cpu") or all(t.dtype == x.dtype for t in (weight, bias) if t is not None))
    )


def convolve_chunked(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """A convolution in the precision of autocast, with the same values as torch's.

    Of several maps, whose channels together are the input, the joined one is not kept for the backward pass, and no
    gradient is made of it. Slabs lie along the first spatial axis. The weight gradient of each is rounded to the low
    precision once, and they are added in float32: as exact as torch's, but where slabs cancel each other, what was rounded
    stays. Second derivatives, forward-mode ones and torch.func are taken by torch's operations.

    Shape:
        (N, C, *S) or [(N, Ci, *S), ...], (K, C, *kernel), (K,) -> (N, K, *S')
    """
    maps = [x] if isinstance(x, Tensor) else list(x)
    dtype = precision(maps[0])
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    maps = [m.to(dtype) for m in maps]
    if not door.ordinary():
        return _convolve(weight, bias, *maps, stride=stride, padding=padding)
    made: Tensor = _Chunked.apply(weight, bias, tuple(stride), tuple(padding), *maps)  # type: ignore[no-untyped-call]
    return made


def _few_rows(size: Sequence[int], fewest: int) -> bool:
    """Whether the weight gradient of a volume has few rows to share out, and large planes."""
    return len(size) == 3 and size[0] < fewest and size[1] * size[2] > PLANE


def _convolve(
    weight: Tensor, bias: Tensor | None, *maps: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    call: Any = F.conv2d if weight.ndim == 4 else F.conv3d
    made: Tensor = call(joined(maps), weight, bias, stride, padding)
    return made


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        *maps: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight, bias, *maps)
        ctx.stride, ctx.padding = stride, padding
        return _convolve(weight, bias, *maps, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *maps = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        if door.gradient_by_torch(dy):
            definition = partial(_convolve, stride=stride, padding=padding)
            asked = [*ctx.needs_input_grad[:2], *ctx.needs_input_grad[4:]]
            of_weight, of_bias, *of_maps = door.gradients(definition, [weight, bias, *maps], asked, dy)
            return of_weight, of_bias, None, None, *of_maps
        dw = _of_weight(dy, maps, weight, stride, padding)
        db = dy.sum(dim=[0, *range(2, dy.ndim)], dtype=torch.float32).to(dy.dtype) if bias is not None else None
        # after the weights': the working space of either is not needed beside the other's
        dx: list[Tensor | None] = []
        for m, w, asked in zip(
            maps, weight.split([m.shape[1] for m in maps], dim=1), ctx.needs_input_grad[4:], strict=True
        ):
            dx.append(_backward(dy, m, w.contiguous(), stride, padding, (True, False, False))[0] if asked else None)
        return dw.to(weight.dtype), db, None, None, *dx


def _of_weight(
    dy: Tensor, maps: Sequence[Tensor], weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The weight gradient, in float32."""
    budget = CHUNK * CHANNELS // max(weight.shape[1], CHANNELS)  # voxels of a slab
    axis = _axis(maps[0].shape, dy.shape, budget)
    if axis:
        turned = [t.transpose(2, 2 + axis) for t in (dy, *maps, weight)]
        order = [axis if n == 0 else 0 if n == axis else n for n in range(len(stride))]
        made = _of_weight(turned[0], turned[1:-1], turned[-1], [stride[n] for n in order], [padding[n] for n in order])
        return made.transpose(2, 2 + axis)
    dw = torch.zeros_like(weight, dtype=torch.float32)
    layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    slab_count = -(-maps[0][:, 0].numel() // budget)
    if weight.ndim == 5:
        slab_count = min(slab_count, max(1, dy.shape[2] // ROWS))
    for rows, reads, margins in _slabs(
        maps[0].shape[2], dy.shape[2], slab_count, weight.shape[2], stride[0], padding[0]
    ):
        part = joined([m[:, :, reads] for m in maps])
        if any(margins):
            part = F.pad(part, (*(0, 0) * (part.ndim - 3), *margins))
        part = part.contiguous(memory_format=layout)
        slab = dy[:, :, rows].contiguous(memory_format=layout)
        parts = zip(*(t.split(_block(weight), dim=1) for t in (part, weight)), strict=True)  # type: ignore[no-untyped-call]
        dw += torch.cat(
            [
                _backward(
                    slab,
                    x.contiguous(memory_format=layout),
                    w.contiguous(),
                    stride,
                    (0, *padding[1:]),
                    (False, True, False),
                )[1]
                for x, w in parts
            ],
            dim=1,
        )
    return dw


def _axis(entered: Sequence[int], left: Sequence[int], budget: int) -> int:
    """The spatial axis along which slabs lie: the first one, if a slab along it has rows enough, else the longest one.

    Args:
        entered: shape of a map.
        left: shape of the output, whose rows count.
        budget: voxels of a slab of the map.
    """
    size, rows = entered[2:], list(left[2:])
    share = min(1.0, budget / (entered[0] * math.prod(size)))
    if len(size) == 2 or share * rows[0] >= ROWS or size[1] * size[2] <= PLANE:
        return 0
    return rows.index(max(rows))


def _block(weight: Tensor) -> int:
    """How many input channels one weight gradient takes."""
    return BLOCK if len(weight) <= BLOCK else weight.shape[1]


def _slabs(
    depth: int, outputs: int, count: int, kernel: int, stride: int, padding: int
) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Rows of the output, the rows of the input that they read, and how many zeros they read before and behind."""
    count = min(outputs, count)
    for number in range(count):
        first, end = number * outputs // count, (number + 1) * outputs // count
        low, high = first * stride - padding, (end - 1) * stride - padding + kernel
        inside = slice(max(low, 0), min(high, depth))
        yield slice(first, end), inside, (inside.start - low, high - inside.stop)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    asked: tuple[bool, bool, bool],
) -> Sequence[Tensor]:
    """Gradients of the input, the weights and the bias: those that are asked for."""
    plain, zeros = [1] * len(stride), [0] * len(stride)
    made: Sequence[Tensor] = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, plain, False, zeros, 1, asked
    )
    return made
