"""Convolution, normalisation, activation and pooling for 2D and 3D; the only file that branches on `spatial_dims`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ulna.errors import UsageError, unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
NORMS = ("batch", "instance", "none")


def check_dims(spatial_dims: int) -> None:
    """Raise a UsageError unless `spatial_dims` is 2 or 3."""
    if spatial_dims not in (2, 3):
        raise UsageError(f"spatial_dims is {spatial_dims!r}; ulna has networks for 2 and 3")


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    stride: int | Sequence[int] = 1,
    bias: bool = True,
) -> nn.Module:
    """Convolution that keeps the size at stride 1: (N, Cin, *S) -> (N, Cout, *S / stride)."""
    check_dims(spatial_dims)
    kind: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    step = per_axis(stride, spatial_dims)
    return kind(in_channels, out_channels, kernel_size, stride=step, padding=kernel_size // 2, bias=bias)


def transposed_conv(
    spatial_dims: int, in_channels: int, out_channels: int, *, stride: int | Sequence[int], bias: bool = True
) -> nn.Module:
    """Transposed convolution with kernel = stride: (N, Cin, *S) -> (N, Cout, *S * stride), no pixel written twice."""
    check_dims(spatial_dims)
    kind: Any = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    step = per_axis(stride, spatial_dims)
    return kind(in_channels, out_channels, step, stride=step, bias=bias)


def norm(kind: str, spatial_dims: int, channels: int) -> nn.Module:
    """Normalisation by name, with learnt scale and shift; "none" passes the map on."""
    check_dims(spatial_dims)
    if kind == "batch":
        return (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(channels)
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "none":
        return nn.Identity()
    raise unknown("norm", kind, NORMS)


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift, defined for maps of a single voxel too (there it gives the shift).

    torch refuses a 1x1 map; a small image at the deepest level is one.

    Shape:
        (N, C, *S) -> (N, C, *S)
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0].numel() == 1:
            shape = (1, -1, *(1,) * (x.ndim - 2))
            return (x - x) * self.weight.view(shape) + self.bias.view(shape)
        return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def activation(kind: str) -> nn.Module:
    """Activation by name; "none" passes the map on."""
    if kind == "none":
        return nn.Identity()
    if kind not in ACTIVATIONS:
        raise unknown("activation", kind, (*ACTIVATIONS, "none"))
    return ACTIVATIONS[kind](inplace=True)


def dropout(spatial_dims: int, probability: float) -> nn.Module:
    """Dropout of single values, or nothing at probability 0."""
    check_dims(spatial_dims)
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def max_pool(spatial_dims: int, stride: int | Sequence[int]) -> nn.Module:
    """Maximum over windows of `stride`: (N, C, *S) -> (N, C, *S / stride)."""
    check_dims(spatial_dims)
    return (nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d)(per_axis(stride, spatial_dims))


def upsample(spatial_dims: int, stride: int | Sequence[int]) -> nn.Module:
    """Bi- or trilinear upsampling: (N, C, *S) -> (N, C, *S * stride)."""
    check_dims(spatial_dims)
    factor = tuple(float(step) for step in per_axis(stride, spatial_dims))
    return nn.Upsample(scale_factor=factor, mode="bilinear" if spatial_dims == 2 else "trilinear", align_corners=False)


def per_axis(value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """One number for every spatial axis.

    Example:
        >>> per_axis(2, 3), per_axis((1, 2, 2), 3)
        ((2, 2, 2), (1, 2, 2))
    """
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= spatial_dims
    if len(values) != spatial_dims or min(values) < 1:
        raise UsageError(f"{value!r} does not give {spatial_dims} whole numbers from 1 up, one per spatial axis")
    return values


def layout(spatial_dims: int, channels_last: bool) -> torch.memory_format:
    """How maps lie in memory: channels last for 2D where wanted; in 3D it is slower, so never there."""
    return torch.channels_last if spatial_dims == 2 and channels_last else torch.contiguous_format
