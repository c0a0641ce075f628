"""The implicit decoder: what a point's feature vectors and its place say about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ulna.errors import UsageError
from ulna.kernels.points.fused_mlp import Picked, fused_mlp


class WeightNormLinear(nn.Module):
    """A linear layer whose rows have a length of their own: W = g v / |v|.

    Source: Implicit U-Net (marimont2022), Sec. 2; weight normalisation (salimans2016).

    Shape:
        (..., Cin) and the W of `weight()` -> (..., Cout)
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.empty(out_features, in_features))
        self.g = nn.Parameter(torch.empty(out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def fold(self) -> None:
        """W itself in place of its rows and their lengths: for prediction."""
        self.v = nn.Parameter(self.weight().detach())
        self.register_parameter("g", None)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """He normal rows, with the lengths that they then have; biases 0."""
        nn.init.kaiming_normal_(self.v, nonlinearity="relu", generator=generator)
        with torch.no_grad():
            self.g.copy_(self.v.norm(dim=1))
        nn.init.zeros_(self.bias)

    def weight(self) -> Tensor:
        """W: (Cout, Cin)."""
        if self.g is None:
            return self.v
        return nn.functional.normalize(self.v, dim=1) * self.g[:, None]

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, self.bias)


class PointDecoder(nn.Module):
    """Fully connected layers with weight norm, ReLU and dropout, then a plain one to the logits.

    Source: Implicit U-Net (marimont2022), Sec. 2, after DeepSDF (park2019). Reading: eight hidden layers and an output
    layer; dropout after every hidden one, as in earlier code of the first author (docs/papers/implicit_unet.md, section 3).

    Args:
        in_features: of a point.
        maps: K.
        width: of the hidden layers.
        depth: number of hidden layers.
        dropout: probability.
        skip_layer: the hidden layer, counted from 1, that reads the input a second time, as DeepSDF's fourth does; 0: none.

    Shape:
        (N, P, in_features) -> (N, P, K)

    Raises:
        UsageError: for a width or depth below 1, or a layer that does not exist.
    """

    def __init__(
        self, in_features: int, maps: int, *, width: int, depth: int, dropout: float, skip_layer: int = 0
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise UsageError(f"the decoder has one hidden layer of one unit or more; got width={width}, depth={depth}")
        if not (skip_layer == 0 or 2 <= skip_layer <= depth):
            raise UsageError(f"skip_layer is {skip_layer}; layers 2 to {depth} can read the input again, 0 is none")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}; from 0 to below 1 is possible")
        self.skip_layer = skip_layer
        self.hidden = nn.ModuleList(
            WeightNormLinear(
                in_features if layer == 1 else width + (in_features if layer == skip_layer else 0),
                width,
            )
            for layer in range(1, depth + 1)
        )
        self.dropout = dropout
        self.final = nn.Linear(width, maps)

    def weights(self) -> list[Tensor]:
        """The normalised weights of the hidden layers, made once for as many points as are decoded with them."""
        return [layer.weight() for layer in self._hidden()]

    def first_bias(self) -> Tensor:
        """Of the first hidden layer: (W,)."""
        return next(iter(self._hidden())).bias

    def operations(self) -> int:
        """Products, and additions of biases, for one point."""
        return sum(len(layer.v) * (layer.v.shape[1] + 1) for layer in self._hidden()) + self.final.out_features * (
            self.final.in_features + 1
        )

    def forward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        addend: Tensor | None = None,
        read: Sequence[Picked] = (),
    ) -> Tensor:
        """`addend`: (N, P, W), what the first layer adds to its product in place of its bias; `read`: what lies before x."""
        biases = [layer.bias for layer in self._hidden()]
        logits = fused_mlp(
            x.flatten(0, -2),
            [*weights, self.final.weight],
            [*biases, self.final.bias],
            dropout=self.dropout if self.training else 0.0,
            skip_layer=self.skip_layer,
            addend=None if addend is None else addend.flatten(0, -2),
            read=read,
        )
        return logits.reshape(*x.shape[:-1], self.final.out_features)

    def _hidden(self) -> Iterable[WeightNormLinear]:
        return cast("Iterable[WeightNormLinear]", self.hidden)


def encode(points: Tensor, size: Sequence[int], frequencies: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Where a point lies in its patch, as sines and cosines of growing frequency.

    q = 2 p / (S - 1) - 1 for every axis, then [sin(2^l pi q), cos(2^l pi q)] for l = 0 .. L-1, every axis in each.

    Source: Implicit U-Net (marimont2022), Sec. 2, with the encoding of NeRF (mildenhall2020), L = 10. Reading: this formula
    for the printed range [-1, 1]; q itself is not appended; an axis of one voxel has q = -1.

    Args:
        points: whole voxel indices.
        size: S, of the patch.
        frequencies: L.
        dtype: of the values.

    Shape:
        (N, P, D) -> (N, P, 2 L D)
    """
    scales = math.pi * 2.0 ** torch.arange(frequencies, device=points.device, dtype=dtype)
    places = []
    for axis, length in enumerate(size):  # few values an axis, so that they are looked up, not computed at every point
        q = 2 * torch.arange(length, device=points.device, dtype=dtype) / max(length - 1, 1) - 1
        angles = q[:, None] * scales
        places.append(torch.stack([angles.sin(), angles.cos()], dim=-1)[points[..., axis]])  # (N, P, L, 2)
    return torch.stack(places, dim=-1).flatten(-3)
