"""What a norm and its activation are in torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def definition(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float, images: int) -> Tensor:
    """What the kernels compute: values, and derivatives of any order; statistics in float32 or better.

    Args:
        x: the map.
        weight: scale.
        bias: shift.
        eps: added to the variance.
        slope: of the activation below 0.
        images: how many the map is taken for: N (instance norm) or 1 (batch norm).

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S)
    """
    over = [0, *range(2, x.ndim)] if images == 1 else [*range(2, x.ndim)]
    wide, channels = x.to(torch.promote_types(x.dtype, torch.float32)), (1, -1, *(1,) * (x.ndim - 2))
    variance, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
    normal = (wide - mean) * (variance + eps).rsqrt() * weight.view(channels) + bias.view(channels)
    return (normal if slope == 1 else F.leaky_relu(normal, slope)).to(x.dtype)


def activated(x: Tensor, slope: float) -> Tensor:
    """The leaky ReLU of a slope, in place."""
    if slope == 1:
        return x
    return F.leaky_relu(x, slope, inplace=True) if slope else F.relu(x, inplace=True)


def empty_like(x: Tensor) -> Tensor:
    """Memory for a map of this shape, channels last."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=last(x))


def last(x: Tensor) -> torch.memory_format:
    """Channels last, for a map of 2 or 3 axes."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
