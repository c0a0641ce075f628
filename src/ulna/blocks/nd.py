"""Convolution, normalisation, activation and pooling for 2D and 3D; the only file that branches on `spatial_dims`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ulna.errors import UsageError, unknown
from ulna.kernels import normalize
from ulna.kernels.convolution import convolve, convolve_transposed, joined, preferred_layout

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
NORMS = ("batch", "instance", "none")
# names of moving along an axis and against it, by the last three axes (D,) H, W
SENSES = (("forward", "backward"), ("down", "up"), ("right", "left"))


def check_dims(spatial_dims: int) -> None:
    """Raise a UsageError unless `spatial_dims` is 2 or 3."""
    if spatial_dims not in (2, 3):
        raise UsageError(f"spatial_dims is {spatial_dims!r}; ulna has networks for 2 and 3")


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
) -> nn.Module:
    """Convolution: (N, Cin, *S) -> (N, Cout, *S / stride).

    An odd kernel keeps the size at stride 1; an even one is meant for a stride of its own size, and is not padded.
    """
    check_dims(spatial_dims)
    kind: Any = Conv2d if spatial_dims == 2 else Conv3d
    step, kernel = per_axis(stride, spatial_dims), per_axis(kernel_size, spatial_dims)
    padding = tuple(dilation * ((n - 1) // 2) for n in kernel)
    return kind(
        in_channels,
        out_channels,
        kernel,
        stride=step,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


class _Conv:
    """What torch's convolution lacks: the kernels of `kernels/convolution`, and several maps at once.

    Shape:
        (N, C, *S), or several maps whose channels add up to C -> (N, K, *S')
    """

    def forward(self: Any, x: Tensor | Sequence[Tensor]) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):  # torch's own has more than ours
            whole = x if isinstance(x, Tensor) else joined(x)
            made: Tensor = self._conv_forward(whole, self.weight, self.bias)
            return made
        steps = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return convolve(x, self.weight, self.bias, **steps, groups=self.groups)


class Conv2d(_Conv, nn.Conv2d):
    """nn.Conv2d, fast: (N, C, H, W), or several such maps -> (N, K, H', W')."""


class Conv3d(_Conv, nn.Conv3d):
    """nn.Conv3d, fast: (N, C, D, H, W), or several such maps -> (N, K, D', H', W')."""


class _ConvTranspose:
    """Transposed convolution with kernel = stride, by `kernels/convolution`: (N, C, *S) -> (N, K, *S * stride)."""

    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return convolve_transposed(x, self.weight, self.bias, stride=self.stride)


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """nn.ConvTranspose2d, safe: (N, C, H, W) -> (N, K, H', W')."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """nn.ConvTranspose3d, safe: (N, C, D, H, W) -> (N, K, D', H', W')."""


def transposed_conv(
    spatial_dims: int, in_channels: int, out_channels: int, *, stride: int | Sequence[int], bias: bool = True
) -> nn.Module:
    """Transposed convolution with kernel = stride: (N, Cin, *S) -> (N, Cout, *S * stride), no pixel written twice."""
    check_dims(spatial_dims)
    kind: Any = ConvTranspose2d if spatial_dims == 2 else ConvTranspose3d
    step = per_axis(stride, spatial_dims)
    return kind(in_channels, out_channels, step, stride=step, bias=bias)


def norm(kind: str, spatial_dims: int, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """Normalisation by name, with learnt scale and shift; "none" passes the map on."""
    check_dims(spatial_dims)
    if kind == "batch":
        return (BatchNorm2d if spatial_dims == 2 else BatchNorm3d)(channels, eps=eps)
    if kind == "instance":
        return InstanceNorm(channels, eps=eps)
    if kind == "none":
        return nn.Identity()
    raise unknown("norm", kind, NORMS)


_recomputing = [False]


class Recomputing:
    """Maps are computed a second time within: batch norm has taken their statistics into its running ones already.

    It may be entered again: second derivatives compute maps once more.
    """

    def __init__(self) -> None:
        self.before: list[bool] = []

    def __enter__(self) -> None:
        self.before.append(_recomputing[0])
        _recomputing[0] = True

    def __exit__(self, *_: object) -> None:
        _recomputing[0] = self.before.pop()


def recomputing() -> bool:
    """Whether maps are computed a second time."""
    return _recomputing[0]


class _BatchNorm:
    """What torch's batch norm lacks: a clear error, and an activation in the same pass over the map."""

    training: bool
    track_running_stats: bool

    def forward(self, x: Tensor, slope: float = 1.0) -> Tensor:
        """(N, C, *S) -> the same, through a leaky ReLU of `slope` (1: none)."""
        self.check(x)
        if self.takes_one_pass(x):
            return self._in_one_pass(x, slope)
        if self.training and recomputing():
            return normalize.activated(self._by_batch(x), slope)
        return normalize.activated(super().forward(x), slope)  # type: ignore[misc]

    def check(self, x: Tensor) -> None:
        """Raise a UsageError for a map that it cannot be trained on."""
        if self.training and x.numel() == x.shape[1]:
            raise UsageError(
                f"batch norm cannot train on one value per channel (a map of shape {tuple(x.shape)}); "
                "take larger images, a batch of 2 or more, fewer levels, or norm=instance"
            )

    def takes_one_pass(self: Any, x: Tensor) -> bool:
        """Whether one kernel takes this map, norm and activation."""
        return self.training and self._is_usual() and normalize.suits(x, self.weight, self.bias)

    def _is_usual(self: Any) -> bool:
        """With scale, shift and running statistics of a fixed momentum, all float32: as `norm` makes it."""
        kept = self.weight, self.bias, self.running_mean, self.running_var
        return self.momentum is not None and all(t is not None and t.dtype == torch.float32 for t in kept)

    def _by_batch(self: Any, x: Tensor) -> Tensor:
        spare = self.running_mean.clone(), self.running_var.clone()  # taken into account once already
        return nn.functional.batch_norm(x, *spare, self.weight, self.bias, training=True, eps=self.eps)

    def _in_one_pass(self: Any, x: Tensor, slope: float) -> Tensor:
        y, mean, variance = normalize.batch_norm(x, self.weight, self.bias, eps=self.eps, slope=slope)
        if recomputing():
            return y
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch's own, with a clear error and an activation: (N, C, H, W) -> the same."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch's own, with a clear error and an activation: (N, C, D, H, W) -> the same."""


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift, defined for maps of a single voxel too (there it gives the shift).

    torch refuses a 1x1 map; a small image at the deepest level is one.

    Shape:
        (N, C, *S) -> (N, C, *S), through a leaky ReLU of `slope` (1: none)
    """

    takes_means = True  # over all that the network sees

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, slope: float = 1.0) -> Tensor:
        if x[0, 0].numel() == 1:
            shape = (1, -1, *(1,) * (x.ndim - 2))
            return normalize.activated((x - x) * self.weight.view(shape) + self.bias.view(shape), slope)
        return normalize.instance_norm(x, self.weight, self.bias, eps=self.eps, slope=slope)

    def takes_one_pass(self, x: Tensor) -> bool:
        """Whether one kernel takes this map, norm and activation."""
        return normalize.suits(x, self.weight, self.bias)


def slope_of(activation: nn.Module) -> float | None:
    """The slope below 0 of an activation that is straight on both sides of it: 1 for none; None for any other.

    Example:
        >>> [slope_of(activation(kind)) for kind in ("none", "relu", "leaky_relu", "silu")]
        [1.0, 0.0, 0.01, None]
    """
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    return {nn.Identity: 1.0, nn.ReLU: 0.0}.get(type(activation))


def in_one_pass(norm: nn.Module, slope: float | None, x: Tensor) -> bool:
    """Whether this machine has one kernel for the norm of this map and the activation after it."""
    return slope is not None and isinstance(norm, InstanceNorm | _BatchNorm) and norm.takes_one_pass(x)


def activation(kind: str, *, inplace: bool = True) -> nn.Module:
    """Activation by name; "none" passes the map on."""
    if kind == "none":
        return nn.Identity()
    if kind not in ACTIVATIONS:
        raise unknown("activation", kind, (*ACTIVATIONS, "none"))
    return ACTIVATIONS[kind](inplace=inplace)


def dropout(spatial_dims: int, probability: float) -> nn.Module:
    """Dropout of single values, or nothing at probability 0."""
    check_dims(spatial_dims)
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def max_pool(
    spatial_dims: int, stride: int | Sequence[int], *, kernel_size: int | Sequence[int] | None = None
) -> nn.Module:
    """Maximum over windows of `stride`, or of an odd `kernel_size`: (N, C, *S) -> (N, C, *S / stride)."""
    check_dims(spatial_dims)
    kind: Any = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
    step = per_axis(stride, spatial_dims)
    if kernel_size is None:
        return nn.MaxPool2d(step) if spatial_dims == 2 else _MaxPool3d(step)
    kernel = per_axis(kernel_size, spatial_dims)
    return kind(kernel, stride=step, padding=tuple(n // 2 for n in kernel))


class _MaxPool3d(nn.MaxPool3d):
    """Of windows side by side, in the precision of the map: autocast on a CPU widens it, and keeps it so, for nothing.

    Neither a maximum nor its gradient, which goes to one voxel of a window, is rounded.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


def average_pool(spatial_dims: int, stride: int | Sequence[int] = 1) -> nn.Module:
    """Mean over 3x3 or 3x3x3 windows, at a border over the pixels inside: (N, C, *S) -> (N, C, *S / stride)."""
    check_dims(spatial_dims)
    step: Any = per_axis(stride, spatial_dims)
    if spatial_dims == 2:
        return nn.AvgPool2d(3, stride=step, padding=1, count_include_pad=False)
    return _AveragePool3d(step)


class _AveragePool3d(nn.Module):
    """torch's own refuses maps of fewer than 3 voxels even where it pads them: so padded by hand, and divided by counts."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        inside = x.new_ones(1, 1, *x.shape[2:])
        total, share = (
            nn.functional.avg_pool3d(nn.functional.pad(maps, (1,) * 6), 3, stride=self.stride) for maps in (x, inside)
        )
        # the sum comes with its channels first, whatever the map: what follows would go on so
        return (total / share).contiguous(memory_format=layout_of(x))


def mean_pool(spatial_dims: int, stride: int | Sequence[int]) -> nn.Module:
    """Mean over windows of `stride`: (N, C, *S) -> (N, C, *S / stride)."""
    check_dims(spatial_dims)
    step: Any = per_axis(stride, spatial_dims)
    return nn.AvgPool2d(step) if spatial_dims == 2 else _MeanPool3d(step)


class _MeanPool3d(nn.Module):
    """Where channels lie last, means of planes and then of rows, as of pictures, which torch takes with their channels last.

    Its own of volumes copies them to channels first, and gives them so.
    """

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last_3d):
            return nn.functional.avg_pool3d(x, self.stride)
        planes = x.transpose(1, 2).flatten(0, 1)  # (N D, C, H, W), in place
        planes = nn.functional.avg_pool2d(planes, self.stride[1:])
        rows = torch.unflatten(planes, 0, (x.shape[0], x.shape[2])).transpose(1, 2).flatten(3)  # (N, C, D, H W)
        return torch.unflatten(nn.functional.avg_pool2d(rows, (self.stride[0], 1)), 3, planes.shape[2:])


def upsample(spatial_dims: int, stride: int | Sequence[int], *, align_corners: bool = False) -> nn.Module:
    """Bi- or trilinear upsampling: (N, C, *S) -> (N, C, *S * stride)."""
    check_dims(spatial_dims)
    factor = tuple(float(step) for step in per_axis(stride, spatial_dims))
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=align_corners)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bi- or trilinear interpolation to a size: (N, C, *S) -> (N, C, *size)."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return nn.functional.interpolate(x, tuple(size), mode=mode, align_corners=False)


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


def layout_of(x: Tensor) -> torch.memory_format:
    """How a map lies in memory, channels last or first: for what is made of it."""
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def layout(
    spatial_dims: int, channels_last: bool, device: torch.device | str = "cpu", precision: str = "fp32"
) -> torch.memory_format:
    """How maps lie in memory: channels last where wanted, in 3D only where kernels read them so.

    Args:
        spatial_dims: 2 or 3.
        channels_last: whether it is wanted.
        device: where the maps are.
        precision: of products, "bf16" or "fp32".
    """
    return preferred_layout(spatial_dims, device, precision) if channels_last else torch.contiguous_format
