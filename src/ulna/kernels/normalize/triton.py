"""The norm in Triton on an NVIDIA GPU, as an operator of torch: 2D and 3D, channels last, statistics in float32.

Bytes decide. A map is read once for its statistics and once for the result, which is written once; in the backward pass
map and gradient are read once for their sums and once for the gradient of the map. The map and its statistics are all that
is kept: the activation is found again from them. Where few programs have the whole image to themselves, one launch does both.

Sums are put together in an order that depends on sizes alone, without atomics, so results repeat bit for bit. Nothing
waits for the GPU, so all of it can be captured in a CUDA graph. No time of it is measured yet.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.kernels import door, gpu
from ulna.kernels.native import first_line
from ulna.kernels.normalize.definition import definition, empty_like, last

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VALUES = 2048  # of a tile: 16 a thread
PROGRAMS = 2048  # of a launch over a large map, or more: as many as a GPU of some 130 processors holds at a time
CHUNKS = 1024  # of an image at most, whose sums a program puts together
ALONE = 16  # an image of at most so many tiles is the work of one program a group of channels
_broken: list[str] = []


def suits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernels are made for this map, this scale and this shift, on whatever device that Triton knows."""
    if torch.compiler.is_compiling():
        # the operator is written into the graph; what it does is decided where it is called
        known = not (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export())
    else:
        known = door.admits(x, weight, bias, dtypes=DTYPES, device=None) and available(x.device)
    return (
        known
        and x.dtype in DTYPES
        and x.ndim in (4, 5)
        and x.is_contiguous(memory_format=last(x))
        and weight.shape == bias.shape == (x.shape[1],)
        and weight.dtype == bias.dtype
        and weight.dtype in (torch.float32, x.dtype)
    )


def available(device: torch.device) -> bool:
    """Whether Triton runs on this device and has not failed."""
    return not _broken and gpu.runs_on(device)


def normalize(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float, images: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The map after norm and activation, and mean and variance; arguments as of `definition`, for a map that `suits`.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S), (images, C), (images, C)
    """
    y, statistics = _norm(x, weight, bias, eps, slope, images)
    mean, _, variance = statistics.detach().unbind()
    return y, mean, variance


class Sizes(NamedTuple):
    """How a map is cut: tiles of BR rows by BC channels, `length` rows of one image a program."""

    images: int
    rows: int  # positions of an image
    channels: int
    BR: int
    BC: int
    length: int

    @classmethod
    def of(cls, x: Tensor, images: int, *, length: int = 0) -> Sizes:
        """Of a map; the length of a chunk is found from its size where it is not given."""
        rows, channels = x.numel() // x.shape[1] // images, x.shape[1]
        BC = block(channels)
        BR = min(VALUES // BC, _power(rows))
        if not length:
            groups = images * -(-channels // BC)
            parts = min(max(1, PROGRAMS // groups), CHUNKS)
            # at least 4 tiles: what is done once a program is little beside them
            tiles = -(-rows // BR)
            length = BR * (tiles if tiles <= ALONE else max(4, -(-tiles // parts)))
        return cls(images, rows, channels, BR, BC, length)

    @property
    def chunks(self) -> int:
        """Of an image."""
        return -(-self.rows // self.length)

    @property
    def grid(self) -> tuple[int, int]:
        """Programs."""
        return self.images * self.chunks, -(-self.channels // self.BC)

    def numbers(self) -> dict[str, int]:
        """What every kernel over rows reads of it."""
        return {
            "rows": self.rows,
            "length": self.length,
            "chunks": self.chunks,
            "images": self.images,
            "channels": self.channels,
            "BR": self.BR,
            "BC": self.BC,
        }


def block(channels: int) -> int:
    """BC: a power of 2 up to 128 that leaves the fewest places empty, the largest of them; few channels in one.

    Example:
        >>> [block(n) for n in (1, 3, 32, 48, 150, 320, 1280)]
        [1, 4, 32, 64, 32, 64, 128]
    """
    if channels <= 32:
        return _power(channels)
    return min((128, 64, 32), key=lambda size: -(-channels // size) * size)


def _power(number: int) -> int:
    """The next power of 2."""
    return 1 << (number - 1).bit_length()


@cache
def _kernels() -> Any:
    from ulna.kernels.normalize import triton_kernels

    return triton_kernels


def _launch(name: str, x: Tensor, grid: tuple[int, int], *arguments: Any, **numbers: Any) -> None:
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        getattr(_kernels(), name)[grid](*arguments, **numbers, num_warps=4, enable_fp_fusion=True)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int) -> tuple[Tensor, Tensor]:
    sizes, y = Sizes.of(x, images), empty_like(x)
    statistics = x.new_empty((3, images, sizes.channels), dtype=torch.float32)
    numbers, read = sizes.numbers(), (x, weight.contiguous(), bias.contiguous(), y, statistics)
    if sizes.chunks == 1:
        _launch("forward", x, sizes.grid, *read, **numbers, eps=eps, slope=slope)
        return y, statistics
    parts = x.new_empty((images, sizes.chunks, 2, sizes.channels), dtype=torch.float32)
    _launch("moments", x, sizes.grid, x, parts, **{name: n for name, n in numbers.items() if name != "images"})
    few = numbers | {"BC": min(16, sizes.BC), "BK": min(64, _power(sizes.chunks))}
    del few["BR"]
    programs = (images, -(-sizes.channels // few["BC"]))
    _launch("whole_moments", x, programs, parts, statistics, **few, eps=eps)
    _launch("apply", x, sizes.grid, *read, **numbers, slope=slope)
    return y, statistics


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, slope: float, images: int
) -> tuple[Tensor, Tensor]:
    sizes, dx = Sizes.of(x, images), empty_like(x)
    read, numbers = (x, dy, weight.contiguous(), bias.contiguous(), statistics), sizes.numbers()
    parts = x.new_empty((images, sizes.chunks, 2, sizes.channels), dtype=torch.float32)
    if sizes.chunks == 1:
        totals = parts[:, 0]
        _launch("gradient", x, sizes.grid, *read, totals, dx, **numbers, slope=slope, WHOLE=True)
    else:
        _launch("sums", x, sizes.grid, *read, parts, **numbers, slope=slope)
        totals = parts.sum(1)
        _launch("gradient", x, sizes.grid, *read, totals, dx, **numbers, slope=slope, WHOLE=False)
    return dx, (totals[0] if images == 1 else totals.sum(0)).to(weight.dtype)


def _forward_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int
) -> tuple[Tensor, Tensor]:
    """The same in torch's operations."""
    over = [0, *range(2, x.ndim)] if images == 1 else [*range(2, x.ndim)]
    variance, mean = torch.var_mean(x.float(), over, correction=0)
    scale = (variance + eps).rsqrt()
    y = definition(x, weight, bias, eps=eps, slope=slope, images=images)
    return y.contiguous(memory_format=last(x)), torch.stack([t.view(images, -1) for t in (mean, scale, variance)])


def _backward_by_torch(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, slope: float, images: int
) -> tuple[Tensor, Tensor]:
    over = [0, *range(2, x.ndim)] if images == 1 else [*range(2, x.ndim)]
    ones = (1,) * (x.ndim - 2)
    mean, scale, _ = statistics.view(3, images, -1, *ones).unbind()
    w, b = (t.float().view(1, -1, *ones) for t in (weight, bias))
    normal = (x.float() - mean) * scale
    g = torch.where(normal * w + b > 0, 1.0, slope) * dy.float()
    d_weight, d_bias = ((g * normal).mean(over, keepdim=True), g.mean(over, keepdim=True))
    dx = (w * scale * (g - d_bias - normal * d_weight)).to(x.dtype).contiguous(memory_format=last(x))
    count = x.numel() // x.shape[1] // images
    sums = [t.view(images, -1).sum(0) * count for t in (d_weight, d_bias)]
    return dx, torch.stack(sums).to(weight.dtype)


def _tried(kernels: Any, by_torch: Any, device: torch.device, *arguments: Any) -> tuple[Tensor, Tensor]:
    """What the kernels answer; where there are none, or they fail, torch's operations do."""
    with torch.autocast(device.type, enabled=False):
        if available(device):
            try:
                return kernels(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # no compiler for its launcher, a version that reads the kernel otherwise, ...
                if gpu.INTERPRETED:
                    raise
                _broken.append(first_line(error))
                log.warning("the Triton kernel of norms failed, torch's own operations take over (%s)", _broken[0])
        return by_torch(*arguments)


# Operators of torch, so that its compiler knows them by name


@torch.library.custom_op("ulna::norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int) -> tuple[Tensor, Tensor]:
    """(N, C, *S) -> the same after norm and activation; (3, images, C): mean, 1 / deviation, variance."""
    x = x.contiguous(memory_format=last(x))  # a compiler may have laid it out anew
    return _tried(_forward, _forward_by_torch, x.device, x, weight, bias, eps, slope, images)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int) -> tuple[Tensor, Tensor]:
    return empty_like(x), x.new_empty((3, images, x.shape[1]), dtype=torch.float32)


@torch.library.custom_op("ulna::norm_backward", mutates_args=())
def _norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, slope: float, images: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the map, and of scale and shift: (2, C)."""
    dy, x = (t.to(x.dtype).contiguous(memory_format=last(x)) for t in (dy, x))
    return _tried(_backward, _backward_by_torch, x.device, dy, x, weight, bias, statistics, slope, images)


@_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, slope: float, images: int
) -> tuple[Tensor, Tensor]:
    return empty_like(x), weight.new_empty((2, x.shape[1]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps, ctx.slope, ctx.images = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 6
    x, weight, bias, statistics = ctx.saved_tensors
    if not torch.compiler.is_compiling() and door.gradient_by_torch(dy):
        by_torch = partial(definition, eps=ctx.eps, slope=ctx.slope, images=ctx.images)
        found = door.gradients(by_torch, [x, weight, bias], ctx.needs_input_grad[:3], dy)
        return (*found, None, None, None)
    dx, both = _norm_backward(dy, x, weight, bias, statistics, ctx.slope, ctx.images)
    return (dx, *both.unbind(), None, None, None)


_norm.register_autograd(_gradients, setup_context=_remember)
