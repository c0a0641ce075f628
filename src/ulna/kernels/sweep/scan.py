"""The gated sweep as one loop operator, for exported networks: a `scan` of torch, `Scan` in ONNX.

The reference writes its loop out, some twenty nodes a line; here a sweep is one node, whatever the size of the map.

Legend: N images, C state channels, *S spatial axes, L lines along the swept axis, *T the axes of one line, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ulna.kernels.sweep.window import shifted, window


def forward(x: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], axis: int, reverse: bool) -> Tensor:
    """The map after the sweep; the hidden side of the gates stands before the loop, as one product.

    For prediction, with gradients off: torch 2.13 cannot trace the gradient of this loop.

    Args:
        x: the map before the sweep.
        weights: those of `Gates`, in its order.
        axis: the swept one of *S.
        reverse: whether the sweep starts at the end of the axis.

    Shape:
        (N, *S, C) -> (N, *S, C)
    """
    from torch._higher_order_ops import scan  # a prototype, so asked for only where it is used

    weight_in, weight_hidden, bias_in, bias_hidden = weights
    offsets = window(x.ndim - 3, weight_in.shape[1] // weight_hidden.shape[1])
    lines = x.movedim(1 + axis, 0).contiguous()  # (L, N, *T, C); what is carried has to keep its layout
    if lines.shape[0] == 1:
        return x
    if reverse:
        lines = lines.flip(0)
    rest = lines[1:]

    def step(above: Tensor, line: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        s, hidden = line
        u = torch.cat([shifted(above, offset) for offset in offsets], dim=-1)
        ir, iz, i_n = linear(u, weight_in, bias_in).chunk(3, dim=-1)
        hr, hz, hn = hidden.chunk(3, dim=-1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(i_n + r * hn)
        h = (1 - z) * n + z * s
        return h, h.clone()  # what is carried and what is kept must not be one tensor

    _, swept = scan(step, lines[0], (rest, linear(rest, weight_hidden, bias_hidden)))
    swept = torch.cat((lines[:1], swept))
    return (swept.flip(0) if reverse else swept).movedim(0, 1 + axis)
