"""Cascade multi-scale convolution of omega-Net, on its skip connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ulna.blocks.conv import ConvNormAct


class CascadeMultiScale(nn.Module):
    """Cascade of 5, 3 and 1 convolutions, each fed the input plus the previous result, then a 1x1 over all four.

    x1 = C5(x), x2 = C3(x + x1), x3 = C1(x + x2), y = C1([x, x1, x2, x3]).

    Source: omega-Net (wang2020), Sec. 3.3, Eq. 14. Reading: no norm and no activation, as none is printed; both are options
    and then follow every convolution. x1, x2 and x3 have the width of x, which the sums ask for.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Example:
        >>> CascadeMultiScale(2, 16, 16)(torch.zeros(1, 16, 7, 8)).shape
        torch.Size([1, 16, 7, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "none",
        activation: str = "none",
    ) -> None:
        super().__init__()

        def conv(wide: int, want: int, kernel_size: int) -> ConvNormAct:
            return ConvNormAct(spatial_dims, wide, want, kernel_size=kernel_size, norm=norm, activation=activation)

        self.out_channels = out_channels
        self.conv5 = conv(in_channels, in_channels, 5)
        self.conv3 = conv(in_channels, in_channels, 3)
        self.conv1 = conv(in_channels, in_channels, 1)
        self.fuse = conv(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv5(x)
        x2 = self.conv3(x + x1)
        x3 = self.conv1(x + x2)
        return self.fuse(torch.cat([x, x1, x2, x3], dim=1))
