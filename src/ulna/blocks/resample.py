"""Up and down ops: from one level to the next finer or coarser one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.conv import ConvNormAct


class Transpose(nn.Module):
    """Transposed convolution with kernel = stride and no activation.

    Source: code of the authors of UNet++ (zhou2018); kernel printed by the modular U-Net (laird2019), Fig. 4.

    Args:
        ratio: share of the level's width that it gives (32/35 in the published wide U-Net: docs/papers/unetpp.md, section 2).

    Shape:
        (N, Cin, *S) -> (N, round(ratio * Cout), *S * stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        ratio: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = max(1, round(ratio * out_channels))
        self.conv = nd.transposed_conv(spatial_dims, in_channels, self.out_channels, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Linear(nn.Module):
    """Bi- or trilinear upsampling; keeps its channels unless `project`, a 1x1 convolution to the level's width.

    Args:
        align_corners: the corners of both grids coincide, not those of their outer pixels.

    Shape:
        (N, Cin, *S) -> (N, Cin or Cout, *S * stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        project: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels if project else in_channels
        # the projection works on the small map: the same result as after upsampling, at a fraction of the work
        self.project = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=1) if project else nn.Identity()
        self.upsample = nd.upsample(spatial_dims, stride, align_corners=align_corners)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.project(x))


class MaxPool(nn.Module):
    """Maximum over windows of `stride`; keeps its channels.

    Shape:
        (N, Cin, *S) -> (N, Cin, *S / stride)
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = in_channels
        self.pool = nd.max_pool(spatial_dims, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class Strided(ConvNormAct):
    """Strided 3x3 convolution with norm and activation: the first convolution of the block that follows it.

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
        norm: str = "batch",
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__(
            spatial_dims, in_channels, out_channels, stride=tuple(stride), norm=norm, activation=activation, bias=bias
        )
        self.out_channels = out_channels
