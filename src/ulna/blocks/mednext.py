"""The blocks of MedNeXt: an inverted bottleneck behind a depthwise convolution, as a conv block, a down op and an up op."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.conv import ConvNormAct
from ulna.errors import UsageError


class Bottleneck(nn.Module):
    """Depthwise convolution, norm of every channel, 1x1 to `expansion` times the channels, GELU, 1x1 to Cout.

    Shape:
        (N, Cin, *S) -> (N, Cout, *S / stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        expansion: int,
        norm: str,
        stride: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or expansion < 1:
            raise UsageError(
                f"kernel_size is odd and expansion 1 or more; got kernel_size={kernel_size}, expansion={expansion}"
            )
        wide = expansion * in_channels
        self.filter = ConvNormAct(
            spatial_dims,
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            stride=nd.per_axis(stride, spatial_dims),
            groups=in_channels,
            norm=norm,
            activation="none",
        )
        self.expand = nd.conv(spatial_dims, in_channels, wide, kernel_size=1)
        self.compress = nd.conv(spatial_dims, wide, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.compress(nn.functional.gelu(self.expand(self.filter(x))))


class MedNeXtStack(nn.Module):
    """MedNeXt blocks in a row, each a bottleneck plus its input; a 1x1 convolution before them where the widths differ.

    Source: MedNeXt (roy2023), Sec. 2.1 and Fig. 1a; the norm is a group norm of one channel a group, which is instance norm.
    At the entrance of the network the 1x1 convolution is the paper's stem.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        blocks: B, how many.
        kernel_size: k of the depthwise convolutions, odd.
        expansion: R, 1 or more.
        norm: "batch", "instance" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Raises:
        UsageError: for an even kernel, an expansion below 1 or no block.

    Example:
        >>> MedNeXtStack(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int = 2,
        kernel_size: int = 3,
        expansion: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise UsageError(f"a MedNeXt stack has at least one block; got blocks={blocks}")
        self.out_channels = out_channels
        self.stem: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.stem = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=1)
        self.blocks = nn.ModuleList(
            Bottleneck(
                spatial_dims, out_channels, out_channels, kernel_size=kernel_size, expansion=expansion, norm=norm
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class MedNeXtDown(Bottleneck):
    """A bottleneck whose depthwise convolution has the stride, plus a 1x1 convolution with the stride.

    Source: MedNeXt (roy2023), Sec. 2.1 ("resampling with residual inverted bottlenecks").

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        stride: of every axis.
        kernel_size: k, odd.
        expansion: R, of Cin; 1 or more.
        norm: "batch", "instance" or "none".

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
        kernel_size: int = 3,
        expansion: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            expansion=expansion,
            norm=norm,
            stride=stride,
        )
        self.out_channels = out_channels
        self.shortcut = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shortcut(x)


class MedNeXtUp(Bottleneck):
    """A bottleneck whose depthwise convolution is transposed, plus a transposed 1x1 convolution.

    A transposed convolution is one of the map with zeros between its pixels: (n - 1) stride + 1 of them, and zeros before the
    first fill up to n stride.

    Source: MedNeXt (roy2023), Sec. 2.1. Reading: the zeros stand before the map, behind the whole block, and the shortcut's
    bias stands at every pixel between, as in the authors' public code (docs/papers/mednext.md, section 1).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        stride: of every axis.
        kernel_size: k, odd.
        expansion: R, of Cin; 1 or more.
        norm: "batch", "instance" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S * stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        kernel_size: int = 3,
        expansion: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, kernel_size=kernel_size, expansion=expansion, norm=norm
        )
        self.out_channels = out_channels
        self.stride = nd.per_axis(stride, spatial_dims)
        # its products are those of the small map
        self.shortcut = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        between = self.bias.view(1, -1, *(1 for _ in self.stride))
        y = super().forward(spread(x, self.stride)) + (spread(self.shortcut(x), self.stride) + between)
        before = [width for step in reversed(self.stride) for width in (step - 1, 0)]
        return nn.functional.pad(y, before)


def spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The map with stride - 1 zeros between its pixels: (N, C, *S) -> (N, C, *((S - 1) stride + 1)).

    Example:
        >>> spread(torch.ones(1, 1, 1, 3), (2, 2)).tolist()
        [[[[1.0, 0.0, 1.0, 0.0, 1.0]]]]
    """
    layout = nd.layout_of(x)
    last = layout is not torch.contiguous_format
    # in the order of memory, so that neither map nor gradient is copied into the other layout
    y, first = (x.movedim(1, -1), 1) if last else (x, 2)
    for axis, step in enumerate(stride, start=first):
        if step > 1:
            size = list(y.shape)
            rows = y.reshape(math.prod(size[: axis + 1]), 1, math.prod(size[axis + 1 :]))
            size[axis] *= step
            y = nn.functional.pad(rows, (0, 0, 0, step - 1)).reshape(size)
    for axis, step in enumerate(stride, start=first):
        y = y.narrow(axis, 0, y.shape[axis] - step + 1)
    return (y.movedim(-1, 1) if last else y).contiguous(memory_format=layout)
