"""The gated sweep of a spatial dependency layer: a recurrence that runs over a map line by line, in one direction.

Legend: N images, C state channels, *S spatial axes, L lines along the swept axis, *T the axes of one line, K neighbours.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad


class Direction(NamedTuple):
    """The spatial axis that a sweep follows (0 is the first of *S), and whether it starts at its end."""

    axis: int
    reverse: bool = False


class Gates(NamedTuple):
    """The weights of one sweep, laid out as in a GRU cell: gates r, z, n below each other."""

    weight_in: Tensor  # (3C, K * C): of the neighbours on the line before, in the order of `window`
    weight_hidden: Tensor  # (3C, C): of the position itself
    bias_in: Tensor  # (3C,)
    bias_hidden: Tensor  # (3C,)

    @property
    def neighbours(self) -> int:
        """K."""
        return self.weight_in.shape[1] // self.weight_hidden.shape[1]


def window(line_dims: int, neighbours: int) -> tuple[tuple[int, ...], ...]:
    """Where the neighbours lie on the line before, as steps along its axes: nearest first to fill a cross, then a box.

    Args:
        line_dims: axes of a line, 1 in 2D and 2 in 3D.
        neighbours: 1 or 3 in 2D; 1, 5 or 9 in 3D.

    Raises:
        ValueError: for another number.

    Example:
        >>> window(1, 3)
        ((-1,), (0,), (1,))
    """
    box = list(product((-1, 0, 1), repeat=line_dims))
    windows = [tuple(o for o in box if sum(map(abs, o)) <= reach) for reach in range(line_dims + 1)]
    for offsets in windows:
        if len(offsets) == neighbours:
            return offsets
    raise ValueError(f"neighbours is {neighbours}; choose {' or '.join(str(len(offsets)) for offsets in windows)}")


def sweep_reference(x: Tensor, gates: Gates, direction: Direction) -> Tensor:
    """The definition of a sweep, on any device and in any precision.

        h[0] = s[0]
        u[t] = the neighbours of every position on h[t-1], zero outside the line
        r = sigmoid(W_ir u + b_ir + W_hr s[t] + b_hr)
        z = sigmoid(W_iz u + b_iz + W_hz s[t] + b_hz)
        n = tanh(W_in u + b_in + r * (W_hn s[t] + b_hn))
        h[t] = (1 - z) * n + z * s[t]

    Source: SDU-Net Sec. 2.1; the equations from the published code of the layer (specs, SDU-Net 1).
    Reading: every axis is swept over its own length; that code takes the height for all.

    Args:
        x: s, the map before the sweep.
        gates: the weights.
        direction: the axis and the sense.

    Shape:
        (N, C, *S) -> (N, C, *S)
    """
    lines = list(x.movedim(1, -1).unbind(1 + direction.axis))  # L times (N, *T, C)
    if direction.reverse:
        lines.reverse()
    offsets = window(x.ndim - 3, gates.neighbours)
    swept = lines[:1]
    for s in lines[1:]:
        u = torch.cat([_shifted(swept[-1], offset) for offset in offsets], dim=-1)
        ir, iz, i_n = linear(u, gates.weight_in, gates.bias_in).chunk(3, dim=-1)
        hr, hz, hn = linear(s, gates.weight_hidden, gates.bias_hidden).chunk(3, dim=-1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(i_n + r * hn)
        swept.append((1 - z) * n + z * s)
    if direction.reverse:
        swept.reverse()
    return torch.stack(swept, dim=1 + direction.axis).movedim(-1, 1)


def _shifted(line: Tensor, offset: tuple[int, ...]) -> Tensor:
    """(N, *T, C): the value `offset` away from every position, 0 outside."""
    margins = [margin for step in reversed(offset) for margin in (max(-step, 0), max(step, 0))]
    padded = pad(line, [0, 0, *margins])
    for axis, (step, length) in enumerate(zip(offset, line.shape[1:-1], strict=True), start=1):
        padded = padded.narrow(axis, max(step, 0), length)
    return padded
