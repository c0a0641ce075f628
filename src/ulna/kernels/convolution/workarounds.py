"""Workarounds for faults of torch's libraries in convolutions on a CPU: each is on where `kernels/faults.py` has its fault.

All were found by comparing with float64 where freed memory is full of NaN; test_workarounds.py does so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, faults
from ulna.kernels.convolution.definition import LOW, Convolution, precision

# "few_rows": a weight gradient is asked for so many rows at least, along an axis that has them, unless planes are so small
# that the library never shares it out by blocks of channels;
ROWS, PLANE = 16, 2048
# and where there are no more outputs than these, so many input channels at most, which leaves one block to share out.
BLOCK = 32
# "strided_pixel": with so many channels or more, the library is right
FEWEST_CHANNELS = 8


def low_precision(x: Tensor) -> torch.dtype | None:
    """The precision of a convolution of this map where it is a low one; None where it is not, and on other devices."""
    dtype = precision(x)
    return dtype if x.device.type == "cpu" and dtype in LOW else None


def stays_float32(asked: Convolution) -> bool:
    """Whether a convolution must not run in low precision: a dilated one, and one of long strides or gaps."""
    if asked.precision not in LOW or asked.maps[0].device.type != "cpu":
        return False
    skips = max(asked.stride) > 2 or any(k < s for k, s in zip(asked.weight.shape[2:], asked.stride, strict=True))
    return ("dilated" in faults.HERE and max(asked.dilation) > 1) or ("gaps" in faults.HERE and skips)


def transposed_stays_float32(x: Tensor, *, stride: Sequence[int]) -> bool:
    """Whether a transposed convolution, whose kernel is its stride, must not run in low precision."""
    return "transposed" in faults.HERE and low_precision(x) is not None and (1 in x.shape[2:] or max(stride) > 2)


def extra_padding(asked: Convolution) -> tuple[int, ...]:
    """How many zeros a small map wants behind its end, along every spatial axis, beside those of the padding.

    The library is wrong for maps that are smaller than the kernel, and, with a stride, for those that leave one output along
    the last axis. In float32 this is known of strided convolutions alone.
    """
    first, stride = asked.maps[0], asked.stride
    if (
        "small" not in faults.HERE
        or not all(door.computed(m) for m in asked.maps)
        or first.device.type != "cpu"
        or not (low_precision(first) or max(stride) > 1)
    ):
        return (0,) * len(stride)
    sizes = list(zip(first.shape[2:], asked.reach, stride, asked.padding, strict=True))
    if any(n + 2 * p < k for n, k, _, p in sizes):  # the kernel does not fit: torch's error
        return (0,) * len(stride)
    return tuple(max(0, k + s - (1 if s == 1 or p else 0) - n) for n, k, s, p in sizes)


def only_what_is_read(asked: Convolution) -> Convolution:
    """The same convolution at stride 1, of the pixels that it reads: of one that has a stride, one pixel and few channels."""
    kernel, stride = asked.weight.shape[1:], asked.stride
    if (
        "strided_pixel" not in faults.HERE
        or max(stride) == 1
        or {*kernel[1:]} != {1}
        or kernel[0] >= FEWEST_CHANNELS
        or any(asked.padding)
        or not all(door.computed(m) and m.device.type == "cpu" for m in asked.maps)
    ):
        return asked
    every = tuple(slice(None, None, s) for s in (1, 1, *stride))
    return asked._replace(maps=[m[every] for m in asked.maps], stride=(1,) * len(stride))


def pad_end(x: Tensor, zeros: Sequence[int]) -> Tensor:
    """The map with zeros behind its end: (N, C, *S) -> (N, C, *S + zeros)."""
    return F.pad(x, [n for zero in reversed(zeros) for n in (0, zero)])


def few_rows(size: Sequence[int], kernel: int) -> bool:
    """Whether the weight gradient of a volume has few rows to share out, and large planes.

    Args:
        size: of the map.
        kernel: its length along the first axis.
    """
    return _few_rows(size, 2 * ROWS + kernel)


def fewest_rows() -> int:
    """How many rows a weight gradient of a volume is asked for at least, where an axis has them."""
    return ROWS if "few_rows" in faults.HERE else 1


def block(weight: Tensor) -> int:
    """How many input channels one weight gradient takes."""
    return BLOCK if len(weight) <= BLOCK and "few_rows" in faults.HERE else weight.shape[1]


def axis_to_turn(x: Tensor, weight: Tensor, *, stride: Sequence[int]) -> int:
    """The spatial axis that should be the first one in a transposed convolution, whose kernel is its stride; 0: as it is.

    Args:
        x: the map that enters, (N, C, *S).
        weight: (C, K, *stride).
        stride: of every axis.
    """
    trains = torch.is_grad_enabled() and weight.requires_grad
    if not trains or low_precision(x) is None or not door.computed(x) or door.transformed():
        return 0
    size = x.shape[2:]
    if x.ndim != weight.ndim or not _few_rows([n * s for n, s in zip(size, stride, strict=True)], ROWS * stride[0]):
        return 0
    return list(size).index(max(size))


def _few_rows(size: Sequence[int], fewest: int) -> bool:
    return "few_rows" in faults.HERE and len(size) == 3 and size[0] < fewest and size[1] * size[2] > PLANE
