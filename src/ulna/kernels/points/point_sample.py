"""Reading feature maps at points: the vector of every map that lies where a point of the image lies.

Legend: N images, C channels, *S the spatial axes of the image, *M those of a map (S over its stride), D axes, P points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ulna.kernels import door

MODES = ("nearest", "linear")
LookUp = Callable[[Tensor, Tensor], Tensor]  # (N, C, *M), indices (N, P, D) into the map -> (N, P, C)


def point_sample_reference(fmap: Tensor, points: Tensor, size: Sequence[int], *, mode: str = "nearest") -> Tensor:
    """The definition, on any device and in any precision: one look-up per point.

    nearest: the vector at point // stride, axis by axis. linear: the bi- or trilinear mean of the 2^D vectors around the
    point, voxel centres matched, as in upsampling by the stride (`align_corners` false).

    Source: Implicit U-Net (marimont2022), Sec. 2 (nearest). Reading: indices are clamped to the map where a size is odd.

    Args:
        fmap: a feature map.
        points: whole voxel indices into the image.
        size: S.
        mode: "nearest" or "linear".

    Shape:
        (N, C, *M), (N, P, D) -> (N, P, C)

    Raises:
        ValueError: for another mode.
    """
    return _read(_look_up, fmap, points, size, mode)


def point_sample(fmap: Tensor, points: Tensor, size: Sequence[int], *, mode: str = "nearest") -> Tensor:
    """As `point_sample_reference`, faster: rows of a map that has its channels last, else one strided gather.

    The values are the same bit for bit; gradients differ by the order of their sums.
    """
    fit = fmap.ndim == points.shape[-1] + 2 and fmap.numel() and points.ndim == 3 and len(points) == len(fmap)
    return _read(_rows if fit and fmap.device == points.device else _look_up, fmap, points, size, mode)


def nearest_rows(fmap: Tensor, points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """What `point_sample` reads in the mode "nearest" of a map with its channels last, unread: vectors, and which of them.

    Shape:
        (N, C, *M), (N, P, D) -> (N * V, C), (N * P,); None for a map that lies otherwise
    """
    return _as_rows(fmap, _nearest_of(points, fmap.shape[2:], size))


def _read(at: LookUp, fmap: Tensor, points: Tensor, size: Sequence[int], mode: str) -> Tensor:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose {' or '.join(MODES)}")
    shape = fmap.shape[2:]
    if mode == "nearest":
        return at(fmap, _nearest_of(points, shape, size))
    wide = torch.float64 if fmap.dtype in (torch.float64, torch.complex128) else torch.float32
    low, share = zip(*(_between(points[..., a], shape[a], n, wide) for a, n in enumerate(size)), strict=True)
    total: Tensor | None = None
    for corner in itertools.product((0, 1), repeat=len(size)):
        index = torch.stack([(i + c).clamp(max=m - 1) for i, c, m in zip(low, corner, shape, strict=True)], dim=-1)
        weight = math.prod((s if c else 1 - s) for s, c in zip(share, corner, strict=True))
        part = at(fmap, index) * weight[..., None].to(fmap.dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


def _nearest_of(points: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
    return torch.stack([_nearest(points[..., a], shape[a], n) for a, n in enumerate(size)], dim=-1)


def _nearest(p: Tensor, length: int, size: int) -> Tensor:
    """Index into a map of `length`, for indices into an image of `size`: p // stride."""
    stride = -(-size // length)
    return torch.div(_whole(p), stride, rounding_mode="floor").clamp(0, length - 1)


def _whole(p: Tensor) -> Tensor:
    """Indices in a type that holds the number of every voxel; what is no index is left to torch's error."""
    return p if p.is_floating_point() or p.is_complex() or p.dtype == torch.bool else p.long()


def _between(p: Tensor, length: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The lower neighbour on the map and the share of the upper one; beyond the outermost centres, those alone."""
    stride = -(-size // length)
    at = ((p.to(dtype) + 0.5) / stride - 0.5).clamp(0, length - 1)
    low = at.floor()
    return low.long(), at - low


def _look_up(fmap: Tensor, index: Tensor) -> Tensor:
    return torch.stack([one[(slice(None), *at.unbind(-1))].T for one, at in zip(fmap, index, strict=True)])


def _rows(fmap: Tensor, index: Tensor) -> Tensor:
    picked = _as_rows(fmap, index)
    if picked is not None:
        read = _Rows.apply(*picked) if door.ordinary() else picked[0].index_select(0, picked[1])  # type: ignore[no-untyped-call]
        return read.reshape(*index.shape[:-1], fmap.shape[1])
    at = _flat(fmap, index)[:, None].expand(-1, fmap.shape[1], -1)
    return fmap.flatten(2).gather(2, at).transpose(1, 2)


def _as_rows(fmap: Tensor, index: Tensor) -> tuple[Tensor, Tensor] | None:
    last = fmap.movedim(1, -1)
    if not last.is_contiguous():
        return None
    first = math.prod(fmap.shape[2:]) * torch.arange(fmap.shape[0], device=fmap.device)[:, None]
    return last.reshape(-1, fmap.shape[1]), (_flat(fmap, index) + first).flatten()


def _flat(fmap: Tensor, index: Tensor) -> Tensor:
    """Indices (N, P, D) into a map as numbers of its voxels: (N, P)."""
    index = _whole(index)
    flat = index[..., 0]
    for axis in range(1, index.shape[-1]):
        flat = flat * fmap.shape[2 + axis] + index[..., axis]
    return flat


class _Rows(torch.autograd.Function):
    """Rows of a matrix: (V, C), indices (P,) -> (P, C).

    torch's own backward pass goes row by row where the gradient is a part of wider rows, as that of joined vectors is, and
    takes sums in the precision of the map: of several hundred bf16 summands, the later ones vanish.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.shape, ctx.dtype = rows.shape, rows.dtype
        return rows.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (at,) = ctx.saved_tensors
        # where there are fewer points than rows, few rows are summed, and the map of sums is large
        low = ctx.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if low and len(at) >= ctx.shape[0] else ctx.dtype
        total = dy.new_zeros(ctx.shape, dtype=dtype)
        # out of place it can be derived again: it is linear in dy
        add = total.index_add if door.gradient_by_torch(dy) else total.index_add_
        return add(0, at, dy.to(dtype).contiguous()).to(ctx.dtype), None
