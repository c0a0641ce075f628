"""Skip blocks: refine the maps that arrive over skip connections, then fuse them with the resampled map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """All maps side by side, the resampled one first.

    Source: U-Net; UNet++ Eq. 1, in the order of the authors' code.

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, Cup + sum of Cskip, *S)
    """

    def __init__(self, spatial_dims: int, up_channels: int, skip_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = up_channels + sum(skip_channels)

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        return torch.cat([up, *skips], dim=1)
