"""Spatial dependency layers: project in, sweep the map in several directions, project out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ulna.blocks import nd
from ulna.errors import UsageError, unknown
from ulna.kernels.sweep.dispatch import Direction, Gates, sweep
from ulna.kernels.sweep.window import window


class Sweep(nn.Module):
    """One gated sweep with its own weights, named and drawn as those of a GRU cell.

    Source: SDU-Net (carvalho2021), Sec. 2.1; initial weights uniform within 1 / sqrt(C), as in the code of the layer
    (miladinovic2021).

    Shape:
        (N, C, *S) -> (N, C, *S)
    """

    def __init__(self, channels: int, direction: Direction, neighbours: int) -> None:
        super().__init__()
        self.direction = direction
        self.weight_in = nn.Parameter(torch.empty(3 * channels, neighbours * channels))
        self.weight_hidden = nn.Parameter(torch.empty(3 * channels, channels))
        self.bias_in = nn.Parameter(torch.empty(3 * channels))
        self.bias_hidden = nn.Parameter(torch.empty(3 * channels))
        self.draw()

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew."""
        bound = self.weight_hidden.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        gates = Gates(self.weight_in, self.weight_hidden, self.bias_in, self.bias_hidden)
        return sweep(x, gates, self.direction)


class SpatialDependency(nn.Module):
    """Project in and tanh, sweeps in series, project out; every output can depend on every input of its cone.

    Source: SDU-Net (carvalho2021), Sec. 2.1 and Table 5; details from the code of the layer (docs/papers/sdu_net.md,
    section 1).
    Reading: project-in is a 3x3 convolution (Table 5; the text says 1x1). Without a stated choice there is one direction
    per axis, because Fig. 4 prefers two axes to two senses of one. The residual form is the gated one of that code:
    g * conv(x) + (1 - g) * sdn(x), with g from the layer's own second half of outputs.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        state_channels: C, the width of the state that sweeps.
        directions: names in the order of the sweeps (2D: right, down, left, up; 3D: also forward, backward along the
            first axis), or how many of them; left out, one per axis.
        neighbours: K, positions on the line before that a position reads: 1 or 3 in 2D, 1, 5 or 9 in 3D; left out, the
            most.
        kernel_size: of the projection in, and of the residual form's convolution.
        residual: blend with a convolution.

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Raises:
        UsageError: for directions, neighbours or sizes that do not exist.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        state_channels: int,
        directions: int | str | Sequence[str] | None = None,
        neighbours: int | None = None,
        kernel_size: int = 3,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if state_channels < 1 or kernel_size % 2 == 0:
            raise UsageError(
                f"a spatial dependency layer has state_channels from 1 up and an odd kernel_size; "
                f"got {state_channels} and {kernel_size}"
            )
        chosen = _directions(spatial_dims, directions)
        reads = _neighbours(spatial_dims, neighbours)
        self.project_in = nd.conv(spatial_dims, in_channels, state_channels, kernel_size=kernel_size)
        self.sweeps = nn.Sequential(*(Sweep(state_channels, direction, reads) for direction in chosen))
        self.project_out = nd.conv(
            spatial_dims, state_channels, 2 * out_channels if residual else out_channels, kernel_size=1
        )
        self.convolution: nn.Module | None = None
        if residual:
            self.convolution = nd.conv(spatial_dims, in_channels, out_channels, kernel_size=kernel_size)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as the published code does: uniform within 1 / sqrt(fan-in), biases too."""
        for one in self.sweeps.children():
            cast(Sweep, one).draw(generator)
        projections: list[Any] = [self.project_in, self.project_out, self.convolution]
        for projection in projections:
            if projection is not None:
                bound = projection.weight[0].numel() ** -0.5
                nn.init.uniform_(projection.weight, -bound, bound, generator=generator)
                nn.init.uniform_(projection.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project_out(self.sweeps(self.project_in(x).tanh()))
        if self.convolution is None:
            return y
        dependent, gate = y.chunk(2, dim=1)
        return torch.lerp(dependent, self.convolution(x), gate.sigmoid())


class SpatialDependencyBlock(nn.Module):
    """Convolutions, the last of them replaced by spatial dependency layers; norm and activation after every layer.

    Source: SDU-Net (carvalho2021), Sec. 2.2 (convolutional and spatial dependency layers one after the other) and Table 5.
    Reading: of the two layers per scale the spatial dependency layers are the last (docs/papers/sdu_net.md, section 3).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        layers: of both kinds together.
        sdn_layers: spatial dependency layers among them.
        state_channels, directions, neighbours, kernel_size, residual: see `SpatialDependency`.
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".
        dropout: probability, after every activation.

    Shape:
        (N, Cin, *S) -> (N, Cout, *S)

    Raises:
        UsageError: for options that do not exist, or more spatial dependency layers than layers.

    Example:
        >>> SpatialDependencyBlock(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        layers: int = 2,
        sdn_layers: int = 1,
        state_channels: int = 64,
        directions: int | str | Sequence[str] | None = None,
        neighbours: int | None = None,
        kernel_size: int = 3,
        residual: bool = False,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= sdn_layers <= layers:
            raise UsageError(
                f"sdn_layers is at least 1 and at most layers; got sdn_layers={sdn_layers}, layers={layers}"
            )
        self.out_channels = out_channels
        widths = [in_channels] + [out_channels] * layers
        self.layers = nn.Sequential()
        for i, (wide, want) in enumerate(pairwise(widths)):
            layer: nn.Module
            if i < layers - sdn_layers:
                layer = nd.conv(spatial_dims, wide, want, kernel_size=kernel_size)
            else:
                layer = SpatialDependency(
                    spatial_dims,
                    wide,
                    want,
                    state_channels=state_channels,
                    directions=directions,
                    neighbours=neighbours,
                    kernel_size=kernel_size,
                    residual=residual,
                )
            after = nd.norm(norm, spatial_dims, want), nd.activation(activation), nd.dropout(spatial_dims, dropout)
            names = ("conv", "norm", "activation", "dropout")
            self.layers.append(nn.Sequential(OrderedDict(zip(names, (layer, *after), strict=True))))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _directions(spatial_dims: int, chosen: int | str | Sequence[str] | None) -> list[Direction]:
    """Every axis in its own sense first, fastest axis first, then the other senses."""
    axes = range(spatial_dims - 1, -1, -1)
    known = {
        nd.SENSES[axis - spatial_dims][reverse]: Direction(axis, bool(reverse)) for reverse in (0, 1) for axis in axes
    }
    if chosen is None:
        chosen = spatial_dims
    if isinstance(chosen, int):
        if not 1 <= chosen <= len(known):
            raise UsageError(f"directions is {chosen}; a {spatial_dims}D map has 1 to {len(known)}: {', '.join(known)}")
        return list(known.values())[:chosen]
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    if not names:
        raise UsageError(f"directions is empty; name at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown("direction", name, known)
    return [known[name] for name in names]


def _neighbours(spatial_dims: int, chosen: int | None) -> int:
    if chosen is None:
        return 3 ** (spatial_dims - 1)
    try:
        return len(window(spatial_dims - 1, chosen))
    except ValueError as error:
        raise UsageError(f"{error} in {spatial_dims}D") from None
