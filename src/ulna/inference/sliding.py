"""Large images window by window: probabilities of overlapping windows are averaged with Gaussian weights.

Everything before this file is logits; from here on it is probabilities, because those may be averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First pixels of the windows along one axis: evenly spread, covering all, overlapping by `overlap` or more.

    Example:
        >>> window_starts(10, 4, 0.5), window_starts(3, 4, 0.5)
        ([0, 2, 4, 6], [0])
    """
    if size <= patch:
        return [0]
    step = max(1.0, patch * (1 - overlap))
    count = math.ceil((size - patch) / step) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def gaussian(patch: Sequence[int]) -> Tensor:
    """Weights of a window's pixels, (*patch): highest in the middle, sigma an eighth of the side, above 0 everywhere.

    Source: nnU-Net; a window's border sees less of its surroundings, so it counts less.
    """
    weights = torch.ones(())
    for length in patch:
        x = (torch.arange(length) - (length - 1) / 2) / (length / 8)
        weights = weights[..., None] * torch.exp(-0.5 * x**2)
    return weights.clamp_min(1e-3 * weights.max())


def by_windows(
    probabilities: Callable[[Tensor], Tensor], image: Tensor, patch: Sequence[int], *, overlap: float, batch: int = 1
) -> Tensor:
    """Probabilities of a whole image from those of its windows.

    Args:
        probabilities: (N, C, *patch) -> (N, K, *patch).
        image: (C, *S).
        patch: size of a window; axes shorter than it are taken whole.
        overlap: share of a window that its neighbour repeats, 0 to below 1.
        batch: windows at once.

    Returns:
        (K, *S), float32.
    """
    size = image.shape[1:]
    patch = [min(p, n) for p, n in zip(patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    windows: list[tuple[Any, ...]] = [
        (..., *(slice(s, s + p) for s, p in zip(corner, patch, strict=True))) for corner in itertools.product(*starts)
    ]
    if len(windows) == 1:
        return probabilities(image[None])[0].float()
    weights = gaussian(patch).to(image.device)
    total: Tensor | None = None
    weight_sum = torch.zeros(size, device=image.device)
    for first in range(0, len(windows), batch):
        group = windows[first : first + batch]
        maps = probabilities(torch.stack([image[window] for window in group])).float()
        if total is None:
            total = torch.zeros((maps.shape[1], *size), device=image.device)
        for window, values in zip(group, maps, strict=True):
            total[window] += values * weights
            weight_sum[window] += weights
    assert total is not None
    return total / weight_sum
