"""Scores at several levels, upsampled and summed: the head of FCN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ulna.blocks import nd
from ulna.networks.heads.head import Head, Outputs, at_points
from ulna.networks.wiring import Wiring

LEVELS = 3  # FCN-8s scores three maps: those of stride 8, 16 and 32


class Scores(Head):
    """1x1 scores of the three deepest maps: each sum is upsampled to the next finer map and added, the last to the image.

    Source: FCN-8s (long2015), the baseline of omega-Net (wang2020), Table 1. Reading: omega-Net prints no definition of its
    FCN; upsampling is bi- or trilinear, where FCN learns it from that start (docs/papers/omega_net.md, section 6).

    Args:
        spatial_dims: 2 or 3.
        widths: node -> channels of its map, finest first.
        maps: K, number of logit maps.

    Shape:
        {node: (N, C, *S / stride)} -> Outputs with (N, K, *S), or (N, K, P) at points
    """

    def __init__(self, spatial_dims: int, widths: Mapping[str, int], maps: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(
            {name: nd.conv(spatial_dims, width, maps, kernel_size=1) for name, width in widths.items()}
        )

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        return wiring.pyramid[-LEVELS:]

    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        *finer, deepest = self.convs
        total = self.convs[deepest](maps[deepest])
        for name in reversed(finer):
            scores = self.convs[name](maps[name])
            total = scores + nd.resize(total, scores.shape[2:])
        logits = nd.resize(total, size)
        if points is not None:
            logits = at_points(logits, points, size)
        return Outputs(logits, {"scores": logits}, points)
