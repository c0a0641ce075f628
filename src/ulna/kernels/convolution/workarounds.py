"""Ways round faults of the library that torch 2.13 calls for convolutions on a CPU. `chunked.py` has one more.

All were found by comparing with float64 where freed memory is full of NaN; tests/kernels/test_detours.py does so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOW = (torch.bfloat16, torch.float16)


def precision(x: Tensor) -> torch.dtype:
    """In which a convolution of this map would run on a CPU."""
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64  # as autocast itself has it
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


def low_precision(x: Tensor) -> torch.dtype | None:
    """That precision where it is a low one; None where it is not, and on other devices."""
    dtype = precision(x)
    return dtype if x.device.type == "cpu" and dtype in LOW else None


def stays_float32(*, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether a convolution must not run in low precision.

    Of a dilated one, parts of the weight gradient stay unwritten (2D maps of 32 pixels a side and more, channels last, 17 to
    31, 40, 56, 72, ... of them). Of a long stride, and of one that is longer than the kernel, answers or gradients are wrong
    with AMX, or memory is written that is another's.
    """
    return max(dilation) > 1 or max(stride) > 2 or any(k < s for k, s in zip(kernel, stride, strict=True))


def extra_padding(
    x: Tensor, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """How many zeros a small map wants behind its end, along every spatial axis, beside those of the padding.

    The library takes wrongly what is smaller than the kernel, and, with a stride, what leaves one output along the last
    axis: with AMX it reads beyond the map, and for weight gradients of volumes it also writes beyond. In float32 this is
    known of strided convolutions alone.
    """
    plain = type(x) is Tensor and x.device.type == "cpu" and x.ndim == len(kernel) + 2
    if (
        not plain
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or not (low_precision(x) or max(stride) > 1)
    ):
        return (0,) * len(kernel)
    fewest = (k + s - (1 if s == 1 or p else 0) for k, s, p in zip(kernel, stride, padding, strict=True))
    return tuple(max(0, want - n) for want, n in zip(fewest, x.shape[2:], strict=True))


def pad_end(x: Tensor, zeros: Sequence[int]) -> Tensor:
    """The map with zeros behind its end: (N, C, *S) -> (N, C, *S + zeros)."""
    return F.pad(x, [n for zero in reversed(zeros) for n in (0, zero)])


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Several maps as one: [(N, Ci, *S), ...] -> (N, C, *S); a single one as it is."""
    return maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)
