"""Skip blocks: refine the maps that arrive over skip connections, then fuse them with the resampled map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulna.blocks import nd


class Concat(nn.Module):
    """All maps side by side, the resampled one first; with `project`, every skip through a 1x1 convolution of its width.

    Source: U-Net (ronneberger2015); UNet++ (zhou2018), Eq. 1, in the order of the authors' code.

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, Cup + sum of Cskip, *S)
    """

    def __init__(
        self, spatial_dims: int, up_channels: int, skip_channels: Sequence[int], *, project: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = up_channels + sum(skip_channels)
        self.project = nn.ModuleList(
            nd.conv(spatial_dims, width, width, kernel_size=1) if project else nn.Identity() for width in skip_channels
        )

    def maps(self, up: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """What `forward` puts side by side, for a convolution that reads maps where they lie."""
        return [up, *(project(skip) for project, skip in zip(self.project, skips, strict=True))]

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        return torch.cat(self.maps(up, skips), dim=1)


class Add(nn.Module):
    """The sum of all maps; a skip of another width than the resampled map goes through a 1x1 convolution first.

    Source: FCN (long2015), where maps of several strides are summed. Reading: the 1x1 convolution, which makes the sum
    defined for any widths; maps of equal width are summed as they are.

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, Cup, *S)
    """

    def __init__(self, spatial_dims: int, up_channels: int, skip_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = up_channels
        self.project = nn.ModuleList(
            nn.Identity() if width == up_channels else nd.conv(spatial_dims, width, up_channels, kernel_size=1)
            for width in skip_channels
        )

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        for project, skip in zip(self.project, skips, strict=True):
            up = up + project(skip)
        return up
