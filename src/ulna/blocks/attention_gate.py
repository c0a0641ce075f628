"""Attention gate: a skip connection that lets through what the coarser map asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulna.blocks import nd


class Gate(nn.Module):
    """One gated map: a = sigmoid(psi(relu(theta x + phi g))), then norm(W (a x)).

    Shape:
        g (N, Cg, *S), x (N, Cx, *S) -> (N, Cx, *S)
    """

    def __init__(self, spatial_dims: int, gating_channels: int, skip_channels: int, *, norm: str) -> None:
        super().__init__()
        inner = max(1, skip_channels // 2)
        self.theta = nd.conv(spatial_dims, skip_channels, inner, kernel_size=1, bias=False)
        self.phi = nd.conv(spatial_dims, gating_channels, inner, kernel_size=1)
        self.psi = nd.conv(spatial_dims, inner, 1, kernel_size=1)
        self.project = nd.conv(spatial_dims, skip_channels, skip_channels, kernel_size=1)
        self.norm = nd.norm(norm, spatial_dims, skip_channels)

    def attention(self, g: Tensor, x: Tensor) -> Tensor:
        """How much of every pixel passes: (N, 1, *S), between 0 and 1."""
        return self.psi((self.theta(x) + self.phi(g)).relu()).sigmoid()

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.project(self.attention(g, x) * x))


class AttentionGate(nn.Module):
    """Every skip map gated by the resampled map, then all side by side, the resampled one first.

    Source: Attention U-Net (oktay2018), the additive gate of the authors' code; modular U-Net (laird2019), Fig. 4 (AttnCell).
    Reading: the gating map is the one after the up op, so both maps have one size: theta is a 1x1 convolution and the
    attention is not resampled (the authors gate with the coarser map). Where a node has several skips, as in UNet++,
    each has a gate of its own.

    Args:
        spatial_dims: 2 or 3.
        up_channels: Cup, of the resampled map (g).
        skip_channels: Cskip of every skip map (x); inside a gate there are Cskip // 2.
        norm: "batch", "instance" or "none", after a gate's last convolution.

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, Cup + sum of Cskip, *S)

    Example:
        >>> gate = AttentionGate(2, 8, (4, 4))
        >>> gate(torch.zeros(2, 8, 5, 6), [torch.zeros(2, 4, 5, 6)] * 2).shape
        torch.Size([2, 16, 5, 6])
    """

    def __init__(
        self, spatial_dims: int, up_channels: int, skip_channels: Sequence[int], *, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Gate(spatial_dims, up_channels, width, norm=norm) for width in skip_channels)
        self.out_channels = up_channels + sum(skip_channels)

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        gated = [gate(up, skip) for gate, skip in zip(self.gates, skips, strict=True)]
        return torch.cat([up, *gated], dim=1)
