"""Points for training: half of them near the boundaries of the labels, from a given generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ulna.recipe import SPARSE_POINTS, Points


def count_points(settings: Points, voxels: int, *, sparse: bool) -> int | None:
    """How many points of a patch a training step reads, at most one for every voxel; None where it reads all voxels.

    Args:
        settings: of the recipe.
        voxels: of the patch.
        sparse: whether the head reads points at little cost.

    Example:
        >>> count_points(Points(), 160 * 160 * 96, sparse=True), count_points(Points(fraction=0.25), 64 * 64, sparse=False)
        (30000, 1024)
        >>> count_points(Points(), 64 * 64, sparse=True), count_points(Points(), 64 * 64, sparse=False)
        (4096, None)
    """
    if settings.fraction is not None:
        return max(1, round(settings.fraction * voxels))
    count = settings.count if settings.count is not None or not sparse else SPARSE_POINTS
    return None if count is None else min(count, voxels)


def sample_points(
    labels: Tensor,
    dims: int,
    *,
    count: int,
    alpha: float,
    sigma: float,
    generator: torch.Generator,
    ignored: int | None = None,
) -> Tensor:
    """Random voxels of every patch: a share `alpha` of them near a label boundary, the others anywhere.

    A point near the boundary is a random voxel of it, moved by a normal deviate along every axis, rounded, and held inside
    the patch. A patch without any boundary has all its points anywhere.

    Source: Implicit U-Net (marimont2022), Sec. 2 (alpha, sigma). Reading: boundary voxels are those whose label differs from
    that of a neighbour along an axis, on both sides; they are drawn with replacement; sigma is in voxels
    (docs/papers/implicit_unet.md, section 5).

    Args:
        labels: class indices, or 0 and 1 for overlapping classes.
        dims: D.
        count: P.
        alpha: 0 to 1.
        sigma: in voxels.
        generator: on the device of the labels.
        ignored: the label of what is not known; what borders on it is no boundary.

    Shape:
        (N, *S) or (N, K, *S) -> (N, P, D), whole numbers
    """
    size, device = labels.shape[-dims:], labels.device
    last = _last(tuple(size), device)
    anywhere = torch.rand(labels.shape[0], count, dims, device=device, generator=generator)
    points = (anywhere * (last + 1)).long().minimum(last)  # in float32 a product may round up to the length itself
    near = round(alpha * count)
    if device.type != "cpu":
        points[:, :near] = near_boundary(
            boundary(labels, dims, ignored), points[:, :near], sigma=sigma, generator=generator
        )
        return points
    for number, edge in enumerate(boundary(labels, dims, ignored)):
        where = edge.nonzero()
        if near and len(where):
            chosen = where[torch.randint(len(where), (near,), device=device, generator=generator)]
            moved = chosen + sigma * torch.randn(near, dims, device=device, generator=generator)
            points[number, :near] = moved.round().long().clamp(min=torch.zeros_like(last), max=last)
    return points


def near_boundary(edge: Tensor, points: Tensor, *, sigma: float, generator: torch.Generator) -> Tensor:
    """Points near a boundary, as many as `points`, which stay where there is none.

    No number of voxels comes to the host, as it must where the voxels of a boundary are listed: a GPU is not waited for.

    Args:
        edge: True on the boundary.
        points: anywhere.
        sigma: in voxels.
        generator: on the device of both.

    Shape:
        (N, *S), (N, P, D) -> (N, P, D), whole numbers
    """
    size = edge.shape[1:]
    last = _last(tuple(size), edge.device)
    passed = edge.flatten(1).cumsum(1)  # voxels of the boundary so far
    length = passed[:, -1:]
    drawn = torch.rand(points.shape[:2], dtype=torch.float64, device=edge.device, generator=generator)
    which = (drawn * length).long().minimum(length - 1) + 1  # of the boundary's voxels, from 1
    where = torch.searchsorted(passed, which).clamp_max(passed.shape[1] - 1)
    chosen = torch.stack(_indices(where, size), dim=-1)
    moved = chosen + sigma * torch.randn(points.shape, device=edge.device, generator=generator)
    return torch.where(length[..., None] > 0, moved.round().long().clamp(torch.zeros_like(last), last), points)


def _indices(where: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Along every axis, as `torch.unravel_index`, which copies the size to the device and waits for it."""
    indices = []
    for n in reversed(size):
        indices.append(where % n)
        where = where // n
    return indices[::-1]


@cache
def _last(size: Sequence[int], device: torch.device) -> Tensor:
    """The last voxel along every axis; copied to a device once, as a copy is waited for."""
    return torch.tensor(size, device=device) - 1


def boundary(labels: Tensor, dims: int, ignored: int | None = None) -> Tensor:
    """Voxels whose label differs from that of a neighbour along an axis: (N, *S) or (N, K, *S) -> (N, *S), bool.

    Where one of the two is `ignored`, nobody knows whether there is a boundary, and there is none.
    """
    maps = labels if labels.ndim > dims + 1 else labels[:, None]
    edge = torch.zeros_like(maps, dtype=torch.bool)
    for axis in range(2, maps.ndim):
        n = maps.shape[axis]
        one, other = maps.narrow(axis, 1, n - 1), maps.narrow(axis, 0, n - 1)
        differs = one != other
        if ignored is not None:
            differs = differs & (one != ignored) & (other != ignored)
        edge.narrow(axis, 1, n - 1).logical_or_(differs)
        edge.narrow(axis, 0, n - 1).logical_or_(differs)
    return edge.any(dim=1)
