"""Residual blocks: those of nnU-Net's residual encoder, and the pre-activated units of the deep residual U-Net.

As a conv block several of them in a row; as a down op one whose first convolution has the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.conv import ConvNormAct
from ulna.errors import UsageError, unknown

SHORTCUTS = ("project", "identity")


class ResidualBlock(nn.Module):
    """Convolution, norm, activation, convolution, norm; plus a shortcut; then the activation.

    With a stride the first convolution has it, and the shortcut is the mean of every window of that size. Where the widths
    differ, a 1x1 convolution without bias and a norm follow on the shortcut.

    Source: residual networks (he2016) with the shortcut of the variant D (he2019), as the encoder of nnU-Net's residual
    presets has them (isensee2024; docs/papers/nnunet_resenc.md, section 1).

    Shape:
        (N, Cin, *S) -> (N, Cout, *S / stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int] | int = 1,
        *,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        step = nd.per_axis(stride, spatial_dims)
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            ConvNormAct(spatial_dims, in_channels, out_channels, stride=step, norm=norm, activation=activation),
            ConvNormAct(spatial_dims, out_channels, out_channels, norm=norm, activation="none"),
        )
        self.mean = nd.mean_pool(spatial_dims, step) if max(step) > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = ConvNormAct(
                spatial_dims, in_channels, out_channels, kernel_size=1, norm=norm, activation="none", bias=False
            )
        self.activation = nd.activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layers(x) + self.project(self.mean(x)))


class ResidualStack(nn.Module):
    """Residual blocks in a row, behind a stem of one convolution, norm and activation where asked for.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        blocks: how many; a stage whose down op is one has one fewer.
        stem: whether a convolution stands before them, as at the entrance of the network.
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Raises:
        UsageError: for fewer than one block.

    Example:
        >>> import torch
        >>> ResidualStack(2, 3, 16, blocks=2)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int = 2,
        stem: bool = False,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise UsageError(f"a residual stack has at least one block; got blocks={blocks}")
        self.out_channels = out_channels
        self.stem: nn.Module = nn.Identity()
        if stem:
            self.stem = ConvNormAct(spatial_dims, in_channels, out_channels, norm=norm, activation=activation)
        widths = [out_channels if stem else in_channels] + [out_channels] * blocks
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(spatial_dims, widths[i], widths[i + 1], norm=norm, activation=activation)
                for i in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class PreActivatedUnit(nn.Module):
    """Norm, activation, convolution, norm, activation, convolution; plus a shortcut from the input.

    Source: deep residual U-Net (zhang2018), Sec. II-A and Fig. 1. Reading: the paper's shortcut is an
    "identity mapping", also where widths or sizes differ; its printed number of parameters leaves no room for projections
    (docs/papers/residual_unet.md, section 2). "identity" takes every stride-th pixel, and zeros for channels that are
    missing, or leaves out those that are too many; "project" is a 1x1 convolution with the stride.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        stride: of the first convolution.
        first: whether the input is the image, so that no norm and no activation stand before the first convolution.
        shortcut: "project" or "identity".
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S / stride)

    Raises:
        UsageError: for another shortcut.

    Example:
        >>> import torch
        >>> PreActivatedUnit(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int] | int = 1,
        *,
        first: bool = False,
        shortcut: str = "project",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        self.out_channels = out_channels
        self.step = nd.per_axis(stride, spatial_dims)
        self.norm: nn.Module = nn.Identity() if first else nd.norm(norm, spatial_dims, in_channels)
        # not in place: the shortcut reads the same map
        self.activation: nn.Module = nn.Identity() if first else nd.activation(activation, inplace=False)
        self.slope = nd.slope_of(self.activation)
        self.layers = nn.Sequential(
            ConvNormAct(spatial_dims, in_channels, out_channels, stride=self.step, norm=norm, activation=activation),
            nd.conv(spatial_dims, out_channels, out_channels),
        )
        self.project: nn.Module | None = None
        if shortcut == "project" and (in_channels != out_channels or max(self.step) > 1):
            self.project = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=1, stride=self.step)

    def forward(self, x: Tensor) -> Tensor:
        if nd.in_one_pass(self.norm, self.slope, x):
            y = self.norm(x, self.slope)
        else:
            y = self.activation(self.norm(x))
        return self.layers(y) + (self._identity(x) if self.project is None else self.project(x))

    def _identity(self, x: Tensor) -> Tensor:
        every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.step))
        x = x[every]
        missing = self.out_channels - x.shape[1]  # below 0, so many are left out
        return nn.functional.pad(x, [0, 0] * len(self.step) + [0, missing]) if missing else x


class PreActivatedDown(PreActivatedUnit):
    """A pre-activated unit whose first convolution has the stride: down op and conv block of a level in one.

    Shape:
        (N, Cin, *S) -> (N, Cout, *S / stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        shortcut: str = "project",
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, stride, shortcut=shortcut, norm=norm, activation=activation
        )
