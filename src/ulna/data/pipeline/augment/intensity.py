"""Changes of intensity, each for those samples of a batch that drew it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ulna.data.pipeline.augment.draws import Draw
from ulna.data.pipeline.augment.noise import normals
from ulna.system.device import to_device

T = TypeVar("T")
REACH = 4.0  # standard deviations up to which a Gaussian is summed
EPSILON = 1e-7


def change(images: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Scale, shift, gamma, noise and blur, in this order: (N, C, *S) -> the same tensor, changed in place."""
    scale = {n: 1 + draw.scale for n, draw in enumerate(draws) if draw.scale is not None}
    shift = {n: draw.shift for n, draw in enumerate(draws) if draw.shift is not None}
    gamma = {n: draw.gamma for n, draw in enumerate(draws) if draw.gamma is not None}
    noise = {n: draw.noise for n, draw in enumerate(draws) if draw.noise is not None}
    blur = {n: draw.blur for n, draw in enumerate(draws) if draw.blur is not None}
    _of_some(images, scale, lambda some, factors: some.mul_(_column(factors, some)))
    _of_some(images, shift, lambda some, offsets: some.add_(_column(offsets, some)))
    _of_some(images, gamma, adjust_gamma)
    _of_some(images, noise, add_noise)
    _of_some(images, blur, smooth)
    return images


def adjust_gamma(images: Tensor, gammas: Sequence[float]) -> Tensor:
    """x -> ((x - min) / range) ** gamma * range + min, with the minimum and range of every sample: (N, C, *S)."""
    flat = images.flatten(1)
    low, high = (end.reshape(-1, *(1,) * (images.ndim - 1)) for end in flat.aminmax(dim=1))
    share = (images - low).div_(high - low + EPSILON)
    return share.pow_(_column(gammas, images)).mul_(high - low).add_(low)


def add_noise(images: Tensor, noise: Sequence[tuple[int, float]]) -> Tensor:
    """Add normal numbers by key and standard deviation, another for every value: (N, C, *S)."""
    keys, deviations = zip(*noise, strict=True)
    drawn = normals(keys, images[0].numel(), images.device).reshape(images.shape)
    return images.addcmul_(drawn, _column(deviations, images))


def smooth(images: Tensor, sigmas: Sequence[Sequence[float]]) -> Tensor:
    """Blur by a Gaussian along every spatial axis, as if there were zeros outside: (N, C, *S).

    Args:
        images: of a batch.
        sigmas: standard deviations in voxels, for every sample along every axis.
    """
    tail = max(_tail(sigma) for of_one in sigmas for sigma in of_one)
    weights = to_device(
        torch.tensor([[_gaussian(sigma, tail) for sigma in of_one] for of_one in sigmas]), images.device
    )
    weights = weights.reshape(*weights.shape, *(1,) * (images.ndim - 1))  # (N, D, tail + 1, 1, ..., 1)
    for axis in range(2, images.ndim):
        of_axis, length = weights[:, axis - 2], images.shape[axis]
        made = images * of_axis[:, 0]
        for far in range(1, min(tail + 1, length)):  # in one order, whatever the batch and device
            behind, ahead = images.narrow(axis, 0, length - far), images.narrow(axis, far, length - far)
            made.narrow(axis, 0, length - far).addcmul_(ahead, of_axis[:, far])
            made.narrow(axis, far, length - far).addcmul_(behind, of_axis[:, far])
        images = made
    return images


def _gaussian(sigma: float, tail: int) -> list[float]:
    """The shares of a Gaussian in voxels 0 to `tail` from its centre, 0 beyond its own tail."""
    root = sigma * math.sqrt(2)
    shares = [0.5 * (math.erf((x + 0.5) / root) - math.erf((x - 0.5) / root)) for x in range(_tail(sigma) + 1)]
    return shares + [0.0] * (tail + 1 - len(shares))


def _tail(sigma: float) -> int:
    return int(max(REACH * sigma, 0.5) + 0.5)


def _of_some(images: Tensor, drawn: dict[int, T], change: Callable[[Tensor, list[T]], Tensor]) -> None:
    """Change those samples of a batch that drew a change."""
    if drawn:
        index = to_device(torch.tensor(list(drawn)), images.device)
        images.index_copy_(0, index, change(images.index_select(0, index), list(drawn.values())))


def _column(values: Sequence[float], images: Tensor) -> Tensor:
    """One value a sample: (N) -> (N, 1, ..., 1)."""
    return to_device(torch.tensor(values, dtype=images.dtype), images.device).reshape(-1, *(1,) * (images.ndim - 1))
