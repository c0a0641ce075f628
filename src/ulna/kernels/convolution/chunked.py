"""Convolutions in low precision on a CPU, whose weight gradient is summed up chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, native
from ulna.kernels.convolution import workarounds
from ulna.kernels.convolution.definition import LOW, Convolution, defined, joined, layout_of, precision

# Voxels of a chunk where there are up to so many channels, fewer where there are more. The library that torch calls copies
# the input and the gradient of the output for a weight gradient, once a thread: of a 32 x 96 x 96 x 64 map 72 MB a thread,
# the highest need of a whole training step. Of a chunk it is a fifth.
CHUNK, CHANNELS = 2**17, 32


def suits(asked: Convolution) -> bool:
    """Whether a convolution trains in low precision, without gaps and groups."""
    return asked.trains and asked.precision in LOW and {*asked.dilation, asked.groups} == {1}


def pays(asked: Convolution) -> bool:
    """Whether a map is so large that chunks save memory, or one whose weight gradient must not be taken as a whole."""
    first = asked.maps[0]
    return len(first) * math.prod(first.shape[2:]) >= 2 * CHUNK or _few_rows(asked)


def available(asked: Convolution) -> bool:
    """Whether our own kernels are switched on; a fault of the library is worked around with them or without."""
    return native.switched_on() or _few_rows(asked)


def run(asked: Convolution) -> Tensor:
    """A convolution that `suits`."""
    return convolve_chunked(asked.maps, asked.weight, asked.bias, stride=asked.stride, padding=asked.padding)


def _few_rows(asked: Convolution) -> bool:
    return workarounds.few_rows(asked.maps[0].shape[2:], asked.weight.shape[2])


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
    gradient is made of it. Chunks lie along the first spatial axis. The weight gradient of each is rounded to the low
    precision once, and they are added in float32: as exact as torch's, but where chunks cancel each other, what was rounded
    stays. Second derivatives, forward-mode ones and torch.func are taken by torch's operations.

    Shape:
        (N, C, *S) or [(N, Ci, *S), ...], (K, C, *kernel), (K,) -> (N, K, *S')
    """
    maps = [x] if isinstance(x, Tensor) else list(x)
    dtype = precision(maps[0])
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    maps = [m.to(dtype) for m in maps]
    if not door.ordinary():
        return defined(weight, bias, *maps, stride=stride, padding=padding)
    made: Tensor = _Chunked.apply(weight, bias, tuple(stride), tuple(padding), *maps)  # type: ignore[no-untyped-call]
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
        return defined(weight, bias, *maps, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *maps = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        if door.gradient_by_torch(dy):
            definition = partial(defined, stride=stride, padding=padding)
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
    budget = CHUNK * CHANNELS // max(weight.shape[1], CHANNELS)  # voxels of a chunk
    axis = _axis(maps[0].shape, dy.shape, budget)
    if axis:
        turned = [t.transpose(2, 2 + axis) for t in (dy, *maps, weight)]
        order = [axis if n == 0 else 0 if n == axis else n for n in range(len(stride))]
        made = _of_weight(turned[0], turned[1:-1], turned[-1], [stride[n] for n in order], [padding[n] for n in order])
        return made.transpose(2, 2 + axis)
    dw = torch.zeros_like(weight, dtype=torch.float32)
    layout = layout_of(weight)
    count = -(-maps[0][:, 0].numel() // budget)
    if weight.ndim == 5:
        count = min(count, max(1, dy.shape[2] // workarounds.fewest_rows()))
    for rows, reads, margins in _chunks(maps[0].shape[2], dy.shape[2], count, weight.shape[2], stride[0], padding[0]):
        part = joined([m[:, :, reads] for m in maps])
        if any(margins):
            part = F.pad(part, (*(0, 0) * (part.ndim - 3), *margins))
        part = part.contiguous(memory_format=layout)
        chunk = dy[:, :, rows].contiguous(memory_format=layout)
        parts = zip(*(t.split(workarounds.block(weight), dim=1) for t in (part, weight)), strict=True)  # type: ignore[no-untyped-call]
        dw += torch.cat(
            [
                _backward(
                    chunk,
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
    """The spatial axis along which chunks lie: the first one, if a chunk along it has rows enough, else the longest one.

    Args:
        entered: shape of a map.
        left: shape of the output, whose rows count.
        budget: voxels of a chunk of the map.
    """
    size, rows = entered[2:], list(left[2:])
    share = min(1.0, budget / (entered[0] * math.prod(size)))
    if len(size) == 2 or share * rows[0] >= workarounds.fewest_rows() or size[1] * size[2] <= workarounds.PLANE:
        return 0
    return rows.index(max(rows))


def _chunks(
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
