"""Multi-dimensional self-attention of omega-Net: over a few dense features of space, then over channels.

Legend: N images, C channels of the attended map, P its pixels, K dense features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.cascade import CascadeMultiScale
from ulna.errors import UsageError, unknown

POOLINGS = ("attention", "average")


class MultiDimensionalAttention(nn.Module):
    """Every skip map through spatial attention, then channel attention; then all maps side by side.

    Source: omega-Net (wang2020), Sec. 3.2 and 4.2 (in series, spatial first); K = 10 from Sec. 4.1.2.

    Args:
        spatial_dims: 2 or 3.
        up_channels: channels of the resampled map, which is passed on as it is.
        skip_channels: channels of every skip map.
        features: K.
        pooling: how K dense features are drawn from a map, see `SpatialAttention`.
        scaled: divide dot products by the root of their length; as printed they are not (the channel attention then gives
            nearly every channel one of the largest ones: docs/papers/omega_net.md, section 5).
        gated: weigh each attended sum by a learnt number that starts at 0, as in Dual Attention Networks (fu2019); as printed
            it is not.
        cascade: a cascade multi-scale convolution ahead of the attention. Sec. 1 and 5.1 use it "on the skip connection and
            MDA module" (`wang/omega_net_mda_star`), Fig. 1 and Sec. 3.3 show it on the skips alone (`wang/omega_net`).

    Shape:
        (N, Cup, *S), [(N, Cskip, *S), ...] -> (N, Cup + sum of Cskip, *S)

    Raises:
        UsageError: for fewer than one feature or an unknown pooling.
    """

    def __init__(
        self,
        spatial_dims: int,
        up_channels: int,
        skip_channels: Sequence[int],
        *,
        features: int = 10,
        pooling: str = "attention",
        scaled: bool = False,
        gated: bool = False,
        cascade: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = up_channels + sum(skip_channels)
        self.refine = nn.ModuleList(
            nn.Sequential(
                CascadeMultiScale(spatial_dims, width, width) if cascade else nn.Identity(),
                SpatialAttention(spatial_dims, width, features=features, pooling=pooling, scaled=scaled, gated=gated),
                ChannelAttention(scaled=scaled, gated=gated),
            )
            for width in skip_channels
        )

    def forward(self, up: Tensor, skips: list[Tensor]) -> Tensor:
        return torch.cat([up, *(refine(skip) for refine, skip in zip(self.refine, skips, strict=True))], dim=1)


class SpatialAttention(nn.Module):
    """Every pixel takes what it needs from K dense features of the whole map, far ones included.

    A[j, i] = softmax over i of <D_i, M_j>, O_j = sum over i of A[j, i] D_i, plus M_j.

    Source: omega-Net (wang2020), Eq. 9 to 11 (dense spatial position attention). Reading: the sums run over the K dense
    features, not over N. "A dilated convolution block" makes D (C x K) from M (C x P): a 3x3 convolution of dilation 2
    draws K maps, each becomes weights by a softmax over the pixels, and D_i is the mean of M under the i-th, which works
    at any size (the bias of that convolution is kept, although the softmax cancels it).

    Args:
        spatial_dims: 2 or 3.
        channels: C.
        features: K.
        pooling: "attention", or "average": the convolution keeps C channels, and D is its mean over K equal runs of pixels.
        scaled: divide the dot products by the root of C.
        gated: weigh the sum by a learnt number that starts at 0.

    Shape:
        (N, C, *S) -> (N, C, *S)

    Raises:
        UsageError: for fewer than one feature or an unknown pooling.
    """

    takes_means = True  # over all that the network sees

    def __init__(
        self, spatial_dims: int, channels: int, *, features: int, pooling: str, scaled: bool, gated: bool
    ) -> None:
        super().__init__()
        if features < 1:
            raise UsageError(f"features is {features}; the attention needs 1 or more")
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        maps = features if pooling == "attention" else channels
        self.dilated = nd.conv(spatial_dims, channels, maps, dilation=2)
        self.features, self.pooling = features, pooling
        self.scale = channels**-0.5 if scaled else 1.0
        self.gate = nn.Parameter(torch.zeros(())) if gated else None

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How much of every dense feature a pixel takes, (N, P, K), each row a sum of 1; and the features, (N, C, K)."""
        drawn = self.dilated(x)
        with _without_autocast(x):
            m = _rows(x)
            drawn = _precise(drawn).flatten(2)
            if self.pooling == "attention":
                dense = drawn.softmax(dim=2) @ m
            else:
                dense = nn.functional.adaptive_avg_pool1d(drawn, self.features).mT
            return (m @ dense.mT * self.scale).softmax(dim=2), dense.mT

    def forward(self, x: Tensor) -> Tensor:
        weights, dense = self.attention(x)
        with _without_autocast(x):
            return _residual(x, weights @ dense.mT, self.gate)


class ChannelAttention(nn.Module):
    """Every channel takes what it needs from all channels that resemble it.

    A[j, i] = softmax over i of <M_i, M_j>, O_j = sum over i of A[j, i] M_i, plus M_j.

    Source: omega-Net (wang2020), Eq. 12 and 13. Reading: i and j run over channels. It has no weights of its own.

    Unscaled, it is not nearly the identity at the start, as one might expect of <M_i, M_i>. Measured on real nuclei, 92 to
    100 % of the rows of A are one-hot, but only 0.5 to 9 % at their own channel: each channel gets one of a few large ones
    added (128 channels at full resolution copy 7 to 20; docs/papers/omega_net.md, section 5).

    Args:
        scaled: divide the dot products by the root of P.
        gated: weigh the sum by a learnt number that starts at 0.

    Shape:
        (N, C, *S) -> (N, C, *S)
    """

    takes_means = True  # over all that the network sees

    def __init__(self, *, scaled: bool, gated: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.gate = nn.Parameter(torch.zeros(())) if gated else None

    def attention(self, x: Tensor) -> Tensor:
        """How much of every channel a channel takes: (N, C, C), each row a sum of 1."""
        with _without_autocast(x):
            m = _rows(x)
            scale = m.shape[1] ** -0.5 if self.scaled else 1.0
            return (m.mT @ m * scale).softmax(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.attention(x)
        with _without_autocast(x):
            return _residual(x, _rows(x) @ weights.mT, self.gate)


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    if x.device.type == "meta":  # which has no arithmetic to choose
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _precise(x: Tensor) -> Tensor:
    """float32 or better: a dot product over all pixels overflows half precision, and its softmax needs every digit."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(x: Tensor) -> Tensor:
    """The vectors of all pixels, which lie so where channels are last: (N, C, *S) -> (N, P, C)."""
    return _precise(x).flatten(2).mT


def _residual(x: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
    """`attended`: (N, P, C)."""
    attended = attended.mT.reshape(x.shape)
    return (_precise(x) + (attended if gate is None else gate * attended)).to(x.dtype)
