"""Where a sample is taken from an image: flips, turns, scaling, shear and an elastic deformation in one resampling.

A sample is taken from the image itself, not from a patch that was cut before: a turned one shows tissue at its corners.
Beyond the image, the outermost voxels are repeated. Flips and quarter turns alone keep every value as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.pipeline.augment.draws import CONTROL_POINTS, Draw
from ulna.data.pipeline.cropping import extend
from ulna.recipe import Plan
from ulna.system.device import to_device


class Piece(NamedTuple):
    """The part of an image and its labels that one sample is taken from.

    Args:
        image: (C, *B).
        labels: (*B) or (K, *B).
        start: the first voxel of the patch, in voxels of the part; below 0 where the image is smaller than the patch.
    """

    image: Tensor
    labels: Tensor
    start: tuple[int, ...]

    def map(self, change: Any) -> Piece:
        """The same change of both tensors."""
        return self._replace(image=change(self.image), labels=change(self.labels))


class Source(NamedTuple):
    """What a voxel of the sample shows: the place in the image, both in voxels from the centre of the patch.

    Args:
        matrix: (D, D).
        bends: (D, 3, ..., 3), added to that; None without.
    """

    matrix: NDArray[np.float64]
    bends: NDArray[np.float64] | None


class Spatial:
    """The spatial changes of samples of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.patch, self.dims, self.turn_axes = plan.patch, plan.spatial_dims, plan.turn_axes
        self.spacing = np.asarray(plan.patch_spacing)
        self._weights = [_upsampling(length) for length in self.patch]

    def source(self, draw: Draw) -> Source:
        """The way from a sample back to its image."""
        matrix = np.eye(self.dims) if draw.matrix is None else draw.matrix
        back = self._symmetry(draw) / self.spacing  # from mm in the patch to voxels, turned and flipped back
        bends = None if draw.bends is None else np.tensordot(back, draw.bends, axes=1)
        return Source(back @ matrix @ np.diag(self.spacing), bends)

    def cut(self, image: Tensor, labels: Tensor, start: Sequence[int], draw: Draw) -> Piece:
        """As much of an image as one sample can show, as views: (C, *S), (*S) or (K, *S) -> (C, *B), (*B) or (K, *B)."""
        reach = np.asarray([(length - 1) / 2 for length in self.patch])
        centre = np.asarray(start) + reach
        if draw.matrix is not None:
            source = self.source(draw)
            reach = np.abs(source.matrix) @ reach
            if source.bends is not None:
                most = math.prod(float(weights.abs().sum(1).max()) for weights in self._weights)
                reach = reach + most * np.abs(source.bends).reshape(self.dims, -1).max(1)
        size = np.asarray(image.shape[1:])
        first = np.floor(centre - reach).astype(int).clip(0, size - 1)
        behind = np.ceil(centre + reach).astype(int).clip(0, size - 1) + 1
        box: tuple[Any, ...] = (..., *(slice(int(a), int(b)) for a, b in zip(first, behind, strict=True)))
        begin = tuple(int(s - a) for s, a in zip(start, first, strict=True))
        return Piece(image[box], labels[box], begin)

    def sample(self, pieces: Sequence[Piece], draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """A batch of samples, one of each piece: (N, C, *patch), and (N, *patch) or (N, K, *patch)."""
        moved = {n: m for m, n in enumerate(n for n, draw in enumerate(draws) if draw.matrix is not None)}
        grid = self._grid([pieces[n] for n in moved], [draws[n] for n in moved]) if moved else None
        taken = [
            self._still(piece, draw) if grid is None or n not in moved else _resampled(piece, grid[moved[n], None])
            for n, (piece, draw) in enumerate(zip(pieces, draws, strict=True))
        ]
        images, labels = zip(*taken, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _still(self, piece: Piece, draw: Draw) -> tuple[Tensor, Tensor]:
        """The patch itself, flipped and turned."""
        ends = [n - s - p for n, s, p in zip(piece.image.shape[1:], piece.start, self.patch, strict=True)]
        sides = [(max(-s, 0), max(-end, 0)) for s, end in zip(piece.start, ends, strict=True)]
        labels = _as_maps(piece)
        maps = [extend(piece.image, sides), labels]
        if any(map(any, sides)):
            maps[1] = extend(labels.float(), sides).to(labels.dtype)
        if draw.flips:
            maps = [one.flip([axis + 1 for axis in draw.flips]) for one in maps]
        if draw.quarters and self.turn_axes:
            maps = [torch.rot90(one, draw.quarters, [axis + 1 for axis in self.turn_axes]) for one in maps]
        return maps[0], maps[1] if labels is piece.labels else maps[1][0]

    def _symmetry(self, draw: Draw) -> NDArray[np.float64]:
        """What flips and quarter turns do to a direction, on the way from a sample to its image: (D, D)."""
        quarter = np.eye(self.dims)
        if self.turn_axes:
            a, b = self.turn_axes
            quarter[[a, b], [a, b]], quarter[a, b], quarter[b, a] = 0, 1, -1
        signs = np.asarray([-1.0 if axis in draw.flips else 1.0 for axis in range(self.dims)])
        return np.diag(signs) @ np.linalg.matrix_power(quarter, draw.quarters)

    def _grid(self, pieces: Sequence[Piece], draws: Sequence[Draw]) -> Tensor:
        """Where the voxels of samples lie in their pieces, as `grid_sample` counts: (M, *patch, D)."""
        device, dims = pieces[0].image.device, self.dims
        sources = [self.source(draw) for draw in draws]
        last = np.asarray([[max(n - 1, 1) for n in piece.image.shape[1:]] for piece in pieces])
        centres = np.asarray([piece.start for piece in pieces]) + (np.asarray(self.patch) - 1) / 2
        units = 2 / last[:, :, None]  # from -1, the first voxel, to 1, the last
        matrices = np.stack([source.matrix for source in sources]) * units
        whole = np.concatenate([matrices, centres[:, :, None] * units - 1], axis=2)
        ways = to_device(torch.from_numpy(whole).float(), device)
        places = [_along(torch.arange(n, device=device) - (n - 1) / 2, axis, dims) for axis, n in enumerate(self.patch)]
        bends = self._bends(sources, units, device)
        made = []
        for axis in reversed(range(dims)):  # the last axis is the first coordinate
            of_axis = ways[:, axis].reshape(len(pieces), dims + 1, *(1,) * dims)
            place = of_axis[:, dims]
            for other in range(dims):
                place = place + of_axis[:, other] * places[other]  # in one order, whatever the batch
            made.append(place if bends is None else place + bends[:, axis])
        return torch.stack(made, dim=-1)

    def _bends(self, sources: Sequence[Source], units: NDArray[np.float64], device: torch.device) -> Tensor | None:
        """The elastic displacements of all voxels of samples: (M, D, *patch); None without."""
        none = np.zeros((self.dims, *(CONTROL_POINTS,) * self.dims))
        drawn = np.stack([none if source.bends is None else source.bends for source in sources])
        if not drawn.any():
            return None
        field = to_device(torch.from_numpy(drawn * units.reshape(*units.shape[:2], *(1,) * self.dims)).float(), device)
        for axis, weights in enumerate(self._weights, start=2):
            shape = [-1 if other == axis else 1 for other in range(field.ndim)]
            columns = [column.reshape(shape) for column in to_device(weights, device).unbind(1)]
            parts = map(torch.mul, field.chunk(CONTROL_POINTS, dim=axis), columns)
            field = functools.reduce(torch.add, parts)  # in one order, whatever the batch
        return field


def _resampled(piece: Piece, grid: Tensor) -> tuple[Tensor, Tensor]:
    """One sample at the places of a grid: linearly, and the nearest voxels of its labels."""
    image = F.grid_sample(piece.image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    labels = _as_maps(piece)
    near = F.grid_sample(labels[None].float(), grid, mode="nearest", padding_mode="border", align_corners=True)[0]
    near = near.to(labels.dtype)
    return image, near if labels is piece.labels else near[0]


def _as_maps(piece: Piece) -> Tensor:
    """Its labels with an axis of maps: (K, *B)."""
    return piece.labels if piece.labels.ndim == piece.image.ndim else piece.labels[None]


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    return values.reshape([-1 if other == axis else 1 for other in range(dims)])


def _upsampling(length: int) -> Tensor:
    """How the voxels of an axis are interpolated between the control points, cubically: (length, 3)."""
    one = torch.eye(CONTROL_POINTS)[None, :, :, None]
    return F.interpolate(one, size=(length, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous()
