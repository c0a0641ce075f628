"""Points for training: half of them near the boundaries of the labels, from a given generator."""

from __future__ import annotations

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
    labels: Tensor, dims: int, *, count: int, alpha: float, sigma: float, generator: torch.Generator
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

    Shape:
        (N, *S) or (N, K, *S) -> (N, P, D), whole numbers
    """
    size, device = labels.shape[-dims:], labels.device
    last = torch.tensor(size, device=device) - 1
    anywhere = torch.rand(labels.shape[0], count, dims, device=device, generator=generator)
    points = (anywhere * (last + 1)).long().minimum(last)  # in float32 a product may round up to the length itself
    near = round(alpha * count)
    for number, edge in enumerate(boundary(labels, dims)):
        where = edge.nonzero()
        if near and len(where):
            chosen = where[torch.randint(len(where), (near,), device=device, generator=generator)]
            moved = chosen + sigma * torch.randn(near, dims, device=device, generator=generator)
            points[number, :near] = moved.round().long().clamp(min=torch.zeros_like(last), max=last)
    return points


def boundary(labels: Tensor, dims: int) -> Tensor:
    """Voxels whose label differs from that of a neighbour along an axis: (N, *S) or (N, K, *S) -> (N, *S), bool."""
    maps = labels if labels.ndim > dims + 1 else labels[:, None]
    edge = torch.zeros_like(maps, dtype=torch.bool)
    for axis in range(2, maps.ndim):
        n = maps.shape[axis]
        differs = maps.narrow(axis, 1, n - 1) != maps.narrow(axis, 0, n - 1)
        edge.narrow(axis, 1, n - 1).logical_or_(differs)
        edge.narrow(axis, 0, n - 1).logical_or_(differs)
    return edge.any(dim=1)
