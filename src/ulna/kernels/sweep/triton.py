"""The sweep as two Triton kernels, one launch a direction and pass, on an NVIDIA GPU: state and sums in float32.

Why one launch: a line is little work. With C = 150 (160 padded), 48 x 48 and batch 20, the products of one line are
960 x 480 by 480 x 480, 0.44 GFLOP: about a microsecond of a GPU with 400 TFLOP/s in bf16. The published loop spends some
15 launches on it. So launches and the way from line to line decide, not arithmetic:

- A launch a line, with the hidden side hoisted, is 47 launches a direction that a CUDA graph would have to hide, with
  buffers of its own for every shape. A barrier of the whole grid hangs where not all programs fit.
- Here programs order themselves (see `triton_kernels.py`). 64 positions by 32 channels make 75 programs a line; each
  reads 61 kB of the line and 92 kB of weights from L2, 11.5 MB a line together. Both lie there all the time: the weights
  take 0.6 MB with the hidden side, the line buffer twice 0.3 MB.
- The product of the position's own state needs no line before. A program computes it before it waits, so it costs no
  time of the sequence, and no (positions, 3C) lie in memory; likewise what the gradients of the weights will read.
- Weights and line are padded to whole tiles: they are read by 8 or 16 bytes a thread, and only positions need a mask.

These figures are those of the design, not measured ones: `python benchmarks/sweep_gpu.py` measures.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.kernels import native
from ulna.kernels.sweep.window import window

log = logging.getLogger(__name__)

SWITCH = "ULNA_TRITON"  # environment variable: 0 switches these kernels off
STEP = 32  # BK; channels are padded to a multiple of it
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
_broken: list[str] = []


@cache
def _kernels() -> Any:
    """The module of the kernels, or None where Triton cannot be imported or is switched off (said once in the log)."""
    if os.environ.get(SWITCH, "1") == "0":
        log.debug("Triton kernels are switched off (%s=0)", SWITCH)
        return None
    try:
        import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

        from ulna.kernels.sweep import triton_kernels
    except Exception as error:  # a broken installation may raise anything
        log.info("sweeps run without Triton (%s)", native.first_line(error))
        return None
    return triton_kernels


def available(x: Tensor) -> bool:
    """Whether Triton can sweep this map: in float32, on a GPU that multiplies bf16; in its interpreter on a CPU too."""
    if x.dtype != torch.float32 or _broken:
        return False
    if x.device.type == "cuda":
        return torch.version.cuda is not None and _capability(x.device) >= (8, 0) and _kernels() is not None
    return x.device.type == "cpu" and INTERPRETED and _kernels() is not None


def give_up(error: Exception) -> None:
    """Do without Triton from now on; the log says once why."""
    if not _broken:
        _broken.append(native.first_line(error))
        log.warning("the Triton kernel of sweeps failed, torch's own operations take over (%s)", _broken[0])


def forward(
    x: Tensor, weights: tuple[Tensor, ...], axis: int, reverse: bool, keep: bool, operands: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `forward` of `native.py`, with the precision in which products read their operands."""
    w_in, w_hidden, b_in, b_hidden = weights
    shape = _Shape.of(x, w_in, axis)
    C, K, CP = shape.channels, shape.neighbours, shape.padded
    swept, gates = torch.empty_like(x), x.new_empty((*x.shape[:-1], 4 * C) if keep else 0)
    packed = x.new_zeros((K + 1, 3, CP, CP), dtype=operands)  # neighbour, gate, in, out
    packed[:K, :, :C, :C] = w_in.view(3, C, K, C).permute(2, 0, 3, 1)
    packed[K, :, :C, :C] = w_hidden.view(3, C, C).transpose(1, 2)
    buffer = x.new_empty((2, shape.rows, CP), dtype=operands)
    tensors = (x, swept, gates, buffer, packed, b_in.contiguous(), b_hidden.contiguous())
    _launch("forward", shape, reverse, tensors, KEEP=keep)
    return swept, gates


def backward(
    grad: Tensor,
    x: Tensor,
    swept: Tensor,
    gates: Tensor,
    weights: tuple[Tensor, Tensor],
    axis: int,
    reverse: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `backward` of `native.py`, with the precision in which products read their operands.

    The kernel goes through the lines; what has no order is left to one product each over all positions: the share of
    the hidden side, and the gradients of the weights.
    """
    w_in, w_hidden = weights
    shape = _Shape.of(x, w_in, axis)
    C, K, CP = shape.channels, shape.neighbours, shape.padded
    packed = x.new_zeros((K + 1, 3, CP, CP), dtype=operands)  # neighbour, gate, out, in
    by_neighbour = w_in.view(3, C, K, C).permute(2, 0, 1, 3)
    packed[:K, 0, :C, :C] = by_neighbour[:, 2]  # n, r, z: so slopes of both sides lie together, n, r, z and r, z, n
    packed[:K, 1:, :C, :C] = by_neighbour[:, :2]
    packed[K, :, :C, :C] = w_hidden.view(3, C, C)
    dx = torch.empty_like(x)
    slopes = x.new_empty((shape.lines * shape.rows, 4 * CP), dtype=operands)
    read = x.new_empty((shape.lines * shape.rows, (K + 1) * CP), dtype=operands)
    _launch("backward", shape, reverse, (grad, x, swept, gates, dx, slopes, read, packed))
    slopes_in, slopes_hidden = slopes[:, : 3 * CP], slopes[:, CP:]
    d_in = (slopes_in.T @ read[:, : K * CP]).view(3, CP, K, CP)[:, :C, :, :C]
    d_hidden = (slopes_hidden.T @ read[:, K * CP :]).view(3, CP, CP)[:, :C, :C]
    sums = slopes.sum(0, dtype=torch.float32).view(4, CP)[:, :C]
    down = dx.movedim(1 + axis, 0)
    down += (slopes_hidden @ packed[K].view(3 * CP, CP)).view(*down.shape[:-1], CP)[..., :C]
    return (
        dx,
        torch.cat((d_in[1:], d_in[:1])).reshape(w_in.shape).to(w_in.dtype),
        d_hidden.reshape(w_hidden.shape).to(w_hidden.dtype),
        torch.cat((sums[1:3], sums[:1])).reshape(3 * C),
        sums[1:].reshape(3 * C).clone(),
    )


class _Shape(NamedTuple):
    """What the kernels call the geometry of lines; a line of a 2D map has one row of B positions."""

    lines: int
    rows: int  # R = N * A * B
    height: int  # A
    width: int  # B
    channels: int
    strides: tuple[int, int, int, int]  # in positions: image, line, A, B
    offsets: tuple[tuple[int, ...], ...]  # steps along A and B

    @classmethod
    def of(cls, x: Tensor, w_in: Tensor, axis: int) -> _Shape:
        """Of a contiguous map (N, *S, C) swept along an axis of *S."""
        size, steps, channels = list(x.shape[1:-1]), [step // x.shape[-1] for step in x.stride()[1:-1]], x.shape[-1]
        length, step = size.pop(axis), steps.pop(axis)
        flat = [offset if len(size) == 2 else (0, *offset) for offset in window(len(size), w_in.shape[1] // channels)]
        height, width = size if len(size) == 2 else (1, *size)
        far, near = steps if len(size) == 2 else (0, *steps)
        strides = (x.stride(0) // channels, step, far, near)
        return cls(length, x.shape[0] * height * width, height, width, channels, strides, tuple(flat))

    @property
    def neighbours(self) -> int:
        """K."""
        return len(self.offsets)

    @property
    def padded(self) -> int:
        """CP."""
        return -(-self.channels // STEP) * STEP


def tiles(rows: int) -> tuple[int, int]:
    """Positions and channels of a tile, from the positions of a line over all images.

    Large tiles read less, small ones occupy more of the device: about 75 programs a line at C = 150, from 240 rows on.
    """
    if rows >= 768:
        return 64, 32
    return (32, 32) if rows >= 384 else (32, 16)


def _launch(name: str, shape: _Shape, reverse: bool, tensors: tuple[Tensor, ...], **flags: bool) -> None:
    BM, BC = tiles(shape.rows)
    of_rows, of_channels = -(-shape.rows // BM), shape.padded // BC
    order = tensors[0].new_zeros(1 + shape.lines * of_rows, dtype=torch.int32)
    cells = sum((3 * (a + 1) + b + 1) << (4 * j) for j, (a, b) in enumerate(shape.offsets))
    reach = max(abs(a * shape.width + b) for a, b in shape.offsets)
    with torch.cuda.device(tensors[0].device) if tensors[0].is_cuda else nullcontext():
        getattr(_kernels(), name)[(shape.lines * of_rows * of_channels,)](
            *tensors,
            order,
            *(shape.lines, shape.rows, shape.height, shape.width, shape.channels, *shape.strides, cells, reach),
            *((shape.lines - 1, -1) if reverse else (0, 1)),
            K=shape.neighbours,
            CP=shape.padded,
            BM=BM,
            BC=BC,
            BK=STEP,
            **flags,
            num_warps=4,
            num_stages=4,
            enable_fp_fusion=True,  # stated, because Triton warns that its default is about to change
        )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
