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
- Small sweeps are bound by launches, so what torch would do in a dozen is done in three: `pack` before a sweep, `share` and
  `unpack` after it.

These figures are those of the design, not measured ones: `python benchmarks/gpu.py --part sweeps` measures.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.kernels import gpu
from ulna.kernels.native import first_line
from ulna.kernels.sweep.window import window

log = logging.getLogger(__name__)

STEP = 32  # BK; channels are padded to a multiple of it
_broken: list[str] = []


@cache
def _kernels() -> Any:
    from ulna.kernels.sweep import triton_kernels

    return triton_kernels


def available(x: Tensor) -> bool:
    """Whether Triton can sweep this map: in float32, on a GPU that multiplies bf16; in its interpreter on a CPU too."""
    return x.dtype == torch.float32 and not _broken and gpu.runs_on(x.device)


def give_up(error: Exception) -> None:
    """Do without Triton from now on; the log says once why."""
    if not _broken:
        _broken.append(first_line(error))
        log.warning("the Triton kernel of sweeps failed, torch's own operations take over (%s)", _broken[0])


def forward(
    x: Tensor, weights: tuple[Tensor, ...], axis: int, reverse: bool, keep: bool, operands: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `forward` of `native.py`, with the precision in which products read their operands: two launches."""
    w_in, w_hidden, b_in, b_hidden = weights
    shape = _Shape.of(x, w_in, axis)
    swept, gates = torch.empty_like(x), x.new_empty((*x.shape[:-1], 4 * shape.channels) if keep else 0)
    packed, order = _packed(shape, w_in, w_hidden, operands, back=False)
    buffer = x.new_empty((2, shape.rows, shape.padded), dtype=operands)
    tensors = (x, swept, gates, buffer, packed, b_in.contiguous(), b_hidden.contiguous(), order)
    _sweep("forward", shape, reverse, tensors, KEEP=keep)
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
    """As `backward` of `native.py`, with the precision in which products read their operands: seven launches.

    The kernel goes through the lines; what has no order is left to one product each over all positions: the share of
    the hidden side, and the gradients of the weights. What is summed, is summed in float32: biases before their terms are
    rounded for the products.
    """
    w_in, w_hidden = weights
    shape = _Shape.of(x, w_in, axis)
    C, K, CP = shape.channels, shape.neighbours, shape.padded
    packed, order = _packed(shape, w_in, w_hidden, operands, back=True)
    dx = torch.empty_like(x)
    slopes = x.new_empty((shape.lines * shape.rows, 4 * CP), dtype=operands)
    read = x.new_empty((shape.lines * shape.rows, (K + 1) * CP), dtype=operands)
    sums = x.new_empty((shape.lines * shape.of_rows, 4, CP))
    _sweep("backward", shape, reverse, (grad, x, swept, gates, dx, slopes, read, sums, packed, order))
    BC = min(64, CP)
    programs = (-(-shape.lines * shape.rows // 64), -(-CP // BC))
    _launch("share", x, programs, dx, slopes, packed, *shape.numbers(), K=K, CP=CP, BM=64, BC=BC, BK=STEP)
    d_in = _product(slopes[:, : 3 * CP].T, read[:, : K * CP])
    d_hidden = _product(slopes[:, CP:].T, read[:, K * CP :])
    found = (torch.empty_like(w_in), torch.empty_like(w_hidden), w_in.new_empty(3 * C), w_in.new_empty(3 * C))
    tiles = (CP // STEP) ** 2
    _launch("unpack", x, (3 * (K + 1), tiles), d_in, d_hidden, sums.sum(0), *found, C, K=K, CP=CP, BK=STEP)
    return dx, *found


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

    @property
    def of_rows(self) -> int:
        """Tiles of a line."""
        return -(-self.rows // tiles(self.rows)[0])

    def numbers(self) -> tuple[int, ...]:
        """What every kernel over positions reads of it."""
        return self.lines, self.rows, self.height, self.width, self.channels, *self.strides


def tiles(rows: int) -> tuple[int, int]:
    """Positions and channels of a tile, from the positions of a line over all images.

    Large tiles read less, small ones occupy more of the device: about 75 programs a line at C = 150, from 240 rows on.
    """
    if rows >= 768:
        return 64, 32
    return (32, 32) if rows >= 384 else (32, 16)


def _packed(
    shape: _Shape, w_in: Tensor, w_hidden: Tensor, operands: torch.dtype, *, back: bool
) -> tuple[Tensor, Tensor]:
    """The weights in whole tiles, and zeros for the order of programs."""
    K, CP = shape.neighbours, shape.padded
    packed = w_in.new_empty((K + 1, 3, CP, CP), dtype=operands)
    order = w_in.new_empty(1 + shape.lines * shape.of_rows, dtype=torch.int32)
    tensors = (w_in.contiguous(), w_hidden.contiguous(), packed, order)
    programs = (3 * (K + 1), (CP // STEP) ** 2)
    _launch("pack", w_in, programs, *tensors, shape.channels, len(order), K=K, CP=CP, BACK=back, BK=STEP)
    return packed, order


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, whatever it is a product of."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def _sweep(name: str, shape: _Shape, reverse: bool, tensors: tuple[Tensor, ...], **flags: bool) -> None:
    BM, BC = tiles(shape.rows)
    cells = sum((3 * (a + 1) + b + 1) << (4 * j) for j, (a, b) in enumerate(shape.offsets))
    reach = max(abs(a * shape.width + b) for a, b in shape.offsets)
    numbers = (*shape.numbers(), cells, reach, *((shape.lines - 1, -1) if reverse else (0, 1)))
    sizes = {"K": shape.neighbours, "CP": shape.padded, "BM": BM, "BC": BC, "BK": STEP}
    programs = shape.lines * shape.of_rows * (shape.padded // BC)
    _launch(name, tensors[0], (programs,), *tensors, *numbers, **sizes, **flags)


def _launch(name: str, x: Tensor, programs: tuple[int, ...], *arguments: Any, **sizes: int) -> None:
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        getattr(_kernels(), name)[programs](
            *arguments,
            **sizes,
            num_warps=4,
            num_stages=4,
            enable_fp_fusion=True,  # stated, because Triton warns that its default is about to change
        )
