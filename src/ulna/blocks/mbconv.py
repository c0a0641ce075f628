"""MBConv: mobile inverted bottleneck with squeeze-excitation."""

from __future__ import annotations

from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.conv import ConvNormAct
from ulna.errors import UsageError


class SqueezeExcitation(nn.Module):
    """Every channel scaled by a factor in (0, 1) that is read off the means of all channels.

    Source: squeeze-and-excitation (hu2018), with the SiLU of EfficientNet (tan2019).

    Shape:
        (N, C, *S) -> the same
    """

    takes_means = True  # over all that the network sees

    def __init__(self, spatial_dims: int, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nd.conv(spatial_dims, channels, squeezed, kernel_size=1)
        self.expand = nd.conv(spatial_dims, squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x * self.expand(nn.functional.silu(self.reduce(mean))).sigmoid()


class MBConv(nn.Module):
    """Widen by 1x1, filter every channel alone, weigh the channels, narrow by 1x1; plus the input where widths agree.

    Source: EfficientNet-B0 (tan2019); modular U-Net (laird2019), Fig. 4: one such block is a conv block. Reading: no
    drop-connect; the squeeze is Cin / 4 of the block's own input, as in EfficientNet's code.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: of the depthwise convolution, odd.
        expansion: widening, 1 or more.
        squeeze: share of Cin in the squeeze-excitation.
        norm: "batch", "instance" or "none".

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Raises:
        UsageError: for an even kernel or an expansion below 1.

    Example:
        >>> import torch
        >>> MBConv(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        expansion: int = 6,
        squeeze: float = 0.25,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or expansion < 1:
            raise UsageError(
                f"kernel_size is odd and expansion 1 or more; got kernel_size={kernel_size}, expansion={expansion}"
            )
        wide = expansion * in_channels
        self.out_channels = out_channels
        self.expand = ConvNormAct(
            spatial_dims, in_channels, wide, kernel_size=1, norm=norm, activation="silu", bias=False
        )
        self.filter = ConvNormAct(
            spatial_dims, wide, wide, kernel_size=kernel_size, groups=wide, norm=norm, activation="silu", bias=False
        )
        self.excite = SqueezeExcitation(spatial_dims, wide, max(1, int(squeeze * in_channels)))
        self.project = ConvNormAct(
            spatial_dims, wide, out_channels, kernel_size=1, norm=norm, activation="none", bias=False
        )
        self.residual = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.filter(self.expand(x))))
        return x + y if self.residual else y
