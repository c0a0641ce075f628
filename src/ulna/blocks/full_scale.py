"""Full-scale skip connections of UNet 3+: maps of all levels, each through a convolution of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulna.blocks.conv import ConvNormAct


class FullScale(nn.Module):
    """Every map through a 3x3 convolution, norm and activation to one width, side by side.

    Source: UNet 3+ (huang2020), Sec. 2.1: 64 filters of 3x3 for each of the five maps that a decoder node reads. Reading: the
    width is that of the narrowest of them, which is the paper's 64 there, so that it follows where widths are scaled.

    Args:
        spatial_dims: 2 or 3.
        up_channels: Cup, of the resampled map.
        skip_channels: Cskip of every skip.
        width: channels that each map gets; None: those of the narrowest.
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, width (1 + number of skips), *S)

    Example:
        >>> block = FullScale(2, 32, (8, 16))
        >>> block(torch.zeros(1, 32, 4, 4), [torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 4, 4)]).shape
        torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        spatial_dims: int,
        up_channels: int,
        skip_channels: Sequence[int],
        *,
        width: int | None = None,
        norm: str = "batch",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = (up_channels, *skip_channels)
        each = min(widths) if width is None else width
        self.out_channels = each * len(widths)
        self.convs = nn.ModuleList(
            ConvNormAct(spatial_dims, wide, each, norm=norm, activation=activation) for wide in widths
        )

    def maps(self, up: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """What `forward` puts side by side, for a convolution that reads maps where they lie."""
        return [conv(x) for conv, x in zip(self.convs, (up, *skips), strict=True)]

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        return torch.cat(self.maps(up, skips), dim=1)
